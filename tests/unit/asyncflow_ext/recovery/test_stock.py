"""The journal of AsyncFlow's own engine: what a second run recalls."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import radical.asyncflow

from asyncflow_ext import WorkflowEngine, extend, flow_report
from rhapsody.api import AITask
from rhapsody.backends import ConcurrentExecutionBackend, NoopExecutionBackend
from rhapsody.errors import JournalError
from tests.support.engines import Echo
from tests.support.scripted import ScriptedBackend

pytestmark = pytest.mark.asyncflow


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.journal"


@asynccontextmanager
async def opened(path: Path, *backends: Any, **options: Any) -> AsyncIterator[Any]:
    given = list(backends) or [ConcurrentExecutionBackend(), Echo()]
    flow = await radical.asyncflow.WorkflowEngine.create(
        backend=given, work_dir=str(path.parent), **options
    )
    try:
        yield extend(flow, journal=path)
    finally:
        await flow.shutdown()


async def test_functions_executables_and_prompts_are_recalled(path: Path) -> None:
    ran: list[str] = []
    log = path.parent / "log"
    asked = []
    for recalled in (0, 4):
        ai = Echo()
        async with opened(path, ConcurrentExecutionBackend(), ai) as flow:

            @flow.function_task
            async def double(
                x: int,
                task_description: Any = {"version": "1"},  # noqa: B006
            ) -> int:
                ran.append("double")
                return 2 * x

            @flow.executable_task
            async def show(x: Any) -> str:
                return f"sh -c 'echo ran >> {log}; echo {await x}'"

            @flow.ai_task
            async def ask(word: str) -> str:
                return f"What is {word.strip()}?"

            @flow.block
            async def block(x: int) -> int:
                return int(await double(x))

            assert await ask(show(double(5))) == "<What is 10?>"
            assert await block(7) == 14
            assert flow.journal.get_statistics()["recalled"] == recalled
            page = flow_report(flow, path.parent / "page.html").read_text()
            assert ">journal<" in page
        asked += ai.prompts
    assert (ran, log.read_text(), asked) == (["double"] * 2, "ran\n", ["What is 10?"])


async def test_changed_value_runs_what_follows(path: Path) -> None:
    found = []
    for text in ("1", "1", "2"):
        async with opened(path) as flow:

            @flow.function_task
            async def make(
                task_description: Any = {"journal": False},  # noqa: B006
                text: str = text,
            ) -> Any:
                return np.full(100_000, int(text))

            @flow.function_task
            async def total(values: Any) -> Any:
                return np.concatenate([values, values])

            assert (await total(make())).sum() == 200_000 * int(text)
            found.append(flow.journal.get_statistics()["recalled"])
    assert found == [0, 1, 0]


async def test_failed_task_and_failed_prompt_run_again(path: Path) -> None:
    class Broken(Echo):
        async def run_one(self, task: Any) -> dict[str, Any]:
            raise OSError("broken")

    for ai, failures in ((Broken(), 2), (Echo(), 1)):
        async with opened(path, ConcurrentExecutionBackend(), ai) as flow:

            @flow.function_task
            async def fail() -> None:
                raise OSError("broken")

            @flow.ai_task
            async def ask() -> str:
                return "What is AI?"

            found = await asyncio.gather(fail(), ask(), return_exceptions=True)
            assert sum(isinstance(value, OSError) for value in found) == failures
            assert flow.journal.get_statistics()["recalled"] == 0


async def test_task_that_waits_for_an_equal_one_can_be_cancelled(path: Path) -> None:
    submitted = asyncio.Event()
    backend = ScriptedBackend(on_task=lambda task: submitted.set())
    async with opened(path, backend) as flow:

        @flow.function_task
        async def work(task_description: Any = {"cache": True}) -> int:  # noqa: B006
            return 1

        first, second = work(), work()
        await asyncio.wait_for(submitted.wait(), 20)
        second.cancel()
        await asyncio.wait([second])
        assert second.cancelled()
        backend.done(backend.batches[0][0], 5)
        assert await first == 5
        assert [len(batch) for batch in backend.batches] == [1]


async def test_task_that_the_backend_does_not_take_after_all_fails(path: Path) -> None:
    (path.parent / "in.dat").touch()
    backend = ScriptedBackend()
    backend.submit_error = OSError("closed")
    async with opened(path, backend) as flow:

        @flow.function_task
        async def work(task_description: Any = {"inputs": [path.parent / "in.dat"]}) -> int:  # noqa: B006
            return 1

        with pytest.raises(OSError, match="closed"):
            await asyncio.wait_for(work(), 20)


async def test_task_with_a_wrong_option_fails_alone(path: Path) -> None:
    async with opened(path) as flow:

        @flow.function_task
        async def wrong(task_description: Any = {"inputs": 5}) -> int:  # noqa: B006
            return 1

        @flow.function_task
        async def work() -> int:
            return 1

        with pytest.raises(TypeError):
            await wrong()
        assert await work() == 1


async def test_prompts_count_under_the_name_of_their_function(path: Path) -> None:
    async with opened(path) as flow:

        @flow.ai_task
        async def ask(number: int) -> AITask:
            return AITask(f"What is {number}?")

        await asyncio.gather(*map(ask, range(3)))
        assert flow.journal.recorded == {"ask": 3}


async def test_journal_in_use_is_refused_and_engine_stays_usable(path: Path) -> None:
    async with opened(path):
        flow = await radical.asyncflow.WorkflowEngine.create(
            backend=ConcurrentExecutionBackend(), work_dir=str(path.parent)
        )
        with pytest.raises(JournalError, match="is in use by process"):
            extend(flow, journal=path)
        extend(flow)

        @flow.function_task
        async def work() -> int:
            return 1

        assert await work() == 1
        await flow.shutdown()


async def test_dry_run_does_not_use_the_journal(path: Path) -> None:
    flow = await radical.asyncflow.WorkflowEngine.create(dry_run=True, work_dir=str(path.parent))
    extend(flow, journal=path)
    assert not path.exists()
    await flow.shutdown()


async def test_own_engine_takes_its_journal_elsewhere(path: Path) -> None:
    async with WorkflowEngine.create(backend=NoopExecutionBackend()) as flow:
        with pytest.raises(TypeError, match=r"WorkflowEngine.create\(journal=...\)"):
            extend(flow, journal=path)


async def test_plain_function_is_recalled_and_changes_with_its_code(path: Path) -> None:
    found = []
    for scale in (2, 2, 3):
        async with opened(path, ConcurrentExecutionBackend()) as flow:

            @flow.function_task
            def multiply(x: int, scale: int = scale) -> int:
                return x * scale

            assert [await multiply(n) for n in (1, 2)] == [scale, 2 * scale]
            found.append(flow.journal.get_statistics()["recalled"])
    assert found == [0, 2, 0]
