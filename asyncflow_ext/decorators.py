"""Decorators that make workflow components of functions, and what they read from a call."""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from asyncflow_ext.component import Component, Options

__all__ = ["Decorated", "make_decorator"]

Register = Callable[..., Component]

OPTION_NAMES = ("backend", "backoff", "capture_stdio", "retries", "service", "timeout")


class Decorated:
    """A decorated function: what it is called, and what was said of it.

    Args:
        function: An async function, method, partial or callable object.
        options: What the decorator was given.

    Raises:
        TypeError: It cannot be called, or its default `task_description` is no dict.
    """

    def __init__(self, function: Callable[..., Any], options: Options) -> None:
        if not callable(function):
            raise TypeError(f"Expected a callable function, got {type(function).__name__}")
        self.function = function
        self.options = options
        self.name: str = _name_of(function)
        self.parameters = inspect.signature(function).parameters
        self.description = self._default_description()
        with suppress(AttributeError, TypeError):  # methods and slotted objects take no attributes
            function.__task_description__ = self.description  # type: ignore[attr-defined]
        self.is_async = _is_async(function)

    def _default_description(self) -> dict[str, Any]:
        parameter = self.parameters.get("task_description")
        if parameter is None or parameter.default is inspect.Parameter.empty:
            return {}
        if not isinstance(parameter.default, dict):
            raise TypeError(
                f"Default value for 'task_description' in function '{self.name}' must be a dict, "
                f"got {type(parameter.default).__name__}"
            )
        return parameter.default

    def take(self, kwargs: dict[str, Any], name: str) -> Any:
        """Read an option of the engine from a call; leave it where the function asks for it."""
        if name in self.parameters:
            return kwargs.get(name)
        return kwargs.pop(name, None)

    def read_description(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Return the call's `task_description` over the function's default one.

        Raises:
            TypeError: It is no dict.
        """
        if not kwargs:
            return self.description.copy()
        given = self.take(kwargs, "task_description") or {}
        if not isinstance(given, dict):
            raise TypeError(f"Expected 'task_description' to be a dict, got {type(given)}")
        return {**self.description, **given}

    def describe(
        self,
        kind: str,
        uid: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        specific: dict[str, Any],
        workflow_id: str | None,
    ) -> dict[str, Any]:
        """Describe one call in the words of AsyncFlow's backends.

        Args:
            kind: "function", "executable", "prompt", "block" or "ai".
            uid: Unique in this process.
            args: Positional arguments.
            kwargs: Keyword arguments.
            specific: What is for the backend only.
            workflow_id: Label of the workflow that it belongs to.
        """
        called = kind in ("function", "block", "ai")
        task_type = "function" if kind == "block" else "prompt" if kind == "ai" else kind
        description: dict[str, Any] = {
            "uid": uid,
            "name": self.name,
            "function": self.function if called else None,
            "executable": None,
            "args": args,
            "kwargs": kwargs,
            "is_service": self.options.is_service,
            "task_backend_specific_kwargs": specific,
            "target_backend": self.options.backend,
            "capture_stdio": self.options.capture_stdio,
            "workflow_id": workflow_id,
            "_tel_task_type": task_type,
            "_tel_executable": self.name,
        }
        if kind != "executable":
            description["prompt"] = None
        return description


def make_decorator(register: Register) -> Callable[..., Any]:
    """Return a decorator, to be used bare or with options.

    Args:
        register: Called as `register(decorated, args, kwargs, description, workflow_id)` for each
            call of a decorated function; returns the future of its result.
    """

    def decorator(
        possible_func: Any = None,
        service: bool = False,
        backend: str | None = None,
        capture_stdio: bool = False,
        *,
        retries: int = 0,
        backoff: float = 0.1,
        timeout: float | None = None,
        **unknown: Any,
    ) -> Any:
        for name in unknown:
            near = difflib.get_close_matches(name, OPTION_NAMES, n=1)
            hint = f"did you mean '{near[0]}'? " if near else ""
            raise TypeError(
                f"there is no option '{name}'; {hint}options are {', '.join(OPTION_NAMES)}"
            )
        options = Options(service, backend, capture_stdio, retries, backoff, timeout)

        def decorate(function: Callable[..., Any]) -> Callable[..., Component]:
            return _wrap(Decorated(function, options), register)

        return decorate if possible_func is None else decorate(possible_func)

    return decorator


def _wrap(decorated: Decorated, register: Register) -> Callable[..., Component]:
    @functools.wraps(decorated.function)
    def wrapped(*args: Any, **kwargs: Any) -> Component:
        try:
            if not decorated.is_async:
                raise TypeError(
                    f"Function {decorated.name} must be async. "
                    "For sync functions, wrap them in async def."
                )
            description = decorated.read_description(kwargs)
        except TypeError as error:
            raise TypeError(f"Error in decorated function '{decorated.name}': {error}") from error
        workflow_id = decorated.take(kwargs, "workflow_id") if kwargs else None
        return register(decorated, args, kwargs, description, workflow_id)

    return wrapped


def _name_of(function: Any) -> str:
    while isinstance(function, functools.partial):
        function = function.func
    name: str = getattr(function, "__name__", type(function).__name__)
    return name


def _is_async(function: Any) -> bool:
    while isinstance(function, functools.partial):
        function = function.func
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
        getattr(function, "__call__", None)  # noqa: B004 - the method itself is looked at
    )
