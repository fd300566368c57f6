"""Executables that functions in threads of the same backend wait for."""

import threading
from collections.abc import Callable
from typing import Any

import pytest

from rhapsody import ComputeTask, Session
from rhapsody.backends import ConcurrentExecutionBackend
from rhapsody.resources import machine_memory


def executable(resources: dict[str, Any] | None = None) -> ComputeTask:
    return ComputeTask("true", resources=resources)


def wait_for(session: Session, how: str, task: ComputeTask) -> str:
    """Submit a task inside another one, wait for it, and return its state."""
    if how.startswith("run"):
        timeout = 60 if how == "run with timeout" else None
        session.run(task, timeout, return_exceptions=True)
        return str(task["state"])
    session.submit_soon(task)
    if how == "as_completed":
        [task] = session.as_completed(task)
    else:
        task.result(timeout=60)
    return str(task["state"])


@pytest.mark.parametrize("how", ["run", "run with timeout", "result", "as_completed"])
@pytest.mark.parametrize("cpus", [1, 2])
def test_executable_runs_with_cpus_of_the_tasks_that_wait(cpus: int, how: str) -> None:
    with Session(ConcurrentExecutionBackend(max_workers=2)) as session:

        def outer() -> str:
            return wait_for(session, how, executable({"cpus": cpus}))

        tasks = [session.submit(outer) for _ in range(6)]
        assert [task.result(timeout=60) for task in tasks] == ["DONE"] * 6


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_executable_runs_with_all_cpus_of_the_task_that_waits(kind: str) -> None:
    with Session(ConcurrentExecutionBackend(max_workers=2)) as session:

        def outer() -> str:
            return wait_for(session, "run", executable({"cpus": 2}))

        async def outer_async() -> str:
            return outer()

        function: Callable[[], Any] = outer if kind == "sync" else outer_async
        task = session.options(resources={"cpus": 2}).submit(function)
        assert task.result(timeout=60) == "DONE"


def test_executable_runs_with_cpus_of_the_outermost_task_of_the_thread() -> None:
    with Session(ConcurrentExecutionBackend(max_workers=1)) as session:

        def inner() -> str:
            return wait_for(session, "result", executable({"cpus": 1}))

        def outer() -> str:
            return str(session.submit(inner).result())

        assert session.submit(outer).result(timeout=60) == "DONE"


def test_executable_runs_with_memory_of_the_task_that_waits() -> None:
    with Session(ConcurrentExecutionBackend(max_workers=1)) as session:
        most = (machine_memory() or 0) * 6 // 10

        def outer() -> str:
            return wait_for(session, "run", executable({"memory": most}))

        task = session.options(resources={"memory": most}).submit(outer)
        assert task.result(timeout=60) == "DONE"


def test_executable_runs_inside_an_exclusive_task() -> None:
    with Session(ConcurrentExecutionBackend(max_workers=2)) as session:

        def outer() -> str:
            return wait_for(session, "run", executable())

        task = session.options(resources={"exclusive": True}).submit(outer)
        assert task.result(timeout=60) == "DONE"


def test_executable_does_not_take_cpus_of_a_task_that_computes() -> None:
    began, release, waits = threading.Event(), threading.Event(), threading.Event()
    with Session(ConcurrentExecutionBackend(max_workers=2)) as session:

        def compute() -> bool:
            began.set()
            return release.wait(60)

        def outer() -> str:
            large, small = executable({"cpus": 2}), executable({"cpus": 1})
            session.submit_soon(large)
            state = wait_for(session, "result", small)
            assert large["state"] == "PENDING"
            waits.set()
            large.result(timeout=60)
            return state

        computing = session.submit(compute)
        assert began.wait(60)
        task = session.submit(outer)
        assert waits.wait(60)
        release.set()
        assert (task.result(timeout=60), computing.result()) == ("DONE", True)


def test_retried_executable_runs_with_cpus_of_the_task_that_waits() -> None:
    with Session(ConcurrentExecutionBackend(max_workers=1)) as session:

        def outer() -> str:
            resources = {"cpus": 1}
            task = ComputeTask("false", retries=2, backoff=0.001, resources=resources)
            session.run(task, return_exceptions=True)
            return f"{task['state']} {task['execution'].attempts}"

        assert session.submit(outer).result(timeout=60) == "FAILED 3"


def test_cancelled_executable_makes_way_for_the_next_one() -> None:
    with Session(ConcurrentExecutionBackend(max_workers=1)) as session:

        def outer() -> list[str]:
            tasks = [executable({"cpus": 1}) for _ in range(3)]
            for task in tasks:
                session.submit_soon(task)
            session.cancel_soon(tasks[:2])
            return sorted(task["state"] for task in session.as_completed(tasks))

        states = session.submit(outer).result(timeout=60)
        assert states[-1] == "DONE"
        assert session.submit(outer).result(timeout=60)[-1] == "DONE"


def test_exclusive_executable_is_refused() -> None:
    with Session(ConcurrentExecutionBackend(max_workers=2)) as session:

        def outer() -> str:
            task = executable({"exclusive": True})
            session.run(task, return_exceptions=True)
            return str(task["exception"])

        assert "submit it outside of the task" in session.submit(outer).result(timeout=60)


def test_executable_with_a_gpu_is_refused_inside_a_task_with_a_gpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    with Session(ConcurrentExecutionBackend(max_workers=2)) as session:

        def outer() -> str:
            task = executable({"gpus": 1})
            session.run(task, return_exceptions=True)
            return str(task["exception"])

        task = session.options(resources={"gpus": 1}).submit(outer)
        assert "submit it outside of the task" in task.result(timeout=60)
        assert session.submit(outer).result(timeout=60) == "None"
