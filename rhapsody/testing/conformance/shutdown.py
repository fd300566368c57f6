"""Shutting down, and the owners after that."""

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
    """The clauses on shutdown."""

    async def test_shutdown_may_come_at_any_time_and_again(
        self, make_backend: Callable[[], Any]
    ) -> None:
        """C30: idempotent, before any use as well, and two at once; never raises."""
        backend = make_backend()
        await backend.shutdown()
        await asyncio.gather(backend.shutdown(), backend.shutdown())

    @held_kinds
    async def test_shutdown_ends_what_runs(
        self, kind: str, backend: Any, engine: FakeEngine, gate: Gate
    ) -> None:
        """C30: tasks that run are stopped and reported, without freezing the loop."""
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
    async def test_shutdown_leaves_no_task_without_an_end(
        self, kind: str, backend: Any, engine: FakeEngine
    ) -> None:
        """C22, C30: when it returns, every task has been told about, the waiting ones as well."""
        self.need(backend, kind)
        uids = [f"task.{n:06}" for n in range(100)]
        await backend.submit_tasks([samples.quick(kind, uid) for uid in uids])
        await engine.shutdown(backend)
        assert [len(engine.reports.terminal(uid)) for uid in uids] == [1] * 100

    async def test_a_later_owner_can_use_it_again(
        self, backend: Any, make_engine: Callable[..., FakeEngine]
    ) -> None:
        """C31: after one engine's shutdown another attaches, whose uids start from 1 again."""
        for uid in ("first", "second"):
            engine = make_engine(uid)
            (report,) = await engine.run(backend, self.one_task(backend))
            assert report.state == TaskStates.DONE
            await engine.shutdown(backend)

    @held_kinds
    async def test_an_earlier_owners_task_is_not_a_later_ones(
        self, kind: str, backend: Any, make_engine: Callable[..., FakeEngine], gate: Gate
    ) -> None:
        """C31: what an engine left behind with `skip_execution_backend=True` stays its own."""
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
