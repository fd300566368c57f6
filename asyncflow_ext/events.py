"""The engine's telemetry: what it tells AsyncFlow's manager of each task, if there is one."""

from __future__ import annotations

import time
from typing import Any

from asyncflow_ext.component import Component

__all__ = ["TaskEvents"]


class TaskEvents:
    """Emits a task's events through its engine; to be called only where telemetry is on.

    Args:
        engine: The engine; its `_emit` is the stock engine's.
    """

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self._submitted: dict[str, float] = {}
        self._started: dict[str, float] = {}

    def created(self, component: Component) -> None:
        """A component was made, task or block."""
        uids = [d["uid"] for d in component.description["metadata"]["dependencies"]]
        self._emit("TaskCreated", component, attributes={"depends_on": uids})

    def resolved(self, component: Component) -> None:
        """All that it depends on is done."""
        if component.type == "task":
            self._emit("asyncflow.TaskResolved", component)

    def queued(self, component: Component) -> None:
        """It waits for its backend to take it."""
        self._emit("TaskQueued", component, backend=component.options.backend)

    def submitted(self, component: Component) -> None:
        """Its backend gets it now."""
        now = self._submitted[component.uid] = time.time()
        self._emit("TaskSubmitted", component, backend=component.options.backend, event_time=now)

    def taken(self, component: Component) -> None:
        """It runs on the caller's loop: nothing queues it, and it starts at once."""
        self.queued(component)
        self.submitted(component)
        self.started(component)

    def started(self, component: Component) -> None:
        """Its backend says that it runs."""
        now = self._started[component.uid] = time.time()
        self._emit("TaskStarted", component, event_time=now)

    def ended(self, event: str, component: Component, **fields: Any) -> None:
        """It ended, as the event says."""
        if component.type != "task":
            return
        now = time.time()
        submitted = self._submitted.pop(component.uid, now)
        started = self._started.pop(component.uid, submitted)
        self._emit(event, component, event_time=now, duration_seconds=now - started, **fields)

    def _emit(
        self, event: str, component: Component, attributes: Any = None, **fields: Any
    ) -> None:
        description = component.description
        self._engine._emit(
            event,
            task_id=component.uid,
            workflow_id=description["workflow_id"],
            attributes={
                "executable": description["_tel_executable"],
                "task_type": description["_tel_task_type"],
                **(attributes or {}),
            },
            **fields,
        )
