"""Owners for tests: a plain callback, and one that attaches as AsyncFlow's engine does."""

from __future__ import annotations

import asyncio
import threading
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rhapsody.backends.protocol import TaskStates
from rhapsody.testing.gate import PATIENCE_SECONDS

__all__ = ["FakeEngine", "Report", "Reports"]


@dataclass(frozen=True)
class Report:
    """One call of the callback.

    Attributes:
        task: The reported task.
        state: Its state.
        thread: Identifier of the thread of the call.
        service_callback: The optional third argument.
    """

    task: Any
    state: Any
    thread: int
    service_callback: Any = None

    @property
    def uid(self) -> str:
        """The task's uid, read as the engine reads it."""
        task = self.task if isinstance(self.task, dict) else self.task.as_dict()
        return str(task["uid"])


class Reports:
    """Records reports, and lets tests wait for the end of a task.

    Register `reports.callback`, a plain function without an owner.
    """

    def __init__(self) -> None:
        self.log: list[Report] = []
        self._ends: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)

        def callback(task: Any, state: Any, service_callback: Any = None) -> None:
            self._add(Report(task, state, threading.get_ident(), service_callback))

        self.callback = callback

    def _add(self, report: Report) -> None:
        self.log.append(report)
        if report.state in TaskStates.terminal_states:
            self._ends[report.uid].set()

    def states(self, uid: str) -> list[Any]:
        """Return the states reported for a task so far, in order."""
        return [report.state for report in self.log if report.uid == uid]

    def terminal(self, uid: str) -> list[Report]:
        """Return the terminal reports on a task; there should be exactly one."""
        return [r for r in self.log if r.uid == uid and r.state in TaskStates.terminal_states]

    async def end(self, uid: str) -> Report:
        """Wait for the end of a task and return its terminal report."""
        await asyncio.wait_for(self._ends[uid].wait(), PATIENCE_SECONDS)
        return self.terminal(uid)[0]


class FakeEngine:
    """An owner that attaches in the order of AsyncFlow's `WorkflowEngine` and records reports.

    Args:
        work_dir: Parent directory of the engine's own directory.
        uid: Uid of the engine.
    """

    def __init__(self, work_dir: Path, uid: str = "asyncflow.session.fake") -> None:
        self.uid = uid
        self.work_dir = work_dir
        self.reports = Reports()
        self._shutdown_event = asyncio.Event()

    def attach(self, backend: Any) -> None:
        """Attach to a backend in the order in which the engine does."""
        backend._work_dir = str(self.work_dir / self.uid)
        Path(backend._work_dir).mkdir(parents=True, exist_ok=True)
        backend.is_attached = True
        backend.attached_to.append(self.uid)
        assert backend.name
        bool(getattr(backend, "supports_implicit_data_linking", False))
        bool(getattr(backend, "supports_explicit_data_linking", False))
        backend.register_callback(self.task_callbacks)
        backend.get_task_states_map()

    def task_callbacks(self, task: Any, state: Any, service_callback: Any = None) -> None:
        """Record a report."""
        self.reports.callback(task, state, service_callback)

    async def run(self, backend: Any, *tasks: dict[str, Any]) -> list[Report]:
        """Submit tasks in one call and return their terminal reports, in the order of the tasks."""
        await backend.submit_tasks(list(tasks))
        return [await self.reports.end(task["uid"]) for task in tasks]

    def close(self) -> None:
        """Close, as `engine.shutdown(skip_execution_backend=True)` does."""
        self._shutdown_event.set()

    async def shutdown(self, backend: Any) -> None:
        """Close and shut the backend down, as `engine.shutdown()` does."""
        self.close()
        await backend.shutdown()
