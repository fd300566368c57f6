"""Decorators that turn functions into workflow components."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from asyncflow_ext.component import AI, BLOCK, EXECUTABLE, FUNCTION, PROMPT, Component, Options
from rhapsody.backends.core.work import is_async
from rhapsody.resources import Resources

__all__ = ["Decorated", "is_decorated", "make_decorator"]

DECORATED = "__rhapsody_component__"
"""The attribute that marks decorated functions."""

Register = Callable[..., Component]


class _Nothing(dict[str, Any]):
    """An empty dict that many calls share, and that cannot be changed."""

    def _refuse(self, *_: Any, **__: Any) -> Any:
        raise TypeError("this empty dict is shared by all calls; make a new one")

    __setitem__ = setdefault = update = __ior__ = _refuse

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return dict, ()


NOTHING = _Nothing()


class _Template:
    """Holds the keys of descriptions; see `Decorated.describe`."""

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(name)

    if TYPE_CHECKING:

        def __setattr__(self, name: str, value: Any) -> None: ...


class Decorated:
    """A decorated function, its name, and its options.

    Args:
        function: A function, method, partial or callable object; for a block an async one.
        options: The options of the decorator.

    Raises:
        TypeError: The function is not callable, or its default `task_description` is not a dict.
    """

    def __init__(self, function: Callable[..., Any], options: Options) -> None:
        if not callable(function):
            raise TypeError(f"Expected a callable function, got {type(function).__name__}")
        self.function = function
        self.options = options
        self.name: str = _name_of(function)
        self.parameters = inspect.signature(function).parameters
        self.description = self._default_description()
        with suppress(AttributeError, TypeError):  # methods and slotted objects reject attributes
            function.__task_description__ = self.description  # type: ignore[attr-defined]
        self.is_async = is_async(function)
        self._templates: dict[str, dict[str, Any]] = {}

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
        """Return an option of a call, and remove it unless the function has such a parameter."""
        if name in self.parameters:
            return kwargs.get(name)
        return kwargs.pop(name, None)

    def read_description(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Return the `task_description` of a call, merged over the default of the function.

        Raises:
            TypeError: It is not a dict.
        """
        if not kwargs:
            return self.description.copy() if self.description else NOTHING
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
        """Return the description of one call, in the format of AsyncFlow's backends.

        Args:
            kind: "function", "executable", "prompt", "block" or "ai".
            uid: Unique in this process.
            args: Positional arguments.
            kwargs: Keyword arguments.
            specific: Options for the backend only.
            workflow_id: Label of the workflow that the call belongs to.
        """
        template = self._templates.get(kind)
        if template is None:
            template = self._templates[kind] = self._template(kind)
        description = template.copy()
        description["uid"] = uid
        description["args"] = args
        description["kwargs"] = kwargs or NOTHING
        description["task_backend_specific_kwargs"] = specific or NOTHING
        description["workflow_id"] = workflow_id
        return description

    def _template(self, kind: str) -> dict[str, Any]:
        """Return the description of any call: its keys, and the values that are always the same.

        It is the dict of an object. Copies of such a dict share its keys, so that each takes half
        the memory of another dict.
        """
        called = kind in (FUNCTION, BLOCK, AI)
        template = _Template()
        description = vars(template)
        # One by one: `update` would make a dict of its own keys.
        template.uid = None
        template.name = template._tel_executable = self.name
        template.function = self.function if called else None
        template.executable = None
        template.args = ()
        template.kwargs = NOTHING
        template.is_service = self.options.service
        template.task_backend_specific_kwargs = NOTHING
        template.target_backend = self.options.backend
        template.capture_stdio = self.options.capture_stdio
        template.workflow_id = None
        template.metadata = None
        template._tel_task_type = FUNCTION if kind == BLOCK else PROMPT if kind == AI else kind
        if kind != EXECUTABLE:
            template.prompt = None
        if self.options.resources is not None:
            template.resources = self.options.resources
        if self.options.priority:
            template.priority = self.options.priority
        return description


def make_decorator(
    register: Register,
    check: Callable[[Options], None],
    takes_resources: bool = True,
    takes_sync: bool = False,
) -> Callable[..., Any]:
    """Return a decorator that can be used with and without options.

    Args:
        check: Raises an exception if options do not apply.
        register: Called as `register(decorated, args, kwargs, description, workflow_id)` for each
            call of a decorated function. It returns the future of the result.
        takes_resources: Whether the decorator accepts the option `resources`.
        takes_sync: Whether it also decorates functions that are not async.
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
        resources: Mapping[str, Any] | Resources | None = None,
        priority: int = 0,
        journal: bool = True,
        cache: bool = False,
        version: str | None = None,
        inputs: Any = None,
        outputs: Any = None,
        expected: float | None = None,
        queue_timeout: float | None = None,
        **unknown: Any,
    ) -> Any:
        if resources is not None and not takes_resources:
            raise TypeError(
                "'resources' is an option of function_task and executable_task; a block runs in "
                "the engine's own loop, and a prompt on a model's replica"
            )
        options = Options(
            service=service,
            backend=backend,
            capture_stdio=capture_stdio,
            retries=retries,
            backoff=backoff,
            timeout=timeout,
            resources=None if resources is None else Resources.of(resources),
            priority=priority,
            journal=journal,
            cache=cache,
            version=version,
            inputs=inputs,
            outputs=outputs,
            expected=expected,
            queue_timeout=queue_timeout,
            **unknown,
        )
        check(options)

        def decorate(function: Callable[..., Any]) -> Callable[..., Component]:
            return _wrap(Decorated(function, options), register, takes_sync)

        return decorate if possible_func is None else decorate(possible_func)

    return decorator


def _wrap(decorated: Decorated, register: Register, takes_sync: bool) -> Callable[..., Component]:
    @functools.wraps(decorated.function)
    def wrapped(*args: Any, **kwargs: Any) -> Component:
        try:
            if not (takes_sync or decorated.is_async):
                raise TypeError(
                    f"Function {decorated.name} must be async. "
                    "For sync functions, wrap them in async def."
                )
            description = decorated.read_description(kwargs)
        except TypeError as error:
            raise TypeError(f"Error in decorated function '{decorated.name}': {error}") from error
        workflow_id = decorated.take(kwargs, "workflow_id") if kwargs else None
        return register(decorated, args, kwargs, description, workflow_id)

    wrapped.__dict__[DECORATED] = True
    return wrapped


def is_decorated(function: Any) -> bool:
    """Return whether a function was made a component by a decorator of this engine."""
    return DECORATED in getattr(function, "__dict__", {})


def _name_of(function: Any) -> str:
    while isinstance(function, functools.partial):
        function = function.func
    name: str = getattr(function, "__name__", type(function).__name__)
    return name
