"""A backend that runs nothing: every task is DONE at once, with a placeholder result."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rhapsody.backends.base import BaseBackend
from rhapsody.backends.core.work import Work
from rhapsody.backends.protocol import ALL_KINDS, EXECUTABLE, FUNCTION, task_kind
from rhapsody.resources import Resources
from rhapsody.suggest import suggest_parameters

__all__ = ["NoopExecutionBackend"]


class NoopExecutionBackend(BaseBackend):
    """Reports every task DONE at once, to try out a workflow or to measure overhead.

    Functions return None and executables write nothing. The response to a prompt is an empty str,
    or a list of empty strs for a list of prompts.

    Args:
        name: Name of the backend.
    """

    task_kinds = ALL_KINDS
    resource_names = frozenset(Resources.model_fields)

    @suggest_parameters
    def __init__(self, name: str = "noop") -> None:
        super().__init__(name)

    def hand_over(self, works: list[Work]) -> None:
        """Report the tasks DONE, on the owner's loop."""
        for work in works:
            self.report_done(work, _placeholder_result(work.task))


def _placeholder_result(task: Mapping[str, Any]) -> dict[str, Any]:
    kind = task_kind(task)
    if kind == FUNCTION:
        return {"return_value": None}
    if kind == EXECUTABLE:
        return {"stdout": "", "stderr": "", "exit_code": 0, "return_value": ""}
    prompt = task["prompt"]
    is_chat = isinstance(prompt, list) and isinstance(prompt[0], Mapping)
    response: Any = [""] * len(prompt) if isinstance(prompt, list) and not is_chat else ""
    return {"response": response, "stdout": response, "return_value": response}
