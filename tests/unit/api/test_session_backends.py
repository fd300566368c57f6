"""Backends of a session: third-party, shared and faulty ones."""

import threading
from typing import Any

import pytest

from rhapsody import ComputeTask, Session
from rhapsody.api import BackendInUseError, SessionError
from rhapsody.backends import BaseBackend, ConcurrentExecutionBackend, NoopExecutionBackend
from tests.support.sessions import Recording, boom, good, work


class Minimal(BaseBackend):
    """The smallest backend: one coroutine."""

    async def execute(self, work: Any) -> dict[str, Any]:
        self.report_running(work)
        return {"return_value": work.task["function"]()}


class Raising(NoopExecutionBackend):
    """Raises from `submit_tasks`, which the protocol forbids."""

    async def submit_tasks(self, tasks: Any) -> None:
        raise OSError("the queue is gone")


class Bare:
    """A backend without a base class that reports within `submit_tasks`."""

    name = "bare"
    supports_implicit_data_linking = supports_explicit_data_linking = False

    def __init__(self) -> None:
        self.attached_to: list[str] = []
        self.callback: Any = None

    def register_callback(self, func: Any) -> None:
        self.callback = func

    async def submit_tasks(self, tasks: Any) -> None:
        for task in tasks:
            task["return_value"] = 42
            self.callback(task, "DONE")

    async def cancel_task(self, uid: str) -> bool:
        return False

    async def shutdown(self) -> None:
        pass


async def test_backend_starts_at_first_submission() -> None:
    async with Session([ConcurrentExecutionBackend()]) as session:
        task = ComputeTask(function=work)
        await session.submit_tasks([task])
        assert (await task).return_value == 3


async def test_add_backend_to_open_session() -> None:
    async with Session() as session:
        session.add_backend(Recording("late"))
        task = ComputeTask(function=work)
        await session.submit_tasks([task])
        assert (await task).backend == "late"


async def test_duplicate_backend_name_is_refused_and_detaches_backends() -> None:
    first, second = NoopExecutionBackend("same"), NoopExecutionBackend("same")
    with pytest.raises(SessionError, match="already has a backend named 'same'"):
        Session([first, second])
    await Session([first]).close()


async def test_backend_can_be_reused_by_next_session() -> None:
    backend = NoopExecutionBackend()
    for _ in range(2):
        async with Session([backend]) as session:
            task = good()
            await session.submit_tasks([task])
            assert (await task).state == "DONE"


async def test_backend_of_open_session_is_refused() -> None:
    backend = Recording("shared")
    async with Session([backend], uid="one") as session:
        with pytest.raises(BackendInUseError, match=r"'shared': it is attached to Session one"):
            Session([backend])
        task = good()
        await session.submit_tasks([task])
        assert (await task).state == "DONE"


async def test_backend_with_only_execute_runs_tasks() -> None:
    async with Session([Minimal()]) as session:
        tasks = [ComputeTask(function=work), ComputeTask(function=boom)]
        await session.submit_tasks(tasks)
        await session.wait_tasks(tasks)
        assert (tasks[0].backend, tasks[0].return_value) == ("Minimal", 3)
        assert str(tasks[1].exception) == "intended"


async def test_backend_without_base_class_runs_tasks() -> None:
    async with Session(Bare()) as session:
        task = ComputeTask(function=work)
        await session.submit_tasks([task])
        assert (await task).return_value == 42


async def test_report_from_thread_wakes_waiter() -> None:
    class Threaded(Bare):
        async def submit_tasks(self, tasks: Any) -> None:
            for task in tasks:
                threading.Timer(0.01, self.callback, (task, "DONE")).start()

    async with Session([Threaded()]) as session:
        task = ComputeTask(function=work)
        await session.submit_tasks([task])
        assert (await task).state == "DONE"


async def test_raising_backend_fails_only_its_own_tasks(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with Session([Raising("broken"), NoopExecutionBackend()]) as session:
        lost = ComputeTask(function=work, backend="broken")
        kept = ComputeTask(function=work, backend="noop")
        await session.submit_tasks([lost, kept])
        with pytest.raises(OSError, match="the queue is gone"):
            await lost
        assert (await kept).state == "DONE"
    assert "backend 'broken' raised from submit_tasks" in caplog.text


async def test_failed_backend_shutdown_still_closes_session(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Stuck(Bare):
        async def submit_tasks(self, tasks: Any) -> None:
            """Never report anything."""

        async def shutdown(self) -> None:
            raise OSError("no")

    session = Session([Stuck()])
    task = ComputeTask(function=work)
    await session.submit_tasks([task])
    await session.close()
    assert task.state == "CANCELED"
    assert "did not shut down cleanly" in caplog.text


async def test_backend_that_another_owner_took_is_refused() -> None:
    backend = NoopExecutionBackend()
    async with Session([backend], uid="first") as first:
        await backend.shutdown()
        async with Session([backend], uid="second"):
            task = good()
            with pytest.raises(BackendInUseError, match="Session second, which is still open"):
                await first.submit_tasks(task)
        [future] = await first.submit_tasks(task)  # the second session is closed
        await future
        assert backend.attached_to == ["first", "second", "first"]
        assert first.get_statistics()["tasks"] == {"DONE": 1}
