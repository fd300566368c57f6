"""Tools of an engine's agents: its tasks, and plain functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from asyncflow_ext.decorators import is_decorated
from rhapsody.inference.agents.tools import Tool

__all__ = ["make_tool"]

OF_THE_ENGINE = ("task_description", "workflow_id")
"""Parameters of decorated functions that are options of the engine."""


def make_tool(function: Callable[..., Any]) -> Tool:
    """Return a tool of a function that a decorator of the engine made a task, or a plain one.

    Raises:
        TypeError: A model cannot call it.
    """
    if not is_decorated(function):
        return Tool(function, hidden=OF_THE_ENGINE)

    async def run(given: dict[str, Any]) -> Any:
        return await function(**given)

    return Tool(function, run, OF_THE_ENGINE)
