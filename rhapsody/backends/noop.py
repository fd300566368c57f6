"""A backend that runs nothing: every task is DONE at once, with stand-in results."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rhapsody.backends.base import BaseBackend
from rhapsody.backends.protocol import ALL_KINDS, EXECUTABLE, FUNCTION, TaskStates, task_kind
from rhapsody.backends.work import Work

__all__ = ["NoopExecutionBackend"]


class NoopExecutionBackend(BaseBackend):
    """Ends every task at once: to try out a workflow's shape, and to measure overheads against.

    Functions return None, executables write nothing, a prompt is answered by an empty response of
    the right shape (a str, or a list for a list).

    Args:
        name: Name of the backend.
    """

    task_kinds = ALL_KINDS

    def __init__(self, name: str = "noop") -> None:
        super().__init__(name)

    def hand_over(self, works: list[Work]) -> None:
        """End the tasks at once, where they are."""
        for work in works:
            self.finish(work, TaskStates.DONE, _stand_in(work.task))


def _stand_in(task: Mapping[str, Any]) -> dict[str, Any]:
    kind = task_kind(task)
    if kind == FUNCTION:
        return {"return_value": None}
    if kind == EXECUTABLE:
        return {"stdout": "", "stderr": "", "exit_code": 0, "return_value": ""}
    prompt = task["prompt"]
    is_chat = isinstance(prompt, list) and isinstance(prompt[0], Mapping)
    response: Any = [""] * len(prompt) if isinstance(prompt, list) and not is_chat else ""
    return {"response": response, "stdout": response, "return_value": response}
