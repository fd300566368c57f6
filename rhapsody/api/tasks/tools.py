"""Tools of an AI task: functions whose calls by the model are compute tasks."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any

from rhapsody.api.tasks.compute import ComputeTask
from rhapsody.inference.agents.agent import Agent
from rhapsody.inference.agents.tools import Tool

__all__ = ["RunTask", "example_call", "make_agent"]

RunTask = Callable[[ComputeTask], Awaitable[Any]]
"""Runs the task of a call, and returns its result."""

OF_ONE_CALL = ("args", "function", "kwargs", "uid")
"""Fields of a ComputeTask that a call sets."""


def make_agent(task: Mapping[str, Any], run: RunTask) -> Agent:
    """Return the agent of an AI task with tools.

    Args:
        task: The fields of the task.
        run: Runs a call.

    Raises:
        ConfigurationError: An option is invalid.
        TypeError: A tool cannot be called by a model.
    """
    return Agent.of_task(partial(_make_tool, run), task)


def example_call(tool: Any) -> ComputeTask | None:
    """Return a task like those of a tool's calls; None if each call describes its own."""
    if isinstance(tool, ComputeTask):
        return tool
    return None if _describes_task(tool) else ComputeTask(function=tool)


def _make_tool(run: RunTask, tool: Any) -> Tool:
    function = tool
    options: dict[str, Any] = {}
    if isinstance(tool, ComputeTask):
        function = tool["function"]
        if function is None or tool["args"] or tool["kwargs"]:
            raise TypeError(
                "a ComputeTask among 'tools' must have a function without arguments, got "
                f"{tool!r:.120}; for an executable, write a function that returns its ComputeTask"
            )
        options = {name: value for name, value in tool.items() if name not in OF_ONE_CALL}

    async def run_call(given: dict[str, Any]) -> Any:
        return await run(ComputeTask(function=function, kwargs=given, **options))

    async def run_described(given: dict[str, Any]) -> Any:
        described = function(**given)
        if not isinstance(described, ComputeTask) and inspect.isawaitable(described):
            described = await described
        if not isinstance(described, ComputeTask):
            raise TypeError(f"it must return a ComputeTask, got {described!r:.80}")
        return await run(described)

    return Tool(function, run_described if _describes_task(tool) else run_call)


def _describes_task(tool: Any) -> bool:
    """Return whether a function returns the task of its call: its annotation says so."""
    if isinstance(tool, ComputeTask):
        return False
    try:
        return typing.get_type_hints(inspect.unwrap(tool)).get("return") is ComputeTask
    except (NameError, TypeError, ValueError):
        return False  # `Tool` says what is wrong with it
