"""`task.result()`: it blocks in threads without an event loop."""

import asyncio
import pickle
from collections.abc import Iterator

import pytest

from rhapsody import AITask, ComputeTask, Session
from rhapsody.api import SessionError, TaskCancelledError
from rhapsody.backends import ConcurrentExecutionBackend
from tests.support.held import HeldBackend
from tests.support.sessions import boom, work


@pytest.fixture
def session() -> Iterator[Session]:
    with Session([ConcurrentExecutionBackend()]) as session:
        yield session


def test_result_of_each_kind_of_task() -> None:
    with Session([HeldBackend(), ConcurrentExecutionBackend()]) as session:
        session.backends["held"].release()
        tasks = [
            ComputeTask("echo", arguments=["a"], backend="concurrent"),
            ComputeTask(function=work, backend="concurrent"),
            AITask("hi", uid="prompt"),
        ]
        session.run(tasks)
        assert [task.result() for task in tasks] == ["a\n", 3, "prompt"]


def test_result_raises_the_failure_of_the_task(session: Session) -> None:
    with pytest.raises(ValueError, match="intended"):
        session.submit(boom).result(20)


def test_result_ends_after_its_timeout() -> None:
    held = HeldBackend()
    with Session([held]) as session:
        task = session.submit(work)
        with pytest.raises(asyncio.TimeoutError, match=r"within 0\.01 s; it continues"):
            task.result(timeout=0.01)
        held.release()
        assert task.result(20) == task.uid


def test_close_of_the_session_ends_the_wait() -> None:
    with Session([HeldBackend()]) as session:
        task = session.submit(work)
    with pytest.raises(TaskCancelledError):
        task.result(20)


async def test_result_on_a_loop_names_await(held: HeldBackend) -> None:
    async with Session([held]) as session:
        task = session.submit(work)
        with pytest.raises(SessionError, match="await the task first"):
            task.result()
        held.release()
        await task
        assert task.result() == task.uid


def test_result_before_submission_is_refused() -> None:
    with pytest.raises(SessionError, match="was not submitted"):
        ComputeTask(function=work).result()


def test_result_after_the_end_of_its_loop_is_refused() -> None:
    held = HeldBackend()
    session = Session([held])

    async def submit() -> ComputeTask:
        return session.submit(work)

    task = asyncio.run(submit())
    with pytest.raises(SessionError, match="an event loop that does not run any more"):
        task.result()
    asyncio.run(held.shutdown())


def test_pickled_task_keeps_its_result(session: Session) -> None:
    done = session.submit(pow, 2, 3)
    assert done.result(20) == 8
    assert pickle.loads(pickle.dumps(done)).result() == 8
    failed = session.submit(pow, 0, -1)
    with pytest.raises(ZeroDivisionError):
        failed.result(20)
    with pytest.raises(ZeroDivisionError):
        pickle.loads(pickle.dumps(failed)).result()


def test_done_is_an_attribute_and_a_method() -> None:
    task = ComputeTask(function=work)
    assert not task.done
    assert task.done() is False
    task.state = "CANCELED"
    assert (bool(task.done), task.done(), repr(task.done), task.cancelled()) == (
        True,
        True,
        "True",
        True,
    )
