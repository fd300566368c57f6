"""Tools of an agent: functions with a JSON schema of their parameters."""

from __future__ import annotations

import asyncio
import inspect
import re
import typing
from collections.abc import Awaitable, Callable, Collection, Mapping
from functools import partial
from typing import Annotated, Any

import pydantic_core
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.errors import PydanticUserError
from typing_extensions import NotRequired, TypedDict

from rhapsody.errors import as_exception

__all__ = ["Run", "Tool", "as_text", "is_schema"]

Run = Callable[[dict[str, Any]], Awaitable[Any]]
"""Makes a call of a tool with the values of its parameters, and returns its result."""

NAME = re.compile(r"[A-Za-z0-9_-]{1,64}\Z")
ENTRY = re.compile(r"\s*\*{0,2}(\w+)\s*(?:\([^)]*\))?:\s*(.+)")


def is_schema(tool: Any) -> bool:
    """Return whether a tool is its description in OpenAI's format, which nothing can call."""
    return isinstance(tool, Mapping) and tool.get("type") == "function"


class Tool:
    """A function that a model may call.

    Args:
        function: The function, whose name, docstring and parameters the model gets.
        run: Calls the function. None: a plain function is called in a thread, an async one on the
            running loop.
        hidden: Parameters that the model does not get.

    Raises:
        TypeError: The function has no name that models accept, has parameters without names, or
            parameters of a type that has no JSON schema.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        run: Run | None = None,
        hidden: Collection[str] = (),
    ) -> None:
        name = getattr(function, "__name__", "")
        if not callable(function) or not NAME.match(name):
            raise TypeError(
                "a tool must be a function with a name of 1 to 64 letters, digits or underscores, "
                f"got {function!r:.80}"
            )
        self.name: str = name
        original = inspect.unwrap(function)
        self._run = run or partial(_call, function, inspect.iscoroutinefunction(original))
        text = inspect.cleandoc(original.__doc__ or "")
        self.description = text.partition("\n\n")[0].replace("\n", " ")
        try:
            arguments = _arguments_of(function, original, text, hidden)
            self._arguments: TypeAdapter[Any] = TypeAdapter(arguments)
            self._parameters = self._arguments.json_schema()
        except (PydanticUserError, NameError) as error:
            first = str(error).partition("\n")[0]
            raise TypeError(
                f"the parameters of the tool '{name}' must have types with a JSON schema: {first}"
            ) from error

    @property
    def schema(self) -> dict[str, Any]:
        """The tool in OpenAI's format."""
        function: dict[str, Any] = {"name": self.name, "parameters": self._parameters}
        if self.description:
            function["description"] = self.description
        return {"type": "function", "function": function}

    async def call(self, arguments: str) -> Any:
        """Call the function, and return its result.

        Args:
            arguments: Its arguments as a JSON object.

        Raises:
            ValueError: The arguments do not fit the parameters.
            Exception: The function failed.
        """
        try:
            given = self._arguments.validate_json(arguments or "{}")
        except ValidationError as error:
            raise ValueError(_faults(error)) from None
        return await self._run(given)


def as_text(result: Any) -> str:
    """Return the result of a tool as a model gets it: a str as it is, others as JSON."""
    if isinstance(result, str):
        return result
    return pydantic_core.to_json(result, fallback=str).decode()


async def _call(function: Callable[..., Any], is_async: bool, given: dict[str, Any]) -> Any:
    if not is_async:
        return await asyncio.to_thread(_call_in_thread, function, given)
    try:
        return await function(**given)
    except SystemExit as error:  # it would end the program, and the model can be told of it
        raise as_exception(error) from error


def _call_in_thread(function: Callable[..., Any], given: dict[str, Any]) -> Any:
    try:
        return function(**given)
    except BaseException as error:
        failure = as_exception(error)
        if failure is error:
            raise
        raise failure from error


def _arguments_of(
    function: Callable[..., Any],
    original: Callable[..., Any],
    text: str,
    hidden: Collection[str],
) -> Any:
    """Return a TypedDict of a function's parameters."""
    hints = typing.get_type_hints(original, include_extras=True)
    described = _descriptions(text)
    fields: dict[str, Any] = {}
    for name, parameter in inspect.signature(function).parameters.items():
        if name in hidden:
            continue
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise TypeError(
                f"the tool '{original.__name__}' must have named parameters only, got {parameter}"
            )
        hint = hints.get(name, Any)
        if name in described:
            hint = Annotated[hint, Field(description=described[name])]
        is_required = parameter.default is inspect.Parameter.empty
        fields[name] = hint if is_required else NotRequired[hint]
    make: Any = TypedDict  # type checkers want the fields to stand in the program
    made = make(original.__name__, fields)
    made.__pydantic_config__ = ConfigDict(extra="forbid")
    return made


def _descriptions(text: str) -> dict[str, str]:
    """Return the descriptions of parameters in a docstring, by Google's convention."""
    found: dict[str, str] = {}
    last, inside = "", False
    for line in text.splitlines():
        if not line.startswith(" "):
            inside = line.strip() in ("Args:", "Arguments:", "Parameters:")
        elif inside and (entry := ENTRY.match(line)):
            last = entry[1]
            found[last] = entry[2].strip()
        elif inside and last:
            found[last] += f" {line.strip()}"
    return found


def _faults(error: ValidationError) -> str:
    faults = error.errors(include_url=False, include_context=False)
    named = [(".".join(map(str, fault["loc"])) or "arguments", fault["msg"]) for fault in faults]
    return "; ".join(f"{name}: {text}" for name, text in named)
