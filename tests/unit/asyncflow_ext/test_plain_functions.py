"""Plain functions on AsyncFlow's own engine, after `extend`."""

import os
import pickle
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from radical.asyncflow import WorkflowEngine as StockEngine

from asyncflow_ext import extend
from asyncflow_ext.plain_functions import PlainFunction
from rhapsody.backends import ConcurrentExecutionBackend
from tests.support.foreign import ForeignBackend

pytestmark = pytest.mark.asyncflow


@pytest.fixture
async def flow(tmp_path: Path) -> AsyncIterator[Any]:
    backends = [
        ConcurrentExecutionBackend(),
        ConcurrentExecutionBackend("process", name="processes", max_workers=1),
    ]
    engine = await StockEngine.create(backend=backends, work_dir=str(tmp_path))
    yield extend(engine)
    await engine.shutdown()


async def test_plain_functions_run_on_the_backend(flow: Any) -> None:
    @flow.function_task
    def double(value: int) -> int:
        return 2 * value

    @flow.function_task(backend="processes")
    def pid(value: int) -> tuple[int, int]:
        return value, os.getpid()

    @flow.function_task
    async def add(first: int, second: tuple[int, int]) -> int:
        return first + second[0]

    value, process = await pid(3)
    assert value == 3
    assert process != os.getpid()
    assert await add(double(4), pid(1)) == 9
    assert double.__name__ == "double"


async def test_plain_executable_returns_its_command(flow: Any) -> None:
    @flow.executable_task
    def echo(word: str) -> str:
        return f"echo {word}"

    @flow.executable_task(capture_stdio=True)
    def to_file() -> str:
        return "echo kept"

    assert await echo("a") == "a\n"
    assert Path(await to_file()).read_text() == "kept\n"


async def test_failure_of_a_plain_function_is_raised(flow: Any) -> None:
    @flow.function_task
    def fail() -> None:
        raise OSError("intended")

    with pytest.raises(OSError, match="intended"):
        await fail()


def test_decorator_does_not_change_for_backends_of_other_packages() -> None:
    class Flow:
        _backends = {"foreign": ForeignBackend()}  # noqa: RUF012
        block = function_task = executable_task = print

    assert extend(Flow()).function_task is print


def test_plain_function_can_be_pickled() -> None:
    wrapped = PlainFunction(os.path.basename)
    assert pickle.loads(pickle.dumps(wrapped))("/a/b") == "b"
    assert wrapped.__name__ == "basename"  # type: ignore[attr-defined]


async def test_journal_tells_plain_functions_apart(tmp_path: Path) -> None:
    log = str(tmp_path / "calls")

    def double(value: int) -> int:
        with open(log, "a") as file:
            file.write("double ")
        return 2 * value

    def half(value: int) -> float:
        with open(log, "a") as file:
            file.write("half ")
        return value / 2

    for _ in range(2):
        engine = await StockEngine.create(
            backend=ConcurrentExecutionBackend(), work_dir=str(tmp_path)
        )
        flow: Any = extend(engine, journal=tmp_path / "run.journal")
        try:
            assert await flow.function_task(double)(4) == 8
            assert await flow.function_task(half)(4) == 2
        finally:
            await engine.shutdown()
    assert Path(log).read_text() == "double half "
