"""A concurrent backend with the one who uses it."""

from typing import Any

from rhapsody.backends import ConcurrentExecutionBackend
from rhapsody.testing import samples
from rhapsody.testing.owners import Reports

__all__ = ["PATIENCE", "Runner"]

PATIENCE = 20
"""Seconds until a test gives up."""


class Runner:
    """A backend with the one who uses it."""

    def __init__(self, backend: ConcurrentExecutionBackend) -> None:
        self.backend = backend
        self.reports = Reports()
        self._tasks = 0
        backend.register_callback(self.reports.callback)

    def function(self, function: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        self._tasks += 1
        return samples.function(f"task.{self._tasks}", function, *args, **kwargs)

    async def run(self, *tasks: dict[str, Any]) -> list[str]:
        """Run tasks and return their states."""
        await self.backend.submit_tasks(list(tasks))
        return [(await self.reports.end(task["uid"])).state for task in tasks]

    async def call(self, function: Any, *args: Any, **kwargs: Any) -> Any:
        """Run a function and return its value, or raise its exception."""
        task = self.function(function, *args, **kwargs)
        if await self.run(task) == ["DONE"]:
            return task["return_value"]
        raise task["exception"]
