"""Blocking use of a session: `with Session(...)` and `session.run(tasks)`."""

import asyncio
import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue

import pytest

from rhapsody import AITask, ComputeTask, Session
from rhapsody.api import SessionError, TaskCancelledError, TaskValidationError
from rhapsody.backends import ConcurrentExecutionBackend, NoopExecutionBackend
from rhapsody.backends.core import nested_runs
from tests.support.held import HeldBackend
from tests.support.sessions import boom


@pytest.fixture
def session() -> Iterator[Session]:
    with Session([ConcurrentExecutionBackend(), NoopExecutionBackend("ai")]) as session:
        yield session


def test_run_returns_tasks_in_order_with_results(session: Session) -> None:
    tasks = [ComputeTask(function=pow, args=(i, 2)) for i in range(10)]
    assert session.run(tasks) == tasks
    assert [task.return_value for task in tasks] == [i * i for i in range(10)]


def test_run_accepts_prompts_executables_and_functions(session: Session) -> None:
    tasks = [AITask("hi", backend="ai"), ComputeTask("echo", arguments=["a"]), {"function": dict}]
    session.run(tasks)
    assert [task["state"] for task in tasks] == ["DONE"] * 3


def test_run_raises_first_failure_after_all_tasks_have_ended(session: Session) -> None:
    tasks = [ComputeTask(function=boom), ComputeTask("false"), ComputeTask(function=os.getpid)]
    with pytest.raises(ValueError, match="intended"):
        session.run(tasks)
    assert [task.state for task in tasks] == ["FAILED", "FAILED", "DONE"]


def test_run_returns_failed_tasks_on_request(session: Session) -> None:
    (task,) = session.run([ComputeTask(function=boom)], return_exceptions=True)
    assert (task["state"], str(task["exception"])) == ("FAILED", "intended")


def test_run_refuses_other_objects_than_tasks(session: Session) -> None:
    with pytest.raises(TaskValidationError, match="must be a ComputeTask, an AITask or a dict"):
        session.run([3])  # type: ignore[list-item]


def test_run_refuses_unknown_backend(session: Session) -> None:
    with pytest.raises(TaskValidationError, match="no backend 'gpu'"):
        session.run([ComputeTask(function=boom, backend="gpu")])


def test_run_can_be_repeated(session: Session) -> None:
    for _ in range(3):
        (task,) = session.run([ComputeTask(function=os.getpid)])
        assert task["return_value"] == os.getpid()


async def test_run_works_on_thread_with_running_loop(session: Session) -> None:
    (task,) = session.run([ComputeTask(function=pow, args=(3, 2))])
    assert task["return_value"] == 9


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_run_inside_tasks_of_a_full_pool_does_not_deadlock(kind: str) -> None:
    with Session([ConcurrentExecutionBackend(max_workers=2)]) as session:

        def depth_below(levels: int) -> int:
            if not levels:
                return 0
            (task,) = session.run([ComputeTask(function=nested, args=[levels - 1])])
            return int(task["return_value"]) + 1

        async def depth_below_async(levels: int) -> int:
            return depth_below(levels)

        nested = depth_below if kind == "sync" else depth_below_async
        tasks = session.run([ComputeTask(function=nested, args=[50]) for _ in range(4)], timeout=60)
    assert [task["return_value"] for task in tasks] == [50] * 4


def test_result_inside_tasks_of_a_full_pool_does_not_deadlock() -> None:
    with Session([ConcurrentExecutionBackend(max_workers=2)]) as session:

        def depth_below(levels: int) -> int:
            if not levels:
                return 0
            below = [session.submit(depth_below, levels - 1), *session.map(depth_below, [0])]
            return int(below[0].result()) + 1

        tasks = [session.submit(depth_below, 20) for _ in range(4)]
        assert [task.result() for task in tasks] == [20] * 4


def test_result_with_timeout_inside_tasks_of_a_full_pool_runs_the_task() -> None:
    with Session([ConcurrentExecutionBackend(max_workers=2)]) as session:

        def depth_below(levels: int) -> int:
            if not levels:
                return 0
            return int(session.submit(depth_below, levels - 1).result(timeout=120)) + 1

        tasks = [session.submit(depth_below, 3) for _ in range(4)]
        assert [task.result(timeout=60) for task in tasks] == [3] * 4


def test_result_inside_task_keeps_its_timeout_if_another_thread_runs_the_task() -> None:
    began, release = threading.Event(), threading.Event()

    def hold() -> bool:
        began.set()
        return release.wait(60)

    with Session([ConcurrentExecutionBackend(max_workers=2)]) as session:

        def wait_for_inner() -> str:
            inner = session.submit(hold)
            assert began.wait(60)
            try:
                inner.result(timeout=0.01)
            except asyncio.TimeoutError as error:  # `TimeoutError` since Python 3.11
                return type(error).__name__
            finally:
                release.set()
            return "no timeout"

        assert session.submit(wait_for_inner).result(timeout=60) == "TimeoutError"


@pytest.mark.parametrize("how", ["run", "result", "as_completed"])
@pytest.mark.parametrize("pool", ["own", "caller's"])
def test_task_inside_a_task_of_a_full_pool_is_repeated(pool: str, how: str) -> None:
    attempts: list[int] = []

    def fail_once() -> str:
        attempts.append(len(attempts))
        if len(attempts) == 1:
            raise ValueError("the first attempt fails")
        return "done"

    def inner(session: Session) -> str:
        if how == "run":
            return str(session.run(ComputeTask(function=fail_once, retries=1))[0]["return_value"])
        task = session.options(retries=1).submit(fail_once)
        if how == "as_completed":
            [task] = session.as_completed(task)
        return str(task.result())

    with ThreadPoolExecutor(1) as executor:
        own = ConcurrentExecutionBackend(max_workers=1)
        backend = own if pool == "own" else ConcurrentExecutionBackend(executor)
        with Session(backend) as session:
            assert session.submit(inner, session).result(timeout=60) == "done"
    assert attempts == [0, 1]


@pytest.mark.parametrize("how", ["run", "as_completed"])
def test_thread_runs_other_tasks_that_it_waits_for_in_the_pause_before_a_retry(how: str) -> None:
    failing = ComputeTask(function=boom, retries=1, backoff=600)
    with Session([ConcurrentExecutionBackend(max_workers=1)]) as session:

        def end_pause() -> None:
            session.cancel_soon([failing])

        def outer() -> list[str]:
            other = ComputeTask(function=end_pause)
            tasks = [failing, other]
            if how == "run":
                session.run(tasks, return_exceptions=True)
            else:
                for task in tasks:
                    session.submit_soon(task)
                tasks = list(session.as_completed(tasks))
            return [task["state"] for task in tasks]

        states = session.submit(outer).result(timeout=60)
    assert sorted(states) == ["CANCELED", "DONE"]


def test_run_with_timeout_inside_tasks_of_a_full_pool_runs_the_tasks() -> None:
    with Session([ConcurrentExecutionBackend(max_workers=2)]) as session:

        def depth_below(levels: int) -> int:
            if not levels:
                return 0
            inner = ComputeTask(function=depth_below, args=[levels - 1])
            return int(session.run(inner, timeout=120)[0]["return_value"]) + 1

        tasks = [session.submit(depth_below, 3) for _ in range(4)]
        assert [task.result(timeout=60) for task in tasks] == [3] * 4


def test_run_returns_tasks_that_its_thread_ended_after_the_timeout(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(nested_runs, "HEAD_START", 0.0)
    with Session([ConcurrentExecutionBackend(max_workers=1)]) as session:

        def outer() -> list[str]:
            return [task["state"] for task in session.run(ComputeTask(function=nap), timeout=1)]

        def nap() -> None:
            time.sleep(1.2)

        assert session.submit(outer).result(timeout=60) == ["DONE"]


@pytest.mark.parametrize("how", ["run", "result", "as_completed"])
def test_tasks_with_cpus_inside_tasks_of_a_full_pool_do_not_deadlock(how: str) -> None:
    with Session([ConcurrentExecutionBackend(max_workers=2)]) as session:

        def outer() -> int:
            if how != "run":
                below = session.options(resources={"cpus": 2}).submit(pow, 3, 2)
                if how == "as_completed":
                    [below] = session.as_completed(below)
                return int(below.result())
            inner = ComputeTask(function=pow, args=(3, 2), resources={"cpus": 2})
            session.run([inner])
            return int(inner["return_value"])

        tasks = session.run([ComputeTask(function=outer) for _ in range(4)], timeout=30)
    assert [task["return_value"] for task in tasks] == [9] * 4


def test_exclusive_task_inside_a_task_of_the_same_pool_is_refused() -> None:
    with Session([ConcurrentExecutionBackend(max_workers=2)]) as session:

        def outer() -> str:
            inner = ComputeTask(function=pow, args=(3, 2), resources={"exclusive": True})
            session.run([inner], return_exceptions=True)
            return str(inner["exception"])

        (task,) = session.run([ComputeTask(function=outer)])
    assert "the two might wait for each other" in task["return_value"]


def test_run_inside_task_uses_only_threads_of_the_pool() -> None:
    def thread_name() -> str:
        return threading.current_thread().name

    with ThreadPoolExecutor(1, "serial") as executor:
        wide = ConcurrentExecutionBackend(name="wide", max_workers=2)
        serial = ConcurrentExecutionBackend(executor, name="serial")
        with Session([wide, serial]) as session:

            def names() -> set[str]:
                inner = [ComputeTask(function=thread_name, backend="serial") for _ in range(20)]
                return {task["return_value"] for task in session.run(inner)}

            outer = [ComputeTask(function=names, backend="wide") for _ in range(2)]
            found = [task["return_value"] for task in session.run(outer, timeout=60)]
    assert found == [{"serial_0"}, {"serial_0"}]


def test_result_inside_task_runs_no_task_of_another_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nested_runs, "HEAD_START", 0.0)
    handed: SimpleQueue[ComputeTask] = SimpleQueue()
    release = threading.Event()
    backends = [ConcurrentExecutionBackend(name=name, max_workers=1) for name in ("a", "b")]
    with Session(backends) as session:

        def submit_inner() -> None:
            handed.put(session.options(backend="b").submit(threading.current_thread))
            release.wait(60)

        def wait_for_inner() -> str:
            try:
                return str(handed.get().result(timeout=0.1))
            except asyncio.TimeoutError as error:  # `TimeoutError` since Python 3.11
                return type(error).__name__
            finally:
                release.set()

        session.options(backend="b").submit(submit_inner)
        waiting = session.options(backend="a").submit(wait_for_inner)
        assert waiting.result(timeout=60) == "TimeoutError"


def test_run_inside_task_of_full_pool_keeps_its_timeout() -> None:
    release = threading.Event()
    with Session([ConcurrentExecutionBackend(max_workers=1)]) as session:

        def wait_for_inner() -> str:
            try:
                session.run(ComputeTask(function=release.wait), timeout=0.05)
            except asyncio.TimeoutError as error:  # `TimeoutError` since Python 3.11
                return type(error).__name__
            return "no timeout"

        (task,) = session.run(ComputeTask(function=wait_for_inner), timeout=60)
        release.set()
    assert task["return_value"] == "TimeoutError"


async def test_with_statement_works_on_thread_with_running_loop() -> None:
    with Session([NoopExecutionBackend()]) as session:
        session.run([ComputeTask(function=boom)])
    assert session.closed


async def test_submit_tasks_on_own_loop_works_after_run(session: Session) -> None:
    session.run([ComputeTask(function=os.getpid)])
    task = ComputeTask(function=os.getpid)
    await session.submit_tasks([task])
    assert (await task).return_value == os.getpid()


async def test_exit_cancels_tasks_submitted_on_callers_loop() -> None:
    asyncio.get_running_loop().set_debug(True)  # raises on calls from other threads
    with Session([HeldBackend()]) as session:
        task = ComputeTask(function=os.getpid)
        await session.submit_tasks([task])
    assert task.state == "CANCELED"
    with pytest.raises(TaskCancelledError):
        await task


def test_concurrent_runs_in_threads(session: Session) -> None:
    tasks = [ComputeTask(function=pow, args=(i, 2)) for i in range(8)]
    threads = [threading.Thread(target=session.run, args=([task],)) for task in tasks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert [task.return_value for task in tasks] == [i * i for i in range(8)]


def test_timeout_of_run_leaves_tasks_running() -> None:
    held = HeldBackend()
    with Session([held]) as session:
        task = ComputeTask(function=boom)
        with pytest.raises(asyncio.TimeoutError, match="0 of 1 tasks ended"):
            session.run([task], timeout=0.01)
        assert not task.done
        held.release()
        session.run([ComputeTask(function=boom)])


def test_ctrl_c_interrupts_run_and_exit_cancels_tasks() -> None:
    held = HeldBackend()

    def interrupt() -> None:
        assert held.entered.wait(20)
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


def test_error_in_with_body_closes_session() -> None:
    with pytest.raises(ZeroDivisionError), Session([NoopExecutionBackend()]) as session:
        _ = 1 / 0
    with pytest.raises(SessionError, match="is closed"):
        session.run([ComputeTask(function=boom)])


def test_run_works_with_backend_started_on_another_loop() -> None:
    backend = asyncio.run(_started())
    with Session([backend]) as session:
        (task,) = session.run([ComputeTask(function=os.getpid)])
        assert task["state"] == "DONE"


async def _started() -> ConcurrentExecutionBackend:
    return await ConcurrentExecutionBackend()
