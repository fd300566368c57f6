"""`session.as_completed`: tasks in the order of their ends."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from rhapsody import ComputeTask, Session
from rhapsody.api import SessionError
from rhapsody.backends import ConcurrentExecutionBackend, NoopExecutionBackend
from tests.support.held import HeldBackend
from tests.support.sessions import boom, work


class Interrupted:
    """A queue in whose `get` the user presses Ctrl-C."""

    def get(self) -> None:
        raise KeyboardInterrupt


async def test_tasks_are_yielded_in_the_order_of_their_ends() -> None:
    gates = [threading.Event() for _ in range(3)]
    async with Session([ConcurrentExecutionBackend(max_workers=3)]) as session:
        tasks = [session.submit(gate.wait, 20) for gate in gates]
        order = []
        gates[2].set()
        async for task in session.as_completed(tasks):
            order.append(tasks.index(task))
            for gate in gates[:2] if len(order) == 2 else gates[1:2]:
                gate.set()
    assert order == [2, 1, 0]


async def test_failed_and_ended_tasks_are_yielded() -> None:
    async with Session([ConcurrentExecutionBackend()]) as session:
        ended, failed = session.submit(work), session.submit(boom)
        await ended
        found = [task async for task in session.as_completed([ended, failed])]
    assert [task.state for task in found] == ["DONE", "FAILED"]


async def test_tasks_added_meanwhile_are_yielded() -> None:
    async with Session([ConcurrentExecutionBackend()]) as session:
        completed = session.as_completed([session.submit(pow, 2, 3)])
        values = []
        async for task in completed:
            values.append(task.return_value)
            if len(values) < 4:
                completed.add(session.submit(pow, 2, 3 + len(values)))
    assert values == [8, 16, 32, 64]


async def test_cancelled_wait_loses_no_task(held: HeldBackend) -> None:
    async with Session([held]) as session:
        task = session.submit(work)
        completed = session.as_completed([task])
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(completed.__anext__(), 0.01)
        held.release()
        assert [found async for found in completed] == [task]


def test_wait_that_ctrl_c_ends_loses_no_task(monkeypatch: pytest.MonkeyPatch) -> None:
    with Session([NoopExecutionBackend()]) as session:
        task = session.submit(work)
        completed = session.as_completed([task])
        with monkeypatch.context() as patch:
            patch.setattr(completed, "_ended", Interrupted())
            with pytest.raises(KeyboardInterrupt):
                next(completed)
        assert list(completed) == [task]


def test_blocking_session_iterates_by_for() -> None:
    with Session([ConcurrentExecutionBackend()]) as session:
        completed = session.as_completed(session.submit(pow, n, 2) for n in range(3))
        values = []
        for task in completed:
            values.append(task.result())
            if len(values) == 1:
                completed.add([session.submit(pow, 5, 2)])
    assert sorted(values) == [0, 1, 4, 25]


async def test_for_on_a_loop_is_refused_and_async_for_without_one() -> None:
    async with Session([NoopExecutionBackend()]) as session:
        with pytest.raises(SessionError, match="use 'async for'"):
            list(session.as_completed([session.submit(work)]))

    def in_thread() -> None:
        with Session([NoopExecutionBackend()]) as blocking:
            completed = blocking.as_completed(blocking.submit(work))
            with pytest.raises(SessionError, match="use 'for' there"):
                asyncio.run(completed.__anext__())

    await asyncio.to_thread(in_thread)


async def test_task_of_another_session_is_refused() -> None:
    async with Session([NoopExecutionBackend()]) as session:
        with pytest.raises(SessionError, match="was not submitted to this session"):
            session.as_completed([ComputeTask(function=work)])


@pytest.mark.parametrize("given", [3, "task.000001", None])
async def test_other_objects_than_tasks_are_refused(given: Any) -> None:
    async with Session([NoopExecutionBackend()]) as session:
        with pytest.raises(SessionError, match="only tasks of this session"):
            session.as_completed([given])
        with pytest.raises(SessionError, match="only tasks of this session"):
            await session.wait_tasks([given])


async def test_cancel_all_ends_every_task(held: HeldBackend) -> None:
    async with Session([held]) as session:
        tasks = [session.submit(work) for _ in range(3)]
        assert session.cancel_all() == tasks
        assert {task.state async for task in session.as_completed(tasks)} == {"CANCELED"}
        assert session.cancel_all() == []


def test_cancel_all_in_blocking_session() -> None:
    held = HeldBackend()
    with Session([held]) as session:
        assert session.cancel_all() == []
        tasks = [session.submit(work) for _ in range(3)]
        assert held.entered.wait(20)
        assert {task.state for task in session.as_completed(session.cancel_all())} == {"CANCELED"}
        assert all(task.cancelled() for task in tasks)


@pytest.mark.parametrize("pool", ["own", "caller's"])
def test_as_completed_inside_tasks_of_a_full_pool_does_not_deadlock(pool: str) -> None:
    with ThreadPoolExecutor(2) as executor:
        backend = (
            ConcurrentExecutionBackend(max_workers=2)
            if pool == "own"
            else ConcurrentExecutionBackend(executor)
        )
        with Session(backend) as session:

            def number_below(levels: int) -> int:
                if not levels:
                    return 1
                below = [session.submit(number_below, levels - 1) for _ in range(3)]
                return 1 + sum(int(task.result()) for task in session.as_completed(below))

            tasks = [session.submit(number_below, 3) for _ in range(4)]
            assert [task.result(timeout=60) for task in tasks] == [40] * 4


def test_result_of_a_later_task_inside_as_completed_does_not_deadlock() -> None:
    with Session(ConcurrentExecutionBackend(max_workers=1)) as session:

        def outer() -> list[int]:
            tasks = [session.submit(pow, 2, n) for n in range(4)]
            for task in session.as_completed(tasks):
                tasks[-1].result()
                task.result()
            return [task.result() for task in tasks]

        assert session.submit(outer).result(timeout=60) == [1, 2, 4, 8]


def test_tasks_added_inside_a_task_of_a_full_pool_are_yielded() -> None:
    with Session(ConcurrentExecutionBackend(max_workers=1)) as session:

        def outer() -> list[int]:
            values = []
            completed = session.as_completed(session.submit(pow, 2, 3))
            for task in completed:
                values.append(task.return_value)
                if len(values) < 3:
                    completed.add(session.submit(pow, 2, 3 + len(values)))
            return values

        assert session.submit(outer).result(timeout=60) == [8, 16, 32]


def test_as_completed_inside_a_task_yields_a_task_before_the_next_one_runs() -> None:
    with Session(ConcurrentExecutionBackend(max_workers=1)) as session:

        def outer() -> list[str]:
            events: list[str] = []
            tasks = [session.submit(events.append, f"run {n}") for n in range(3)]
            events.extend(f"yield {tasks.index(task)}" for task in session.as_completed(tasks))
            return events

        events = session.submit(outer).result(timeout=60)
    assert events == ["run 0", "yield 0", "run 1", "yield 1", "run 2", "yield 2"]
