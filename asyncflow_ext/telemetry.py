"""Telemetry: the events of tasks, emitted to AsyncFlow's telemetry manager."""

from __future__ import annotations

import time
from typing import Any

from radical.asyncflow import WorkflowEngine as StockEngine

from asyncflow_ext.component import TASK, Component

__all__ = ["TaskEvents"]


class TaskEvents:
    """Emits the events of an engine's tasks; call its methods only while telemetry is on.

    Args:
        engine: The engine.
    """

    def __init__(self, engine: StockEngine) -> None:
        self._engine = engine
        self._submitted: dict[str, float] = {}
        self._started: dict[str, float] = {}

    def created(self, component: Component) -> None:
        """Emit that a task or a block was created."""
        uids = [d["uid"] for d in component.description["metadata"]["dependencies"]]
        self._emit("TaskCreated", component, attributes={"depends_on": uids})

    def resolved(self, component: Component) -> None:
        """Emit that all dependencies of a task are done."""
        if component.type == TASK:
            self._emit("asyncflow.TaskResolved", component)

    def queued(self, component: Component) -> None:
        """Emit that a task is in the queue of its backend."""
        self._emit("TaskQueued", component, backend=component.options.backend)

    def submitted(self, component: Component) -> None:
        """Emit that a task is being submitted to its backend."""
        now = self._submitted[component.uid] = time.time()
        self._emit("TaskSubmitted", component, backend=component.options.backend, event_time=now)

    def started_here(self, component: Component) -> None:
        """Emit that a task is queued, submitted and started: it runs on the caller's loop."""
        self.queued(component)
        self.submitted(component)
        self.started(component)

    def started(self, component: Component) -> None:
        """Emit that a task runs."""
        now = self._started[component.uid] = time.time()
        self._emit("TaskStarted", component, event_time=now)

    def ended(self, event: str, component: Component, **fields: Any) -> None:
        """Emit the end of a task.

        Args:
            event: The name of the event.
            component: The task; blocks have no such event.
            **fields: Further fields of the event.
        """
        if component.type != TASK:
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
