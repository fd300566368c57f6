"""Clauses on submission."""

from __future__ import annotations

import asyncio
import copy
from pathlib import Path
from typing import Any

import pytest

from rhapsody.backends.protocol import ALL_KINDS, EXECUTABLE, FUNCTION, TaskStates, accepted_kinds
from rhapsody.testing import samples
from rhapsody.testing.conformance.base import Clauses, every_kind, held_kinds
from rhapsody.testing.gate import Gate
from rhapsody.testing.owners import FakeEngine, Reports

__all__ = ["SubmissionClauses"]


class SubmissionClauses(Clauses):
    """Tests of the clauses on submission."""

    @held_kinds
    async def test_submit_returns_while_tasks_run(
        self, kind: str, backend: Any, engine: FakeEngine, gate: Gate
    ) -> None:
        """C9: `submit_tasks` returns at once, while its tasks run."""
        self.need(backend, kind, real=True)
        await backend.submit_tasks([samples.held(kind, "task.000001", gate)])
        await gate.started("task.000001")
        assert engine.reports.terminal("task.000001") == []
        gate.release("task.000001")
        assert (await engine.reports.end("task.000001")).state == TaskStates.DONE

    async def test_tasks_can_be_submitted_in_many_passes(
        self, backend: Any, engine: FakeEngine
    ) -> None:
        """C10: successive calls do not wait for the tasks of earlier calls."""
        tasks = [self.one_task(backend, f"task.{n:06}") for n in range(20)]
        for first in range(0, 20, 4):
            await backend.submit_tasks(tasks[first : first + 4])
        for task in tasks:
            assert (await engine.reports.end(task["uid"])).state == TaskStates.DONE

    @every_kind
    async def test_description_is_not_changed(
        self, kind: str, backend: Any, engine: FakeEngine
    ) -> None:
        """C11: the backend may add keys, but must not change or remove the engine's keys."""
        self.need(backend, kind)
        task = samples.quick(kind, "task.000001")
        described = copy.deepcopy(task)
        await engine.run(backend, task)
        assert {key: task[key] for key in described} == described

    async def test_kind_is_first_key_with_value(self, backend: Any, engine: FakeEngine) -> None:
        """C11: other keys may be present with the value None."""
        self.need(backend, EXECUTABLE, real=True)
        task = samples.describe(
            "task.000001", EXECUTABLE, executable="/bin/echo", arguments=["1"], prompt=None
        )
        (report,) = await engine.run(backend, task)
        assert (report.state, task["stdout"]) == (TaskStates.DONE, "1\n")

    @every_kind
    async def test_unsupported_kind_fails_with_reason(
        self, kind: str, backend: Any, engine: FakeEngine
    ) -> None:
        """C12: a task of a kind that the backend cannot run is FAILED with a reason."""
        if accepted_kinds(backend) >= ALL_KINDS or kind in accepted_kinds(backend):
            pytest.skip(f"the backend takes {kind} tasks")
        task = samples.quick(kind, "task.000001")
        (report,) = await engine.run(backend, task)
        assert report.state == TaskStates.FAILED
        assert isinstance(task["exception"], Exception)
        assert str(task["exception"])

    async def test_arguments_are_passed_unchanged(self, backend: Any, engine: FakeEngine) -> None:
        """C12: `args` and `kwargs` hold values."""
        self.need(backend, FUNCTION, real=True)
        task = samples.function("task.000001", samples.add, 2, right=40)
        await engine.run(backend, task)
        assert task["return_value"] == 42

    async def test_submit_never_raises(self, backend: Any, engine: FakeEngine) -> None:
        """C13: a task that cannot run is FAILED on its own; the other tasks run."""
        good = self.one_task(backend, "task.000001")
        nothing_to_run = samples.describe("task.000002", FUNCTION)
        bad_options = self.one_task(backend, "task.000003")
        bad_options["task_backend_specific_kwargs"] = "not a mapping"
        await backend.submit_tasks([])
        reports = await engine.run(backend, nothing_to_run, good, bad_options)
        states = [report.state for report in reports]
        assert states == [TaskStates.FAILED, TaskStates.DONE, TaskStates.FAILED]

    async def test_callback_can_submit_next_task(self, backend: Any, tmp_path: Path) -> None:
        """C14: the callback may be called at any time, even within `submit_tasks`."""
        reports = Reports()
        following: list[asyncio.Task[None]] = []

        def on_state(task: Any, state: Any) -> None:
            reports.callback(task, state)
            if state == TaskStates.DONE and not following:
                again = backend.submit_tasks([self.one_task(backend, "task.000002")])
                following.append(asyncio.get_running_loop().create_task(again))

        backend.register_callback(on_state)
        await backend.submit_tasks([self.one_task(backend, "task.000001")])
        assert (await reports.end("task.000002")).state == TaskStates.DONE
        await asyncio.gather(*following)
