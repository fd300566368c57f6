"""Small workflows of AsyncFlow's own engine on each backend."""

import asyncio
import multiprocessing
import shlex
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from rhapsody.backends import (
    BaseBackend,
    ConcurrentExecutionBackend,
    DragonVllmInferenceBackend,
    NoopExecutionBackend,
)
from rhapsody.errors import BackendInUseError
from rhapsody.testing.gate import Gate, hold_async
from tests.support.waiting import LIMIT_S

pytestmark = pytest.mark.asyncflow


@contextmanager
def compute_backend(where: str) -> Iterator[ConcurrentExecutionBackend]:
    """Create a backend with threads or processes, its own or an executor of the caller."""
    if where == "threads":
        yield ConcurrentExecutionBackend("thread")
    elif where == "processes":
        yield ConcurrentExecutionBackend("process", max_workers=2)
    elif where == "caller's threads":
        with ThreadPoolExecutor(2) as executor:
            yield ConcurrentExecutionBackend(executor)
    else:
        context = multiprocessing.get_context("forkserver")
        with ProcessPoolExecutor(2, mp_context=context) as executor:
            yield ConcurrentExecutionBackend(executor)


@pytest.fixture(params=["threads", "processes", "caller's threads", "caller's processes"])
def backend(request: pytest.FixtureRequest) -> Iterator[ConcurrentExecutionBackend]:
    with compute_backend(request.param) as backend:
        yield backend


def inference() -> DragonVllmInferenceBackend:
    return DragonVllmInferenceBackend(
        None, "embedded", engine="embedded", launcher="local", use_service=False, name="ai"
    )


async def make_engine(backend: Any, work_dir: Path) -> Any:
    from radical.asyncflow import WorkflowEngine

    return await WorkflowEngine.create(backend=backend, work_dir=str(work_dir))


@pytest.fixture
async def flow(backend: BaseBackend, tmp_path: Path) -> AsyncIterator[Any]:
    flow = await make_engine(backend, tmp_path)
    yield flow
    await flow.shutdown()


@pytest.fixture
async def gate() -> AsyncIterator[Gate]:
    async with Gate() as gate:
        yield gate


async def bounded(awaitable: Any) -> Any:
    return await asyncio.wait_for(awaitable, LIMIT_S)


async def test_functions_and_executables_exchange_results(flow: Any) -> None:
    @flow.function_task
    async def number(value: int) -> int:
        return value

    @flow.executable_task
    async def spell(value: int) -> str:
        return "/bin/echo three"

    @flow.function_task
    async def join(*parts: Any) -> str:
        return " ".join(str(part).strip() for part in parts)

    one, two = number(1), number(2)
    assert await bounded(join(one, two, spell(two))) == "1 2 three"


async def test_block_runs_its_tasks(flow: Any) -> None:
    @flow.function_task
    async def double(value: int) -> int:
        return 2 * value

    @flow.block
    async def twice(value: int) -> int:
        result: int = await double(await double(value))
        return result

    assert await bounded(asyncio.gather(*(twice(n) for n in range(5)))) == [0, 4, 8, 12, 16]


async def test_failure_is_raised_and_dependents_fail(flow: Any) -> None:
    @flow.function_task
    async def broken() -> None:
        raise ValueError("no such luck")

    @flow.function_task
    async def after(value: Any) -> Any:
        return value

    failed = broken()
    dependent = after(failed)
    with pytest.raises(ValueError, match="no such luck"):
        await bounded(failed)
    with pytest.raises(Exception, match="'after' due to dependency failure"):
        await bounded(dependent)


async def test_stop_iteration_fails_task(flow: Any) -> None:
    @flow.function_task
    async def stops() -> None:
        next(iter(()))

    with pytest.raises(Exception, match="StopIteration"):
        await bounded(stops())


async def test_failed_executable_names_exit_code(flow: Any) -> None:
    @flow.executable_task
    async def broken() -> str:
        return "/bin/sh -c 'exit 3'"

    with pytest.raises(Exception, match="exit code 3"):
        await bounded(broken())


async def test_output_is_captured_in_directory_of_engine(flow: Any, tmp_path: Path) -> None:
    @flow.executable_task(capture_stdio=True)
    async def echo() -> str:
        return "/bin/echo kept"

    stdout = Path(await bounded(echo()))
    assert stdout.read_text() == "kept\n"
    assert stdout.parent == tmp_path / flow.uid


async def test_cancel_ends_running_executable(flow: Any, gate: Gate) -> None:
    command = shlex.join(gate.command("held"))

    @flow.executable_task
    async def held() -> str:
        return command

    future = held()
    await gate.started("held")
    future.cancel()
    with pytest.raises(asyncio.CancelledError):
        await bounded(future)
    await gate.ended("held")


async def test_cancel_ends_running_async_function(flow: Any, gate: Gate) -> None:
    address = gate.address

    @flow.function_task
    async def held() -> None:
        await hold_async(*address, "held")

    future = held()
    await gate.started("held")
    future.cancel()
    with pytest.raises(asyncio.CancelledError):
        await bounded(future)
    await gate.ended("held")


async def test_shutdown_of_engine_ends_running_tasks(
    backend: BaseBackend, tmp_path: Path, gate: Gate
) -> None:
    flow = await make_engine(backend, tmp_path)
    address = gate.address

    @flow.function_task
    async def held() -> None:
        await hold_async(*address, "held")

    future = held()
    await gate.started("held")
    await bounded(flow.shutdown())
    assert future.cancelled()
    await gate.ended("held")


@pytest.mark.parametrize("skip_execution_backend", [False, True])
async def test_second_engine_can_use_backend_after_first(
    skip_execution_backend: bool, backend: BaseBackend, tmp_path: Path
) -> None:
    for _ in range(2):
        flow = await make_engine(backend, tmp_path)

        @flow.function_task
        async def answer() -> int:
            return 42

        assert await bounded(answer()) == 42
        await flow.shutdown(skip_execution_backend=skip_execution_backend)
    await backend.shutdown()


async def test_second_engine_is_rejected_while_first_is_open(
    flow: Any, backend: BaseBackend, tmp_path: Path
) -> None:
    with pytest.raises(BackendInUseError, match=flow.uid):
        await make_engine(backend, tmp_path)

    @flow.executable_task(capture_stdio=True)
    async def echo() -> str:
        return "/bin/echo mine"

    assert Path(await bounded(echo())).parent == tmp_path / flow.uid


async def test_three_hundred_concurrent_tasks_end(flow: Any) -> None:
    @flow.function_task
    async def double(value: int) -> int:
        return 2 * value

    results = await bounded(asyncio.gather(*(double(n) for n in range(300))))
    assert results == [2 * n for n in range(300)]


async def test_no_op_backend_runs_workflow(tmp_path: Path) -> None:
    flow = await make_engine(NoopExecutionBackend(), tmp_path)

    @flow.function_task
    async def number() -> int:
        return 1

    @flow.executable_task
    async def echo(_: Any) -> str:
        return "/bin/echo"

    assert await bounded(echo(number())) == ""
    await flow.shutdown()


async def test_prompts_run_beside_functions(tmp_path: Path) -> None:
    with compute_backend("threads") as compute:
        flow = await make_engine([compute, inference()], tmp_path)

        @flow.function_task
        async def number() -> int:
            return 7

        @flow.prompt_task(backend="ai")
        async def ask() -> str:
            return "Say something."

        @flow.function_task
        async def join(number: int, text: str) -> tuple[int, str]:
            return number, text

        number_, text = await bounded(join(number(), ask()))
        assert number_ == 7
        assert isinstance(text, str)
        assert text
        await flow.shutdown()
