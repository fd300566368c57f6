"""Backends that differ in kind and name, and tasks for them."""

from typing import Any

from rhapsody import ComputeTask
from rhapsody.backends import NoopExecutionBackend


class Inference(NoopExecutionBackend):
    """Runs only prompts, for one model."""

    task_kinds = frozenset({"prompt"})

    def __init__(self, name: str, model_name: str) -> None:
        super().__init__(name)
        self.model_name = model_name


class Compute(NoopExecutionBackend):
    """Runs only compute tasks."""

    task_kinds = frozenset({"function", "executable"})


class Recording(NoopExecutionBackend):
    """Records the uids of submitted tasks."""

    def __init__(self, name: str = "recording") -> None:
        super().__init__(name)
        self.submitted: list[str] = []

    async def submit_tasks(self, tasks: Any) -> None:
        self.submitted += [task["uid"] for task in tasks]
        await super().submit_tasks(tasks)


def work() -> int:
    return 3


def boom() -> None:
    raise ValueError("intended")


def good() -> ComputeTask:
    return ComputeTask(function=work, uid="good")
