"""Clauses on cancellation."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from rhapsody.backends.protocol import FUNCTION, PROMPT, TaskStates, accepted_kinds
from rhapsody.testing import samples
from rhapsody.testing.conformance.base import Clauses, every_kind, held_kinds
from rhapsody.testing.gate import Gate
from rhapsody.testing.owners import FakeEngine

__all__ = ["CancellationClauses"]


class CancellationClauses(Clauses):
    """Tests of the clauses on cancellation."""

    @every_kind
    async def test_task_cancelled_after_submission_ends(
        self, kind: str, backend: Any, engine: FakeEngine, gate: Gate
    ) -> None:
        """C26: a cancelled task gets a terminal report, whether it has started or not."""
        self.need(backend, kind)
        uids = [f"task.{n:06}" for n in range(20)]
        await backend.submit_tasks(
            [
                samples.quick(kind, uid) if kind == PROMPT else samples.held(kind, uid, gate)
                for uid in uids
            ]
        )
        cancelled = [await backend.cancel_task(uid) for uid in uids]
        ends = [(await engine.reports.end(uid)).state for uid in uids]
        assert [end == TaskStates.CANCELED for end in ends] == cancelled
        if self.runs_tasks and kind != PROMPT:
            assert all(cancelled)

    async def test_cancel_of_unknown_or_finished_task_returns_false(
        self, backend: Any, engine: FakeEngine
    ) -> None:
        """C27: it does not raise, and there is no second terminal report."""
        assert await backend.cancel_task("task.999999") is False
        await engine.run(backend, self.one_task(backend))
        assert await backend.cancel_task("task.000001") is False
        assert len(engine.reports.terminal("task.000001")) == 1

    async def test_concurrent_cancels_report_once(
        self, backend: Any, engine: FakeEngine, gate: Gate
    ) -> None:
        """C22, C27: a second cancellation during the first has no effect."""
        kind = min(accepted_kinds(backend) - {PROMPT}, default=PROMPT)
        self.need(backend, kind, real=True)
        if kind == PROMPT:
            pytest.skip("a prompt cannot be held")
        await backend.submit_tasks([samples.held(kind, "task.000001", gate)])
        await gate.started("task.000001")
        await asyncio.gather(*(backend.cancel_task("task.000001") for _ in range(2)))
        await engine.shutdown(backend)
        assert [r.state for r in engine.reports.terminal("task.000001")] == [TaskStates.CANCELED]

    @held_kinds
    async def test_cancelled_task_stops(
        self, kind: str, backend: Any, engine: FakeEngine, gate: Gate
    ) -> None:
        """C28: the work ends, including child processes and their children."""
        self.need(backend, kind, real=True)
        if kind == FUNCTION and not self.stops_functions:
            pytest.skip("the backend does not stop sync functions")
        await backend.submit_tasks([samples.held(kind, "task.000001", gate)])
        await gate.started("task.000001")
        assert await backend.cancel_task("task.000001") is True
        assert (await engine.reports.end("task.000001")).state == TaskStates.CANCELED
        await gate.ended("task.000001")

    async def test_result_of_cancelled_function_is_dropped(
        self, backend: Any, engine: FakeEngine, gate: Gate
    ) -> None:
        """C28: a function that cannot be stopped is CANCELED at once and not reported again."""
        self.need(backend, FUNCTION, real=True)
        if self.stops_functions:
            pytest.skip("the backend stops sync functions")
        task = samples.held(FUNCTION, "task.000001", gate)
        await backend.submit_tasks([task])
        await gate.started("task.000001")
        assert await backend.cancel_task("task.000001") is True
        assert (await engine.reports.end("task.000001")).state == TaskStates.CANCELED
        gate.release("task.000001")
        await gate.ended("task.000001")
        await engine.run(backend, self.one_task(backend, "task.000002"))
        assert engine.reports.states("task.000001")[-1] == TaskStates.CANCELED
        assert task.get("return_value") is None

    @held_kinds
    async def test_backend_is_usable_after_cancellation(
        self, kind: str, backend: Any, engine: FakeEngine, gate: Gate
    ) -> None:
        """C28: cancellation does not affect later tasks."""
        self.need(backend, kind, real=True)
        await backend.submit_tasks([samples.held(kind, "task.000001", gate)])
        await gate.started("task.000001")
        await backend.cancel_task("task.000001")
        (report,) = await engine.run(backend, self.one_task(backend, "task.000002"))
        assert report.state == TaskStates.DONE
        gate.release("task.000001")
