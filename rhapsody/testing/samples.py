"""Sample tasks, with the same keys as the descriptions of AsyncFlow's engine."""

from __future__ import annotations

import asyncio
from typing import Any

from rhapsody.backends.protocol import EXECUTABLE, FUNCTION
from rhapsody.testing.gate import Gate, hold, hold_async

__all__ = ["describe", "executable", "failing", "function", "held", "prompt", "quick"]


def describe(uid: str, kind: str, **fields: Any) -> dict[str, Any]:
    """Return a description of a task as the engine makes it, with additional fields."""
    task: dict[str, Any] = {
        "uid": uid,
        "name": f"{kind}-sample",
        "function": None,
        "executable": None,
        "args": (),
        "kwargs": {},
        "is_service": False,
        "task_backend_specific_kwargs": {},
        "target_backend": None,
        "capture_stdio": False,
        "workflow_id": None,
        "metadata": {"dependencies": [], "input_files": [], "output_files": []},
        "_tel_task_type": kind,
        "_tel_executable": f"{kind}-sample",
    }
    if kind == FUNCTION:
        task["prompt"] = None
    return {**task, **fields}


def function(uid: str, func: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
    """Describe a function task."""
    return describe(uid, FUNCTION, function=func, args=args, kwargs=kwargs)


def executable(uid: str, program: str, *arguments: str, **fields: Any) -> dict[str, Any]:
    """Describe an executable task."""
    return describe(uid, EXECUTABLE, executable=program, arguments=list(arguments), **fields)


def prompt(uid: str, text: str, **fields: Any) -> dict[str, Any]:
    """Describe a prompt task."""
    return describe(uid, "prompt", prompt=text, **fields)


def quick(kind: str, uid: str) -> dict[str, Any]:
    """Describe a short task that succeeds; the results are 5, "hello" and a model's response."""
    if kind == FUNCTION:
        return function(uid, add, 2, 3)
    if kind == EXECUTABLE:
        return executable(uid, "/bin/echo", "hello")
    return prompt(uid, "Say hello.")


def failing(kind: str, uid: str) -> dict[str, Any]:
    """Describe a function or an executable that fails; the executable writes nothing to stderr."""
    if kind == FUNCTION:
        return function(uid, fail, ValueError("no such luck"))
    return executable(uid, "/bin/sh", "-c", "exit 3")


def held(kind: str, uid: str, gate: Gate) -> dict[str, Any]:
    """Describe a function, an async function or an executable that waits at a gate."""
    if kind == EXECUTABLE:
        return executable(uid, *gate.command(uid))
    return function(uid, hold if kind == FUNCTION else hold_async, *gate.address, uid)


def add(left: int, right: int) -> int:
    """Return the sum."""
    return left + right


async def add_async(left: int, right: int) -> int:
    """Return the sum, after a pass of the loop."""
    await asyncio.sleep(0)
    return left + right


def fail(error: BaseException) -> None:
    """Raise an exception."""
    raise error
