"""Plain functions under the decorators of AsyncFlow's own engine, which takes only async ones."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from typing import Any

from rhapsody.backends.base import BaseBackend
from rhapsody.backends.core.work import is_async

__all__ = ["PlainFunction", "take_plain_functions"]


class PlainFunction:
    """A function that is not async, in the form that the engine takes.

    The engine only asks whether it is async; the backend calls it, and gets the value.

    Args:
        function: The function.
    """

    # What `asyncio.iscoroutinefunction` looks for.
    _is_coroutine = getattr(asyncio.coroutines, "_is_coroutine", None)

    def __init__(self, function: Callable[..., Any]) -> None:
        functools.update_wrapper(self, function)
        self.function = function

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function."""
        return self.function(*args, **kwargs)


def take_plain_functions(flow: Any) -> None:
    """Let `function_task` and `executable_task` of an engine take functions that are not async.

    Backends of other packages may await what such a function returns, so an engine with one of them
    does not change.
    """
    if all(isinstance(backend, BaseBackend) for backend in flow._backends.values()):
        flow.function_task = _Decorator(flow.function_task, PlainFunction)
        flow.executable_task = _Decorator(flow.executable_task, _as_async)


def _as_async(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    async def call(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return call


class _Decorator:
    """A decorator of the engine, with or without options.

    Args:
        decorator: The engine's own decorator.
        convert: Turns a plain function into one that the engine takes.
    """

    def __init__(self, decorator: Callable[..., Any], convert: Callable[..., Any]) -> None:
        self._decorator = decorator
        self._convert = convert

    def __call__(self, possible_func: Any = None, *args: Any, **options: Any) -> Any:
        if callable(possible_func):
            return self._decorator(self._converted(possible_func), *args, **options)
        decorate = self._decorator(possible_func, *args, **options)
        return lambda function: decorate(self._converted(function))

    def _converted(self, function: Any) -> Any:
        plain = callable(function) and not is_async(function)
        return self._convert(function) if plain else function
