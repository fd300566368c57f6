"""The bodies that run on the caller's loop: of blocks and AI tasks, and what makes a command."""

from __future__ import annotations

import asyncio
import shlex
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from asyncflow_ext.cancelling import EndCancelled
from asyncflow_ext.component import Component

__all__ = ["Bodies"]


class Bodies:
    """Runs bodies, and says how they ended.

    Args:
        begin: Called in a body's own context before it runs; what it returns spans the body.
        queue: Passes a component on to its backend.
        succeed: Ends a component with result fields.
        fail: Ends an attempt with an error.
        end: Ends a component as cancelled, or the attempt where that took too long.
    """

    def __init__(
        self,
        begin: Callable[[Component], AbstractContextManager[Any]],
        queue: Callable[[Component], None],
        succeed: Callable[[Component, Any], None],
        fail: Callable[[Component, BaseException], None],
        end: EndCancelled,
    ) -> None:
        self._begin = begin
        self._queue = queue
        self._succeed = succeed
        self._fail = fail
        self._end = end

    async def run(self, component: Component) -> None:
        """Run the body of a block or of an AI task, which waits for its backend itself."""
        description = component.description
        try:
            with self._begin(component):
                value = await component.function(*description["args"], **description["kwargs"])
        except asyncio.CancelledError:
            self._end(component)
            raise
        except BaseException as error:
            self._settle(component, self._fail, error)
            _raise_exit(error)
        else:
            self._settle(component, self._succeed, {"return_value": value})

    def _settle(
        self, component: Component, end: Callable[[Component, Any], None], outcome: Any
    ) -> None:
        if component.timed_out:  # the body took no notice, or made something else of it
            self._end(component)
        else:
            end(component, outcome)

    async def prepare(self, component: Component) -> None:
        """Have the body of an executable or a prompt task make its command or prompt."""
        try:
            text = await _make_text(component)
            if component.kind == "prompt":
                component.description["prompt"] = text
            else:
                _set_command(component, text)
            if component.job is asyncio.current_task():  # else it was stopped and took no notice
                self._queue(component)
        except asyncio.CancelledError:  # ours, or of something that the body awaited
            if component.job is asyncio.current_task():
                self._end(component)
            raise
        except BaseException as error:
            if component.job is asyncio.current_task():
                self._fail(component, error)
            _raise_exit(error)


def _raise_exit(error: BaseException) -> None:
    """Let what is to end the program go on; its task has been failed with it."""
    if isinstance(error, (KeyboardInterrupt, SystemExit)):
        raise error


async def _make_text(component: Component) -> str:
    """Call a task's function with the values of what it depends on.

    A function written for the stock engine, which passes pending futures, may await an argument.
    It is called once more then, with the futures, all done.

    Args:
        component: The task; its description has the values.

    Returns:
        The command line or the prompt.

    Raises:
        ValueError: It is empty, or no string.
    """
    description = component.description
    try:
        text = await component.function(*description["args"], **description["kwargs"])
    except TypeError as error:
        if not component.arguments or "await" not in str(error):
            raise
        args, kwargs = component.arguments
        text = await component.function(*args, **kwargs)
    if not text or not isinstance(text, str):
        what = "command string" if component.kind == "executable" else "string prompt"
        raise ValueError(
            f"{component.kind.capitalize()} task '{component.name}' must return a non-empty "
            f"{what}, not {text!r:.80}"
        )
    return text


def _set_command(component: Component, text: str) -> None:
    """Split a command line into the program and its arguments.

    Raises:
        ValueError: There is no program in it, or a quotation mark is not closed.
    """
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise ValueError(
            f"Executable task '{component.name}' returned {text!r:.80}, which cannot be split "
            f"into words: {error}; shlex.join([...]) makes a command line of words"
        ) from error
    if not words:
        raise ValueError(
            f"Executable task '{component.name}' must return a non-empty command string, "
            f"not {text!r:.80}"
        )
    component.description["executable"], *rest = words
    component.description["arguments"] = rest
