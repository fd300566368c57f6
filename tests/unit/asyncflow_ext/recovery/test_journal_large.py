"""The journal of an engine and large arguments, whose keys are made in another thread."""

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest

from asyncflow_ext import WorkflowEngine
from rhapsody import AITask, ComputeTask, Session
from rhapsody.backends import ConcurrentExecutionBackend
from tests.support.inference import embedded
from tests.support.waiting import until

pytestmark = pytest.mark.asyncflow

LARGE = 1000


class Observed:
    """An argument that notes which thread reads it, and may hold that thread."""

    def __init__(self) -> None:
        self.threads: list[str] = []
        self.held = threading.Event()
        self.held.set()

    def __reduce__(self) -> tuple[Any, ...]:
        self.threads.append(threading.current_thread().name)
        assert self.held.wait(30)
        return Observed, ()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.journal"


def opened(path: Path) -> Any:
    return WorkflowEngine.create(backend=ConcurrentExecutionBackend(), journal=path)


async def test_large_arguments_are_read_in_another_thread(path: Path) -> None:
    async with opened(path) as flow:

        @flow.function_task(version="1")
        async def count(values: list[Any]) -> int:
            return len(values)

        small, large = Observed(), Observed()
        assert await count([small] * 10) == 10
        assert await count([large] * LARGE) == LARGE
    assert set(small.threads) == {"MainThread"}
    assert set(large.threads) == {"rhapsody-journal-keys_0", "rhapsody-journal"}


async def test_equal_large_calls_keep_their_order(path: Path) -> None:
    ran: list[int] = []
    results = []
    for _ in range(2):
        async with opened(path) as flow:

            @flow.function_task(version="1")
            async def draw(values: list[int]) -> int:
                ran.append(len(values))
                return len(ran)

            tasks = [draw([0] * LARGE) for _ in range(20)]
            results.append(await asyncio.gather(*tasks))
    assert len(ran) == 20
    assert results[0] == results[1]


@pytest.mark.parametrize("changed", [True, False])
async def test_argument_changed_before_the_end_is_not_journaled(
    path: Path, changed: bool, caplog: pytest.LogCaptureFixture
) -> None:
    ran: list[int] = []
    for _ in range(2):
        observed = Observed()
        values: list[Any] = [0] * LARGE + [observed]
        async with opened(path) as flow:

            @flow.function_task(version="1")
            async def first(values: list[Any]) -> int:
                ran.append(values[0])
                return int(values[0])

            observed.held.clear()
            task = first(values)
            await until(lambda threads=observed.threads: threads)  # type: ignore[misc]
            values[0] = int(changed)  # after it was read for the key
            observed.held.set()
            assert await task == int(changed)
    assert ran == ([1, 1] if changed else [0])
    said = "an argument of 'first' was changed before its task ended"
    assert (said in caplog.text) == changed


async def test_task_is_cancelled_while_its_key_is_made(path: Path) -> None:
    observed = Observed()
    observed.held.clear()
    async with opened(path) as flow:

        @flow.function_task(version="1")
        async def count(values: list[Any]) -> int:
            return len(values)

        task = count([observed] * LARGE)
        await until(lambda: observed.threads)
        task.cancel()
        observed.held.set()
        await asyncio.wait([task])
        assert task.cancelled()
        assert await count([0] * LARGE) == LARGE
    assert flow.journal.get_statistics()["recorded"] == 1


async def test_session_keeps_the_order_of_equal_large_calls(path: Path) -> None:
    ran: list[int] = []

    def draw(values: list[int]) -> int:
        ran.append(len(values))
        return len(ran)

    results = []
    for _ in range(2):
        async with Session([ConcurrentExecutionBackend(max_workers=1)], journal=path) as session:
            tasks = [ComputeTask(function=draw, args=([0] * LARGE,), version="1") for _ in range(5)]
            await session.submit_tasks(tasks)
            await session.wait_tasks(tasks)
            results.append([task.return_value for task in tasks])
    assert sorted(results[0]) == [1, 2, 3, 4, 5]
    assert results[1] == results[0]
    assert len(ran) == 5


async def test_large_list_of_prompts_is_recalled(path: Path) -> None:
    recalled = []
    for _ in range(2):
        async with Session([embedded()], journal=path) as session:
            task = AITask(["What is heat?"] * LARGE, max_tokens=1, temperature=0)
            await session.submit_tasks([task])
            await task
            assert len(task.response) == LARGE
            recalled.append(bool(task.from_journal))
    assert recalled == [False, True]
