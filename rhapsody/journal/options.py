"""The options of a task that its result depends on, and so belong to its key."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from rhapsody.resources import Resources

__all__ = ["input_files", "key_options"]

SPECIFIC = ("cwd", "env", "ranks", "shell", "stdin")
"""Options for backends. Others say where and how a task runs, such as `policy` and `pmi`."""

TEMPLATE = ("args", "cwd", "env")
"""Arguments of Dragon's `ProcessTemplate`."""


def key_options(task: Mapping[str, Any], kind: str | None) -> list[Any]:
    """Return the options of a task that belong to its key; empty for most tasks.

    Args:
        task: The task, with `task_backend_specific_kwargs`, `resources` and `capture_stdio`.
        kind: Its kind: "function", "executable" or "prompt".
    """
    specific = task.get("task_backend_specific_kwargs")
    found: list[Any] = []
    if specific:
        found += [(name, specific[name]) for name in SPECIFIC if name in specific]
        found += [("process_template", pair) for pair in _templates(specific)]
    if (given := task.get("resources")) is not None:
        resources = Resources.of(given)
        if resources.env:
            found.append(("resources.env", resources.env))
        if resources.ranks != 1:
            found.append(("resources.ranks", resources.ranks))
    if kind == "executable" and task.get("capture_stdio"):  # its `stdout` is the path of a file
        found.append(("capture_stdio", True))
    return found


def input_files(task: Mapping[str, Any]) -> list[str]:
    """Return the files that the options of an executable name as its input.

    Args:
        task: The task, with `task_backend_specific_kwargs`.
    """
    specific = task.get("task_backend_specific_kwargs")
    stdin = specific.get("stdin") if specific else None
    return [os.fspath(stdin)] if isinstance(stdin, os.PathLike) else []


def _templates(specific: Mapping[str, Any]) -> list[Any]:
    pairs: list[Any] = []
    if "process_template" in specific:
        pairs.append((1, specific["process_template"]))
    several = specific.get("process_templates")
    if isinstance(several, (list, tuple)):  # the backend refuses anything else
        pairs += [pair for pair in several if isinstance(pair, (list, tuple)) and len(pair) == 2]
    return [
        (number, {name: template[name] for name in TEMPLATE if name in template})
        for number, template in pairs
        if isinstance(template, Mapping)
    ]
