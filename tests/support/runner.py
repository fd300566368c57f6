"""An owner that submits tasks and waits for their ends."""

import itertools
from typing import Any

from rhapsody.testing.owners import Reports


class TaskRunner:
    """Submits tasks to a backend; subclasses add methods that describe tasks.

    Args:
        backend: The backend that runs the tasks.
    """

    def __init__(self, backend: Any) -> None:
        self.backend = backend
        self.reports = Reports()
        self._numbers = itertools.count(1)
        backend.register_callback(self.reports.callback)

    def next_uid(self) -> str:
        return f"task.{next(self._numbers)}"

    async def submit(self, *tasks: dict[str, Any]) -> None:
        await self.backend.submit_tasks(list(tasks))

    async def end(self, task: dict[str, Any]) -> str:
        """Wait for the end of a task and return its final state."""
        return str((await self.reports.end(task["uid"])).state)

    async def run(self, *tasks: dict[str, Any]) -> list[str]:
        """Submit tasks and return their final states."""
        await self.submit(*tasks)
        return [await self.end(task) for task in tasks]

    def began(self, task: dict[str, Any]) -> bool:
        """Return whether a task has been reported RUNNING."""
        return "RUNNING" in self.reports.states(task["uid"])
