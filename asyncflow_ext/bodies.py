"""The bodies of executable and prompt tasks: async functions that make a command or a prompt."""

from __future__ import annotations

import shlex

from asyncflow_ext.component import Component

__all__ = ["make_text", "set_command"]


async def make_text(component: Component) -> str:
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


def set_command(component: Component, text: str) -> None:
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
