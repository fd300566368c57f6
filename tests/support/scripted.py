"""A backend with scripted behaviour, for faults that tests cannot cause in a real backend."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from rhapsody.backends import TaskStates


class ScriptedBackend:
    """Implements the protocol, and handles each task as the test decides.

    Args:
        name: Name of the backend.
        on_task: Called with each task; by default it is DONE at once with return value None.
    """

    supports_implicit_data_linking = False
    supports_explicit_data_linking = False
    reports_running = False

    def __init__(
        self, name: str = "scripted", on_task: Callable[[dict[str, Any]], None] | None = None
    ) -> None:
        self.name = name
        self.on_task = on_task or (lambda task: self.done(task))
        self.batches: list[list[dict[str, Any]]] = []
        self.cancelled: list[str] = []
        self.cancel_result: Any = True
        self.hold: asyncio.Event | None = None
        self.submit_error: Exception | None = None
        self.is_attached = False
        self.attached_to: list[str] = []
        self._work_dir = ""
        self._callback_func: Callable[[Any, str], Any] = lambda task, state: None

    def register_callback(self, func: Callable[[Any, str], Any]) -> None:
        self._callback_func = func

    def get_task_states_map(self) -> Any:
        return TaskStates()

    def done(self, task: dict[str, Any], value: Any = None) -> None:
        task["return_value"] = task["stdout"] = value
        self._callback_func(task, "DONE")

    def failed(self, task: dict[str, Any], error: Exception) -> None:
        task["exception"] = error
        self._callback_func(task, "FAILED")

    async def submit_tasks(self, tasks: list[dict[str, Any]]) -> None:
        self.batches.append(list(tasks))
        if self.submit_error is not None:
            raise self.submit_error
        if self.hold is not None:
            await self.hold.wait()
        for task in tasks:
            self.on_task(task)

    async def cancel_task(self, uid: str) -> Any:
        self.cancelled.append(uid)
        return self.cancel_result

    def link_implicit_data_deps(self, src_task: Any, dst_task: Any) -> None:
        return None

    def link_explicit_data_deps(self, **kwargs: Any) -> Any:
        return None

    async def shutdown(self) -> None:
        return None
