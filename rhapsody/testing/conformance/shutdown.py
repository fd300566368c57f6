"""Clauses on shutdown and on later owners."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from rhapsody.backends.protocol import FUNCTION, TaskStates
from rhapsody.testing import samples
from rhapsody.testing.conformance.base import Clauses, every_kind, held_kinds
from rhapsody.testing.gate import PATIENCE_SECONDS, Gate
from rhapsody.testing.owners import FakeEngine

__all__ = ["ShutdownClauses"]


class ShutdownClauses(Clauses):
    """Tests of the clauses on shutdown."""

    async def test_shutdown_is_idempotent(self, make_backend: Callable[[], Any]) -> None:
        """C30: `shutdown` never raises: before any use, again, or concurrently."""
        backend = make_backend()
        await backend.shutdown()
        await asyncio.gather(backend.shutdown(), backend.shutdown())

    @held_kinds
    async def test_shutdown_ends_running_tasks(
        self, kind: str, backend: Any, engine: FakeEngine, gate: Gate
    ) -> None:
        """C30: running tasks are stopped and reported, without blocking the loop."""
        self.need(backend, kind, real=True)
        await backend.submit_tasks([samples.held(kind, "task.000001", gate)])
        await gate.started("task.000001")
        # A function that cannot be stopped is released only after `shutdown` has returned.
        await asyncio.wait_for(engine.shutdown(backend), PATIENCE_SECONDS)
        assert engine.reports.states("task.000001")[-1] == TaskStates.CANCELED
        if kind == FUNCTION and not self.stops_functions:
            gate.release("task.000001")
        await gate.ended("task.000001")

    @every_kind
    async def test_shutdown_reports_every_task(
        self, kind: str, backend: Any, engine: FakeEngine
    ) -> None:
        """C22, C30: when `shutdown` returns, every task has been reported, even queued ones."""
        self.need(backend, kind)
        uids = [f"task.{n:06}" for n in range(100)]
        await backend.submit_tasks([samples.quick(kind, uid) for uid in uids])
        await engine.shutdown(backend)
        assert [len(engine.reports.terminal(uid)) for uid in uids] == [1] * 100

    async def test_later_owner_can_use_backend(
        self, backend: Any, make_engine: Callable[..., FakeEngine]
    ) -> None:
        """C31: after a shutdown another engine attaches; its uids start from 1 again."""
        for uid in ("first", "second"):
            engine = make_engine(uid)
            (report,) = await engine.run(backend, self.one_task(backend))
            assert report.state == TaskStates.DONE
            await engine.shutdown(backend)

    @held_kinds
    async def test_task_of_earlier_owner_is_not_reported_to_later_owner(
        self, kind: str, backend: Any, make_engine: Callable[..., FakeEngine], gate: Gate
    ) -> None:
        """C31: a task left by `skip_execution_backend=True` is not reported to a later engine."""
        self.need(backend, kind, real=True)
        first = make_engine("first")
        await backend.submit_tasks([samples.held(kind, "task.000001", gate)])
        await gate.started("task.000001")
        first.close()
        second = make_engine("second")
        (report,) = await second.run(backend, self.one_task(backend, "task.000001"))
        assert report.state == TaskStates.DONE
        gate.release("task.000001")
        await gate.ended("task.000001")
        await second.shutdown(backend)
        assert [r.state for r in second.reports.terminal("task.000001")] == [TaskStates.DONE]
