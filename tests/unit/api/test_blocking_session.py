"""`with Session(...) as session: session.run(tasks)`, for those who never touch asyncio."""

import asyncio
import os
import signal
import threading
from collections.abc import Iterator

import pytest

from rhapsody import AITask, ComputeTask, Session
from rhapsody.api import SessionError, TaskCancelledError, TaskValidationError
from rhapsody.backends import ConcurrentExecutionBackend, NoopExecutionBackend
from tests.support.held import HeldBackend
from tests.support.sessions import boom


@pytest.fixture
def session() -> Iterator[Session]:
    with Session([ConcurrentExecutionBackend(), NoopExecutionBackend("ai")]) as session:
        yield session


def test_run_returns_the_tasks_in_order_with_their_results(session: Session) -> None:
    tasks = [ComputeTask(function=pow, args=(i, 2)) for i in range(10)]
    assert session.run(tasks) == tasks
    assert [task.return_value for task in tasks] == [i * i for i in range(10)]


def test_run_takes_prompts_executables_and_functions_together(session: Session) -> None:
    tasks = [AITask("hi", backend="ai"), ComputeTask("echo", arguments=["a"]), {"function": dict}]
    session.run(tasks)
    assert [task["state"] for task in tasks] == ["DONE"] * 3


def test_run_raises_no_failures(session: Session) -> None:
    (task,) = session.run([ComputeTask(function=boom)])
    assert (task["state"], str(task["exception"])) == ("FAILED", "intended")


def test_run_refuses_as_submitting_does(session: Session) -> None:
    with pytest.raises(TaskValidationError, match="no backend 'gpu'"):
        session.run([ComputeTask(function=boom, backend="gpu")])


def test_run_works_again_and_again(session: Session) -> None:
    for _ in range(3):
        (task,) = session.run([ComputeTask(function=os.getpid)])
        assert task["return_value"] == os.getpid()


async def test_run_works_where_a_loop_runs_in_the_thread(session: Session) -> None:
    (task,) = session.run([ComputeTask(function=pow, args=(3, 2))])
    assert task["return_value"] == 9


async def test_a_blocking_session_can_be_made_and_left_where_a_loop_runs() -> None:
    with Session([NoopExecutionBackend()]) as session:
        session.run([ComputeTask(function=boom)])
    assert session.closed


async def test_after_run_the_session_can_be_awaited_on_the_callers_loop(session: Session) -> None:
    session.run([ComputeTask(function=os.getpid)])
    task = ComputeTask(function=os.getpid)
    await session.submit_tasks([task])
    assert (await task).return_value == os.getpid()


async def test_leaving_the_session_ends_tasks_that_were_submitted_on_the_callers_loop() -> None:
    asyncio.get_running_loop().set_debug(True)  # refuses what other threads must not do
    with Session([HeldBackend()]) as session:
        task = ComputeTask(function=os.getpid)
        await session.submit_tasks([task])
    assert task.state == "CANCELED"
    with pytest.raises(TaskCancelledError):
        await task


def test_run_in_several_threads_at_once(session: Session) -> None:
    tasks = [ComputeTask(function=pow, args=(i, 2)) for i in range(8)]
    threads = [threading.Thread(target=session.run, args=([task],)) for task in tasks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert [task.return_value for task in tasks] == [i * i for i in range(8)]


def test_a_run_that_times_out_leaves_its_tasks_running() -> None:
    held = HeldBackend()
    with Session([held]) as session:
        task = ComputeTask(function=boom)
        with pytest.raises(asyncio.TimeoutError, match="0 of 1 tasks ended"):
            session.run([task], timeout=0.01)
        assert not task.done
        held.release()
        session.run([ComputeTask(function=boom)])


def test_ctrl_c_ends_the_wait_and_leaving_the_session_ends_the_tasks() -> None:
    held = HeldBackend()

    def interrupt() -> None:
        os.kill(os.getpid(), signal.SIGINT)

    tasks = [
        ComputeTask(function=boom, uid="long", backend="held"),
        ComputeTask(function=interrupt, backend="concurrent"),
    ]
    with pytest.raises(KeyboardInterrupt), Session([held, ConcurrentExecutionBackend()]) as session:
        session.run(tasks)
    assert session.closed
    assert held.cancelled == ["long"]
    assert tasks[0].state == "CANCELED"


def test_an_error_in_the_body_closes_the_session() -> None:
    with pytest.raises(ZeroDivisionError), Session([NoopExecutionBackend()]) as session:
        _ = 1 / 0
    with pytest.raises(SessionError, match="is closed"):
        session.run([ComputeTask(function=boom)])


def test_a_backend_that_was_awaited_on_the_users_loop_works_in_a_blocking_session() -> None:
    backend = asyncio.run(_started())
    with Session([backend]) as session:
        (task,) = session.run([ComputeTask(function=os.getpid)])
        assert task["state"] == "DONE"


async def _started() -> ConcurrentExecutionBackend:
    return await ConcurrentExecutionBackend()
