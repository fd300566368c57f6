"""`@flow.ai_task`: an async function that returns a prompt becomes a workflow task.

The body of the task calls the function with the values of what it depends on, has a backend answer
the prompt, and returns the response. It runs on the caller's loop, so a slow function delays no
other task. On Rhapsody's engine it is a kind of task of its own. On the stock engine it is a block,
made by public means, whose body waits for what it depends on; so values, cancelling and failures
are the engine's own there too.
"""

from __future__ import annotations

import asyncio
import difflib
import inspect
from collections.abc import Callable, Coroutine, Mapping
from functools import partial, wraps
from typing import Any, TypeVar

from asyncflow_ext.failures import as_exception, dependency_failure
from asyncflow_ext.futures import find_futures, with_values
from rhapsody.api.errors import ConfigurationError, TaskValidationError
from rhapsody.api.tasks import AITask
from rhapsody.backends.protocol import PROMPT, accepted_kinds
from rhapsody.sampling import SAMPLING_FIELDS, is_model_class

__all__ = ["AITaskDecorator", "extend"]

E = TypeVar("E")
PromptFunction = Callable[..., Coroutine[Any, Any, Any]]

OPTIONS = SAMPLING_FIELDS | {"backend", "model", "on_text", "system_prompt", "timeout"}
DRY_RUN_RESPONSE = "Dummy Prompt Output"
"""What AsyncFlow's own no-op backend answers a prompt with."""


def extend(flow: E) -> E:
    """Give one engine an `ai_task` decorator.

    Args:
        flow: A `WorkflowEngine`. Other engines are not touched.

    Returns:
        The same engine.

    Raises:
        TypeError: It is no workflow engine.
    """
    if not hasattr(flow, "block") or not hasattr(flow, "_backends"):
        raise TypeError(
            f"extend() takes a radical.asyncflow WorkflowEngine, not {type(flow).__name__}"
        )
    flow.ai_task = AITaskDecorator(flow)  # type: ignore[attr-defined]
    return flow


class AITaskDecorator:
    """The `ai_task` of one engine; use it bare or with options.

    The decorated async function gets the values of the tasks that it depends on, also of those
    inside lists, tuples and dicts, and returns a prompt: a str, a list of str, chat messages, or
    an `AITask` whose own fields go before the options. Calling it gives a future of the response.

    Options, on the decorator or by the same keywords in a call (where the function has no
    parameter of that name), or in a `task_description`, of a call or as the default of the
    function's parameter of that name: `backend`, `model`, `system_prompt`, `timeout` (seconds),
    sampling parameters such as `temperature`, and `on_text`, called on the caller's loop with each
    piece of the response while it is written. With a pydantic model class as `response_format`
    the future is of an instance of it. With one inference backend in the engine none need be
    named; with several the decorator, the call or `model` says which. On Rhapsody's engine the
    decorator takes `retries` and `backoff` (seconds) as well, but no `retries` beside `on_text`,
    which would get the beginning again.

    Args:
        flow: The engine.
    """

    def __init__(self, flow: Any) -> None:
        self._flow = flow

    def __call__(self, function: PromptFunction | None = None, /, **options: Any) -> Any:
        """Decorate a function, or return the decorator that does.

        Args:
            function: An async function that returns a prompt.
            **options: See the class.

        Raises:
            TypeError: The function is not async, or an option is unknown.
            TaskValidationError: An option has a wrong value.
            ConfigurationError: No backend of the engine, or not the one named, answers prompts,
                or none serves the model. The message lists those that do.
        """
        repeating: dict[str, Any] = {}
        if hasattr(self._flow, "_ai_component"):
            repeating = {k: options.pop(k) for k in ("retries", "backoff") if k in options}
        _check_options(options)
        self._able(options)

        def decorate(function: PromptFunction) -> Callable[..., asyncio.Future[Any]]:
            return self._decorate(function, options, repeating)

        return decorate if function is None else decorate(function)

    def _decorate(
        self, function: PromptFunction, options: dict[str, Any], repeating: dict[str, Any]
    ) -> Callable[..., asyncio.Future[Any]]:
        name = _name_of(function)
        if not inspect.iscoroutinefunction(function):
            raise TypeError(
                f"ai_task takes an async function that returns a prompt; write: async def {name}"
            )
        parameters = inspect.signature(function).parameters
        described = parameters.get("task_description")
        if described is not None and described.default is not inspect.Parameter.empty:
            options = {**_described(described.default), **options}
            self._able(options)

        _check_once(options, repeating)

        async def body(args: Any, kwargs: Any, merged: Any) -> Any:
            task = _make_task(await function(*args, **kwargs), merged, name)
            _check_once(task, repeating)
            return await self._answer(task, merged)

        component = self._component(body, name, repeating)

        @wraps(function)
        def submit(*args: Any, **kwargs: Any) -> asyncio.Future[Any]:
            engine_kwargs = {}
            if "workflow_id" in kwargs and "workflow_id" not in parameters:
                engine_kwargs["workflow_id"] = kwargs.pop("workflow_id")
            given = _described(kwargs.pop("task_description", None))
            for option in OPTIONS & (kwargs.keys() - parameters.keys()):
                given[option] = kwargs.pop(option)
            _check_options(given)
            merged = {**options, **given}
            _check_once(merged, repeating)
            self._pick(merged)
            future: asyncio.Future[Any] = component(args, kwargs, merged, **engine_kwargs)
            return future

        return submit

    def _component(
        self, body: PromptFunction, name: str, repeating: dict[str, Any]
    ) -> Callable[..., asyncio.Future[Any]]:
        """Make a component of the engine: called with arguments in which there are futures."""
        body.__name__ = name
        own_kind = getattr(self._flow, "_ai_component", None)
        if own_kind is not None:
            made: Callable[..., asyncio.Future[Any]] = own_kind(**repeating)(body)
            return made

        async def waiting_body(arguments: _Opaque) -> Any:
            try:
                return await body(*await arguments.values(name))
            except (asyncio.CancelledError, KeyboardInterrupt, SystemExit):
                raise
            except BaseException as error:  # the stock engine would never end the block
                raise as_exception(error) from error.__cause__

        waiting_body.__name__ = name
        block = self._flow.block(waiting_body)

        def component(*args: Any, **engine_kwargs: Any) -> asyncio.Future[Any]:
            future: asyncio.Future[Any] = block(_Opaque(args), **engine_kwargs)
            return future

        return component

    def _able(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Return the backends, by name, that can answer with these options; none in a dry run."""
        flow = self._flow
        if flow.dry_run:
            return {}
        able = {
            name: backend
            for name, backend in flow._backends.items()
            if callable(getattr(backend, "answer", None)) and PROMPT in accepted_kinds(backend)
        }
        names = ", ".join(f"'{name}'" for name in able) or "none"
        name, model = options.get("backend"), options.get("model")
        if name is not None and name not in able:
            has = "cannot answer prompts" if name in flow._backends else "is not in the engine"
            raise ConfigurationError(f"backend '{name}' {has}; these can: {names}")
        if not able:
            raise ConfigurationError(
                "no backend of the engine answers prompts; create the engine with an inference "
                "backend too: WorkflowEngine.create(backend=[compute, inference])"
            )
        if name is not None:
            able = {name: able[name]}
        if model is None:
            return able
        served = {name: getattr(backend, "model_name", model) for name, backend in able.items()}
        if model not in served.values():
            models = ", ".join(f"'{served[name]}' by '{name}'" for name in served)
            raise ConfigurationError(f"no backend serves the model '{model}'; served: {models}")
        return {name: able[name] for name in able if served[name] == model}

    def _pick(self, options: Mapping[str, Any]) -> Any:
        """Return the backend that is to answer; None in a dry run."""
        able = self._able(options)
        if len(able) > 1 and options.get("model") is None:
            names = ", ".join(f"'{name}'" for name in able)
            raise ConfigurationError(
                f"several backends answer prompts ({names}); name one: ai_task(backend=...)"
            )
        return next(iter(able.values()), None)

    async def _answer(self, task: AITask, options: Mapping[str, Any]) -> Any:
        fields = {**options, **task}
        backend = self._pick(fields)
        if backend is None:
            return _stand_in(fields)
        task.update(await backend.answer(fields), state="DONE")
        return task["parsed" if is_model_class(fields.get("response_format")) else "response"]


def _check_options(options: Mapping[str, Any]) -> None:
    for name in options:
        if name not in OPTIONS:
            near = difflib.get_close_matches(name, OPTIONS, n=1)
            hint = f"did you mean '{near[0]}'? " if near else ""
            raise TypeError(
                f"ai_task has no option '{name}'; {hint}options are {', '.join(sorted(OPTIONS))}"
            )
    AITask("-", uid="ai_task", **options)


def _check_once(options: Mapping[str, Any], repeating: Mapping[str, Any]) -> None:
    if options.get("on_text") is not None and repeating.get("retries"):
        raise TypeError(
            "with 'retries' an 'on_text' would get the beginning again; use one of them"
        )


def _described(description: Any) -> dict[str, Any]:
    if description is None:
        return {}
    if not isinstance(description, Mapping):
        raise TypeError(
            f"'task_description' must be a dict of options, not {type(description).__name__}"
        )
    _check_options(description)
    return dict(description)


def _make_task(prompt: Any, options: Mapping[str, Any], name: str) -> AITask:
    if isinstance(prompt, AITask):
        return prompt
    if prompt is None:
        raise TaskValidationError(name, "its function returned None, not a prompt")
    return AITask(prompt, uid=name, **options)


def _stand_in(task: Mapping[str, Any]) -> Any:
    """Return a response of the right shape: one per prompt, with `n` above 1 a list of n each."""
    prompt, number, wanted = task["prompt"], task.get("n") or 1, task.get("response_format")
    response: Any = DRY_RUN_RESPONSE
    if is_model_class(wanted):
        response = wanted.model_construct()
    one = response if number == 1 else [response] * number
    single = isinstance(prompt, str) or isinstance(prompt[0], Mapping)
    return one if single else [one for _ in prompt]


def _name_of(function: Any) -> str:
    while isinstance(function, partial):
        function = function.func
    return getattr(function, "__name__", None) or repr(function)


class _Opaque:
    """Arguments that the stock engine does not look into: it finds futures one level deep only."""

    def __init__(self, arguments: tuple[Any, ...]) -> None:
        self._arguments, self._futures = find_futures(arguments)

    async def values(self, name: str) -> Any:
        """Wait for all futures in the arguments and return these with the values in their place.

        Raises:
            DependencyFailureError: One of them failed.
            asyncio.CancelledError: One of them was cancelled, and so is this task.
        """
        futures = self._futures
        if not futures:
            return self._arguments
        await asyncio.wait(futures)
        if any(future.cancelled() for future in futures):
            raise asyncio.CancelledError(f"a task that '{name}' depends on was cancelled")
        failure = dependency_failure(name, futures)
        if failure is not None:
            raise failure
        return with_values(self._arguments)
