"""Clauses on reports, and on the release of finished tasks."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from typing import Any

from rhapsody.backends.protocol import TaskStates
from rhapsody.testing import samples
from rhapsody.testing.conformance.base import Clauses, every_kind
from rhapsody.testing.gate import PATIENCE_SECONDS
from rhapsody.testing.owners import FakeEngine

__all__ = ["ReportClauses"]


class ReportClauses(Clauses):
    """Tests of the clauses on reports."""

    @every_kind
    async def test_reports_arrive_in_owner_thread(
        self, kind: str, backend: Any, engine: FakeEngine
    ) -> None:
        """C15: the callback is called in the thread of the engine's loop."""
        self.need(backend, kind)
        await engine.run(backend, samples.quick(kind, "task.000001"))
        assert {report.thread for report in engine.reports.log} == {threading.get_ident()}

    async def test_report_has_submitted_task(self, backend: Any, engine: FakeEngine) -> None:
        """C11, C16: the callback gets the dict that was submitted, or an object with `as_dict`."""
        task = self.one_task(backend)
        (report,) = await engine.run(backend, task)
        assert report.task is task or report.task.as_dict()["uid"] == task["uid"]

    @every_kind
    async def test_states_are_plain_strings(
        self, kind: str, backend: Any, engine: FakeEngine
    ) -> None:
        """C17: a state is a plain `str`, not an `Enum`."""
        self.need(backend, kind)
        await engine.run(backend, samples.quick(kind, "task.000001"))
        assert {type(report.state) for report in engine.reports.log} == {str}

    @every_kind
    async def test_running_is_reported_at_most_once_and_first(
        self, kind: str, backend: Any, engine: FakeEngine
    ) -> None:
        """C18: RUNNING is optional, and never follows a terminal state."""
        self.need(backend, kind)
        uids = [f"task.{n:06}" for n in range(20)]
        await engine.run(backend, *(samples.quick(kind, uid) for uid in uids))
        await engine.shutdown(backend)
        allowed = ([TaskStates.DONE], [TaskStates.RUNNING, TaskStates.DONE])
        assert all(engine.reports.states(uid) in allowed for uid in uids)

    @every_kind
    async def test_every_task_has_one_terminal_report(
        self, kind: str, backend: Any, engine: FakeEngine
    ) -> None:
        """C22: each task gets exactly one terminal report."""
        self.need(backend, kind)
        uids = [f"task.{n:06}" for n in range(50)]
        await engine.run(backend, *(samples.quick(kind, uid) for uid in uids))
        assert [await backend.cancel_task(uid) for uid in uids] == [False] * 50
        await engine.shutdown(backend)
        assert [len(engine.reports.terminal(uid)) for uid in uids] == [1] * 50

    async def test_only_submitted_tasks_are_reported(
        self, backend: Any, engine: FakeEngine
    ) -> None:
        """C23: an unknown uid is never reported."""
        await engine.run(backend, self.one_task(backend))
        await backend.cancel_task("task.999999")
        await engine.shutdown(backend)
        assert {report.uid for report in engine.reports.log} == {"task.000001"}

    async def test_service_callback_is_callable_or_omitted(
        self, backend: Any, engine: FakeEngine
    ) -> None:
        """C25: the third argument is optional: a function of future, task and state."""
        task = {**self.one_task(backend), "is_service": True}
        await engine.run(backend, task)
        for report in engine.reports.log:
            assert report.service_callback is None or callable(report.service_callback)

    @every_kind
    async def test_finished_tasks_are_released(self, kind: str, backend: Any) -> None:
        """C34: the backend holds no reference to a finished task."""
        self.need(backend, kind)

        class Described(dict[str, Any]):
            """A dict that takes weak references."""

        ended: dict[str, asyncio.Event] = {uid: asyncio.Event() for uid in ("task.1", "task.2")}

        def on_state(task: Any, state: Any) -> None:
            if state in TaskStates.terminal_states:
                ended[task["uid"]].set()

        backend.register_callback(on_state)
        first = Described(samples.quick(kind, "task.1"))
        kept = weakref.ref(first)
        await backend.submit_tasks([first])
        await asyncio.wait_for(ended["task.1"].wait(), PATIENCE_SECONDS)
        del first
        # A worker releases its last task when it takes the next one.
        await backend.submit_tasks([Described(samples.quick(kind, "task.2"))])
        await asyncio.wait_for(ended["task.2"].wait(), PATIENCE_SECONDS)
        gc.collect()
        assert kept() is None
