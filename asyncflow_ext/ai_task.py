"""`@flow.ai_task`: an async function that returns a prompt becomes a workflow task.

The task is a block of the engine, made by public means: its body waits for what it depends on,
calls the function with the values, has a backend answer the prompt, and returns the response. So
values, cancelling and failures are the engine's own, and a slow function delays no other task.
"""

from __future__ import annotations

import asyncio
import difflib
import inspect
from collections.abc import Callable, Coroutine, Iterator, Mapping
from functools import wraps
from typing import Any, TypeVar

from radical.asyncflow.errors import DependencyFailureError

from rhapsody.api.errors import ConfigurationError, TaskValidationError
from rhapsody.api.tasks import AITask
from rhapsody.sampling import SAMPLING_FIELDS

__all__ = ["AITaskDecorator", "extend"]

E = TypeVar("E")
PromptFunction = Callable[..., Coroutine[Any, Any, Any]]

OPTIONS = SAMPLING_FIELDS | {"backend", "model", "system_prompt", "timeout"}
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
    parameter of that name), or in a call's `task_description`: `backend`, `model`,
    `system_prompt`, `timeout` (seconds), and sampling parameters such as `temperature`.

    Args:
        flow: The engine.
    """

    def __init__(self, flow: Any) -> None:
        self._flow = flow

    def __call__(self, function: PromptFunction | None = None, /, **options: Any) -> Any:
        """Decorate a function, or return the decorator that does.

        Raises:
            TypeError: The function is not async, or an option is unknown.
            TaskValidationError: An option has a wrong value.
            ConfigurationError: No backend of the engine, or not the one named, answers prompts.
        """
        _check_options(options)
        self._pick(options)

        def decorate(function: PromptFunction) -> Callable[..., asyncio.Future[Any]]:
            return self._decorate(function, options)

        return decorate if function is None else decorate(function)

    def _decorate(
        self, function: PromptFunction, options: dict[str, Any]
    ) -> Callable[..., asyncio.Future[Any]]:
        if not inspect.iscoroutinefunction(function):
            name = getattr(function, "__name__", repr(function))
            raise TypeError(f"ai_task takes an async function that returns a prompt, not {name}")
        parameters = inspect.signature(function).parameters

        @wraps(function)
        async def body(call: _Call) -> Any:
            args, kwargs = await call.values(function.__name__)
            return await self._answer(await function(*args, **kwargs), call.options)

        block = self._flow.block(body)

        @wraps(function)
        def submit(*args: Any, **kwargs: Any) -> asyncio.Future[Any]:
            engine_kwargs = {}
            if "workflow_id" in kwargs and "workflow_id" not in parameters:
                engine_kwargs["workflow_id"] = kwargs.pop("workflow_id")
            given = dict(kwargs.pop("task_description", None) or {})
            for name in OPTIONS & kwargs.keys() - parameters.keys():
                given[name] = kwargs.pop(name)
            _check_options(given)
            merged = {**options, **given}
            self._pick(merged)
            future: asyncio.Future[Any] = block(_Call(args, kwargs, merged), **engine_kwargs)
            return future

        return submit

    def _pick(self, options: Mapping[str, Any]) -> Any:
        """Return the backend that is to answer; None in a dry run."""
        flow = self._flow
        if flow.dry_run:
            return None
        able = {
            name: backend
            for name, backend in flow._backends.items()
            if callable(getattr(backend, "answer", None))
        }
        names = ", ".join(f"'{name}'" for name in able) or "none"
        name, model = options.get("backend"), options.get("model")
        if name is not None:
            if name not in able:
                has = "cannot answer prompts" if name in flow._backends else "is not in the engine"
                raise ConfigurationError(f"backend '{name}' {has}; these can: {names}")
            return able[name]
        if not able:
            raise ConfigurationError(
                "no backend of the engine answers prompts; create the engine with an inference "
                "backend too: WorkflowEngine.create(backend=[compute, inference])"
            )
        if model is not None:
            for backend in able.values():
                if getattr(backend, "model_name", model) == model:
                    return backend
            raise ConfigurationError(f"no backend serves the model '{model}'; there are {names}")
        if len(able) > 1:
            raise ConfigurationError(
                f"several backends answer prompts ({names}); name one: ai_task(backend=...)"
            )
        return next(iter(able.values()))

    async def _answer(self, prompt: Any, options: Mapping[str, Any]) -> Any:
        task = _make_task(prompt, options)
        backend = self._pick(task)
        if backend is None:
            many = isinstance(task["prompt"], (list, tuple))
            is_chat = many and isinstance(task["prompt"][0], Mapping)
            return (
                [DRY_RUN_RESPONSE] * len(task["prompt"])
                if many and not is_chat
                else (DRY_RUN_RESPONSE)
            )
        task.update(await backend.answer(task), state="DONE")
        return task["response"]


def _check_options(options: Mapping[str, Any]) -> None:
    for name in options:
        if name not in OPTIONS:
            near = difflib.get_close_matches(name, OPTIONS, n=1)
            hint = f"did you mean '{near[0]}'? " if near else ""
            raise TypeError(
                f"ai_task has no option '{name}'; {hint}options are {', '.join(sorted(OPTIONS))}"
            )
    AITask(prompt="-", **options)


def _make_task(prompt: Any, options: Mapping[str, Any]) -> AITask:
    if isinstance(prompt, AITask):
        for name, value in options.items():
            prompt.setdefault(name, value)
        return prompt
    if prompt is None:
        raise TaskValidationError(None, "the ai_task's function returned None, not a prompt")
    return AITask(prompt=prompt, **options)


class _Call:
    """The arguments of one call, opaque to the engine, which looks for futures one level deep."""

    def __init__(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], options: dict[str, Any]
    ) -> None:
        self._arguments = (args, kwargs)
        self.options = options

    async def values(self, name: str) -> Any:
        """Wait for all futures in the arguments and return these with the values in their place.

        Raises:
            DependencyFailureError: One of them failed.
            asyncio.CancelledError: One of them was cancelled, and so is this task.
        """
        futures = list(dict.fromkeys(_futures(self._arguments)))
        if futures:
            await asyncio.wait(futures)
        if any(future.cancelled() for future in futures):
            raise asyncio.CancelledError(f"a task that '{name}' depends on was cancelled")
        failed = [future for future in futures if future.exception() is not None]
        if failed:
            raise DependencyFailureError(
                f"Cannot execute '{name}' due to dependency failure",
                failed_dependencies=[_name(future) for future in failed],
                root_cause=failed[0].exception(),
            )
        return _with_values(self._arguments)


def _futures(value: Any) -> Iterator[asyncio.Future[Any]]:
    if isinstance(value, asyncio.Future):
        yield value
    elif type(value) in (list, tuple, set):
        for item in value:
            yield from _futures(item)
    elif type(value) is dict:
        for item in value.values():
            yield from _futures(item)


def _with_values(value: Any) -> Any:
    if isinstance(value, asyncio.Future):
        return value.result()
    if type(value) in (list, tuple, set):
        return type(value)(_with_values(item) for item in value)
    if type(value) is dict:
        return {key: _with_values(item) for key, item in value.items()}
    return value


def _name(future: Any) -> str:
    description = getattr(future, "task", None) or getattr(future, "block", None)
    return description["name"] if isinstance(description, dict) else repr(future)
