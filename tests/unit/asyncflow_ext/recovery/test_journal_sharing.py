"""The journal of an engine: equal calls at the same time, retries and time limits."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from asyncflow_ext import WorkflowEngine
from rhapsody.backends import ConcurrentExecutionBackend
from rhapsody.errors import TaskTimeoutError
from tests.support.engines import Echo, make_task
from tests.support.scripted import ScriptedBackend

pytestmark = pytest.mark.asyncflow


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.journal"


@asynccontextmanager
async def opened(path: Path, backend: Any = None) -> AsyncIterator[WorkflowEngine]:
    backend = backend or ConcurrentExecutionBackend()
    async with WorkflowEngine.create(backend=backend, journal=path) as flow:
        yield flow


class Scripted(ScriptedBackend):
    """Says when it has a number of tasks, and ends them when the test does."""

    def __init__(self) -> None:
        super().__init__(on_task=self.receive)
        self.tasks: list[dict[str, Any]] = []
        self.arrived = asyncio.Condition()

    def receive(self, task: dict[str, Any]) -> None:
        self.tasks.append(task)

    async def submit_tasks(self, tasks: list[dict[str, Any]]) -> None:
        await super().submit_tasks(tasks)
        async with self.arrived:
            self.arrived.notify_all()

    async def wait_for(self, number: int) -> None:
        async with self.arrived:
            await asyncio.wait_for(
                self.arrived.wait_for(lambda: len(self.tasks) >= number), timeout=20
            )


async def test_cached_calls_whose_output_is_missing_run_once(path: Path, tmp_path: Path) -> None:
    log, output = tmp_path / "log", tmp_path / "out"
    command = f"sh -c 'echo ran >> {log}; echo x > {output}'"
    for _ in range(2):
        output.unlink(missing_ok=True)
        async with opened(path) as flow:

            @flow.executable_task(cache=True, outputs=[output])
            async def make() -> str:
                return command

            await asyncio.gather(*(make() for _ in range(3)))
    assert log.read_text() == "ran\n" * 2


async def test_cached_executable_that_waits_has_its_whole_time_limit(path: Path) -> None:
    backend = Scripted()
    async with opened(path, backend) as flow:

        @flow.executable_task(cache=True, timeout=1000.0)
        async def make() -> str:
            return "true"

        tasks = [make() for _ in range(2)]
        await backend.wait_for(1)
        assert [task.timers for task in tasks if task.stage.name == "QUEUED"] == [None]
        backend.done(backend.tasks[0], "fine")
        assert await asyncio.gather(*tasks) == ["fine", "fine"]


async def test_executable_whose_function_failed_at_first_is_recorded(path: Path) -> None:
    failed: list[int] = []
    for recalled in (None, True):
        async with opened(path) as flow:

            @flow.executable_task(retries=1, backoff=0.001, version="1")
            async def make() -> str:
                if not failed:
                    failed.append(1)
                    raise OSError("broken")
                return "echo fine"

            task = make()
            assert (await task, task.task.get("from_journal")) == ("fine\n", recalled)


async def test_executable_with_another_command_in_its_retry_has_the_key_of_that(
    path: Path,
) -> None:
    words = ["false", "echo fine"]
    for recalled in (None, True):
        async with opened(path) as flow:

            @flow.executable_task(retries=1, backoff=0.001)
            async def make() -> str:
                return words.pop(0) if len(words) > 1 else words[0]

            task = make()
            assert (await task, task.task.get("from_journal")) == ("fine\n", recalled)


class TimingOut(Echo):
    """Takes too long for its first prompts.

    Args:
        number: How many.
    """

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number

    async def run_one(self, task: Mapping[str, Any]) -> dict[str, Any]:
        result = await super().run_one(task)
        if len(self.asked) <= self.number:
            raise TaskTimeoutError(str(task["uid"]), 5.0)
        return result


@pytest.mark.parametrize(("number", "retries"), [(1, 2), (2, 1)])
async def test_equal_prompts_wait_while_one_is_retried_or_replaced(
    path: Path, number: int, retries: int
) -> None:
    backend = TimingOut(number)
    async with opened(path, backend) as flow:

        @flow.ai_task(cache=True, retries=retries, backoff=0.001, timeout=5.0)
        async def ask() -> str:
            return "What is AI?"

        responses = await asyncio.gather(*(ask() for _ in range(4)), return_exceptions=True)
    assert [type(response) for response in responses if not isinstance(response, str)] == (
        [TaskTimeoutError] if number > retries else []
    )
    assert set(map(str, responses[1:])) == {"<What is AI?>"}
    assert len(backend.prompts) == number + 1


async def test_prompt_can_be_cancelled_while_its_result_is_read(
    path: Path, asyncio_errors: Any
) -> None:
    for _ in range(2):
        async with opened(path, Echo()) as flow:

            @flow.ai_task(cache=True)
            async def ask() -> str:
                return "x" * 10_000

            task = ask()
            assert flow.journal is not None
            if flow.journal._done:
                while task.call is None:  # noqa: ASYNC110 - no event says so
                    await asyncio.sleep(0)
                task.cancel()
                await asyncio.wait([task])
                await flow.journal.flush()
                await asyncio.sleep(0)
                assert task.cancelled()
            else:
                await task
    assert asyncio_errors == []


@pytest.mark.parametrize("kind", ["executable_task", "ai_task"])
async def test_value_of_a_task_without_journal_belongs_to_the_key(path: Path, kind: str) -> None:
    found = []
    for value in (1, 1, 2):
        async with opened(path, [ConcurrentExecutionBackend(), Echo()]) as flow:

            @flow.function_task(journal=False)
            async def read(value: int = value) -> int:
                return value

            @getattr(flow, kind)
            async def use(x: int) -> str:
                return "true"

            task = use(read())
            await task
            found.append(task.task.get("from_journal"))
    assert found == [None, True, None]


async def test_call_that_failed_for_good_is_replaced_by_the_next_equal_one(path: Path) -> None:
    backend = Scripted()
    async with opened(path, backend) as flow:
        task = make_task(flow, cache=True, version="1")
        first, second = task(), task()
        await backend.wait_for(1)
        backend.failed(backend.tasks[0], OSError("broken"))
        with pytest.raises(OSError, match="broken"):
            await first
        await backend.wait_for(2)
        backend.done(backend.tasks[1], "fine")
        assert await second == "fine"


async def test_tasks_after_equal_cached_calls_keep_their_order(path: Path) -> None:
    found = []
    for _ in range(2):
        async with opened(path) as flow:

            def number(x: int) -> int:
                return x

            def named(x: int) -> str:
                return str(x)

            load = flow.function_task(number, cache=True, version="1")
            step = flow.function_task(number, version="1")
            one, two = (flow.function_task(named, version=text) for text in "12")
            first, second = step(load(-1)), step(load(-1))
            tasks = [one(first), two(second)]
            await asyncio.gather(*tasks)
            found.append([task.task.get("from_journal") for task in tasks])
    assert found == [[None, None], [True, True]]
