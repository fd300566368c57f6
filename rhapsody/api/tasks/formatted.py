"""Prompts and commands that contain the text of a task instead of its result."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from rhapsody.errors import TaskValidationError

__all__ = ["refuse_formatted_tasks"]

MARKS = ("Task(", "<Component ")
"""The beginnings of the texts of tasks and of components."""
TEXTS = re.compile(
    r"(?:ComputeTask|AITask)\((?P<task>[^\s,()]+), [^\n]{0,1000}?"
    r", state=(?P<state>PENDING\)|RUNNING\)|DONE|FAILED|CANCELED)"
    r"|<Component (?P<component>\S+) [^\n]{0,200}? (?P<stage>pending|finished|cancelled)\b"
)
"""The texts of both, up to their state. That of a task which has ended also has its result."""
UNFINISHED = ("PENDING)", "RUNNING)", "pending")
OR_PASS_IT = ", or pass it to the function as an argument"


def refuse_formatted_tasks(uid: str | None, texts: Any, is_own: Callable[[str], bool]) -> None:
    """Refuse a prompt with the text of a task that had not ended, such as `f"About {task}"`.

    The text of a task that has ended may be meant: a prompt may ask why the task failed.

    Args:
        uid: The uid of the task with the prompt.
        texts: The prompt: a text, a list of texts, or messages; or a command.
        is_own: Returns whether a task of this program has a uid. A prompt may quote the log of
            another program.

    Raises:
        TaskValidationError: It contains such a text.
    """
    for text in _texts_of(texts):
        if not any(mark in text for mark in MARKS):
            continue
        for found in TEXTS.finditer(text):
            name = found["task"] or found["component"]
            if (found["state"] or found["stage"]) in UNFINISHED and is_own(name):
                raise TaskValidationError(
                    uid,
                    f"it contains the text '{found[0]}' of a task that had not ended; await that "
                    "task and use its result" + (OR_PASS_IT if found["component"] else ""),
                )


def _texts_of(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from _texts_of(value.get("content"))
        yield from _texts_of(value.get("text"))
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _texts_of(item)
