"""Tasks for a Dragon backend, one after another, by an owner that is a plain callback."""

import itertools
from collections.abc import Callable
from typing import Any

from rhapsody.testing.owners import Reports
from rhapsody.testing.samples import describe


class Runner:
    """Describes tasks, submits them and waits for their ends."""

    def __init__(self, backend: Any) -> None:
        self.backend = backend
        self.reports = Reports()
        self._numbers = itertools.count(1)
        backend.register_callback(self.reports.callback)

    def function(
        self, function: Callable[..., Any], *args: Any, options: Any = None, **fields: Any
    ) -> dict[str, Any]:
        return self._describe("function", options, function=function, args=args, **fields)

    def executable(
        self, program: str, *arguments: str, options: Any = None, **fields: Any
    ) -> dict[str, Any]:
        return self._describe(
            "executable", options, executable=program, arguments=list(arguments), **fields
        )

    def _describe(self, kind: str, options: Any, **fields: Any) -> dict[str, Any]:
        uid = f"task.{next(self._numbers):06}"
        return describe(uid, kind, task_backend_specific_kwargs=options or {}, **fields)

    async def submit(self, *tasks: dict[str, Any]) -> None:
        await self.backend.submit_tasks(list(tasks))

    async def end(self, task: dict[str, Any]) -> str:
        return str((await self.reports.end(task["uid"])).state)

    async def run(self, *tasks: dict[str, Any]) -> list[str]:
        await self.submit(*tasks)
        return [await self.end(task) for task in tasks]

    def began(self, task: dict[str, Any]) -> bool:
        return "RUNNING" in self.reports.states(task["uid"])
