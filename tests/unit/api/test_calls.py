"""Calls of functions: `session.submit`, `map` and `options`."""

import asyncio
import threading
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

import pytest

from rhapsody import ComputeTask, Session
from rhapsody.api import SessionError, TaskCancelledError, TaskValidationError
from rhapsody.backends import ConcurrentExecutionBackend, NoopExecutionBackend
from tests.support.held import HeldBackend
from tests.support.sessions import Recording, boom

where: ContextVar[str] = ContextVar("where", default="nowhere")


def scale(value: int, factor: int = 1, timeout: int = 0) -> int:
    return value * factor + timeout


async def scale_async(value: int) -> int:
    await asyncio.sleep(0)
    return value * 2


def fail_on_two(value: int) -> int:
    if value == 2:
        raise ValueError("two")
    return value


@pytest.fixture
def session() -> Iterator[Session]:
    with Session([ConcurrentExecutionBackend()]) as session:
        yield session


def test_submit_returns_task_whose_result_blocks(session: Session) -> None:
    task = session.submit(scale, 3, factor=2)
    assert isinstance(task, ComputeTask)
    assert task.result(timeout=20) == 6
    assert task.done()


async def test_submit_on_a_loop_returns_task_to_await(held: HeldBackend) -> None:
    async with Session([ConcurrentExecutionBackend()]) as session:
        task = session.submit(scale_async, 3)
        assert task.state == "PENDING"
        assert (await task).return_value == 6


async def test_submitted_tasks_of_one_pass_are_one_batch() -> None:
    backend = Recording()
    async with Session([backend]) as session:
        tasks = [session.submit(scale, number) for number in range(5)]
        assert backend.submitted == []
        await asyncio.gather(*tasks)
    assert backend.submitted == [task.uid for task in tasks]


def test_options_do_not_collide_with_keywords_of_the_function(session: Session) -> None:
    task = session.options(timeout=20, priority=3).submit(scale, 1, timeout=7)
    assert (task.result(), task.timeout, task.priority) == (8, 20, 3)


@pytest.mark.parametrize("name", ["uid", "function", "args"])
def test_options_refuse_fields_that_calls_set(session: Session, name: str) -> None:
    with pytest.raises(TaskValidationError, match=f"'{name}' is not an option of calls"):
        session.options(**{name: "x"})


def test_options_refuse_misspelled_names(session: Session) -> None:
    with pytest.raises(TaskValidationError, match="did you mean 'timeout'"):
        session.options(time_out=3)


def test_submit_refuses_unknown_backend_and_tasks_as_arguments(session: Session) -> None:
    with pytest.raises(TaskValidationError, match="no backend 'gpu'"):
        session.options(backend="gpu").submit(scale, 1)
    with pytest.raises(TaskValidationError, match="await it and pass its result"):
        session.submit(scale, session.submit(scale, 1))


def test_submit_refuses_closed_session() -> None:
    with Session([NoopExecutionBackend()]) as session:
        pass
    with pytest.raises(SessionError, match="is closed"):
        session.submit(scale, 1)


def test_submit_works_from_many_threads(session: Session) -> None:
    results: list[int] = []
    threads = [
        threading.Thread(target=lambda n=n: results.append(session.submit(scale, n).result()))
        for n in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == list(range(8))


async def test_submit_from_a_thread_uses_the_loop_of_the_session() -> None:
    async with Session([ConcurrentExecutionBackend()]) as session:
        await session.submit(scale, 1)
        task = await asyncio.to_thread(session.submit, scale, 5)
        assert (await task).return_value == 5
        assert await asyncio.to_thread(lambda: session.submit(scale, 6).result(20)) == 6


async def test_function_sees_context_variables_of_its_call() -> None:
    async with Session([ConcurrentExecutionBackend()]) as session:
        tasks = []
        for name in ("here", "there"):
            where.set(name)
            tasks.append(session.submit(where.get))
        assert [task.return_value for task in await asyncio.gather(*tasks)] == ["here", "there"]


async def test_task_cancelled_before_its_backend_has_it_does_not_run() -> None:
    backend = Recording()
    async with Session([backend]) as session:
        task = session.submit(scale, 1)
        assert await session.cancel(task)
        with pytest.raises(TaskCancelledError):
            await task
        await asyncio.sleep(0)
    assert backend.submitted == []


async def test_task_submitted_just_before_the_close_does_not_start_a_backend() -> None:
    backend = Recording()
    async with Session([backend]) as session:
        task = session.submit(scale, 1)
    assert task.cancelled()
    await asyncio.sleep(0)
    assert (backend.submitted, backend.state()) == ([], "STOPPED")


@pytest.mark.parametrize("chunksize", [1, 3, 100])
@pytest.mark.parametrize("function", [scale, scale_async])
def test_map_yields_results_in_order(session: Session, function: Any, chunksize: int) -> None:
    factor = 2 if function is scale_async else 1
    results = session.map(function, range(10), chunksize=chunksize)
    assert list(results) == [number * factor for number in range(10)]


def test_map_takes_several_iterables_and_ends_with_the_shortest(session: Session) -> None:
    assert list(session.map(scale, [1, 2, 3], [10, 20])) == [10, 40]
    assert list(session.map(scale, [])) == []


async def test_map_is_awaited_or_iterated_on_a_loop() -> None:
    async with Session([ConcurrentExecutionBackend()]) as session:
        assert await session.map(scale, range(5), chunksize=2) == [0, 1, 2, 3, 4]
        assert [value async for value in session.map(scale, range(3))] == [0, 1, 2]
        with pytest.raises(SessionError, match="use 'async for' or 'await'"):
            list(session.map(scale, range(3)))


def test_map_raises_the_failure_at_its_place(session: Session) -> None:
    results = iter(session.map(fail_on_two, range(5)))
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(ValueError, match="two"):
        next(results)
    assert list(results) == []


async def test_map_left_early_cancels_the_other_calls(held: HeldBackend) -> None:
    async with Session([ConcurrentExecutionBackend(), held]) as session:
        results = session.map(boom)
        with pytest.raises(TypeError):
            await session.map(boom, [1], [2])
        waiting = session.options(backend="held").map(scale, range(3))
        tasks = list(waiting._tasks)
        waiting._cancel_rest()
        await session.wait_tasks(tasks, timeout=20)
        assert [task.state for task in tasks] == ["CANCELED"] * 3
        assert await results == []


def test_map_that_ctrl_c_ends_cancels_all_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(task: ComputeTask) -> None:
        raise KeyboardInterrupt

    with Session([HeldBackend()]) as session:
        results = session.map(scale, range(2))
        tasks = list(results._tasks)
        with monkeypatch.context() as patch:
            patch.setattr(ComputeTask, "result", interrupted)
            with pytest.raises(KeyboardInterrupt):
                list(results)
        for task in tasks:
            with pytest.raises(TaskCancelledError):
                task.result(20)


async def test_map_whose_wait_is_cancelled_cancels_all_calls() -> None:
    held = HeldBackend()
    async with Session([held]) as session:
        results = session.map(scale, range(2))
        tasks = list(results._tasks)
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(results, 0.01)
        await session.wait_tasks(tasks, timeout=20)
        assert [task.state for task in tasks] == ["CANCELED"] * 2


@pytest.mark.parametrize("chunksize", [0, -1, 2.5])
def test_map_refuses_wrong_chunksize(session: Session, chunksize: Any) -> None:
    with pytest.raises(ValueError, match="'chunksize' must be a whole number of at least 1"):
        session.map(scale, [1], chunksize=chunksize)


def test_results_have_a_length_and_a_repr(session: Session) -> None:
    for chunksize in (1, 4):
        results = session.map(scale, range(10), chunksize=chunksize)
        assert len(results) == 10
        assert list(results) == list(range(10))
        assert len(results) == 10
        assert repr(results) == "<results of 10 calls of scale; all of its tasks have ended>"


async def test_repr_of_results_says_how_many_tasks_are_left() -> None:
    held = HeldBackend()
    async with Session([held]) as session:
        results = session.map(scale, range(3))
        await held.wait_entered()
        assert repr(results) == "<results of 3 calls of scale; 3 of its tasks have not ended>"
        held.release()
        await results
