"""`@flow.ai_task`: an async function that returns a prompt becomes a workflow task.

The body of the task calls the function with the values of its dependencies, passes the prompt to a
backend, and returns the response. It runs on the caller's loop, so a slow function delays no other
task. On Rhapsody's engine an AI task is a separate kind of task. On the stock engine it is a
block, created through the public API, whose body waits for the dependencies; so values, cancelling
and failures are handled by the stock engine.
"""

from __future__ import annotations

import asyncio
import inspect
import os
from collections.abc import Callable, Coroutine, Mapping
from functools import partial, wraps
from typing import Any, TypeVar

from asyncflow_ext.agents.tools import make_tool
from asyncflow_ext.arguments import find_futures, required, with_values
from asyncflow_ext.failures import dependency_failure
from asyncflow_ext.plain_functions import take_plain_functions
from asyncflow_ext.recovery.stock import StockJournal
from rhapsody.api.tasks import AITask
from rhapsody.api.tasks.formatted import refuse_formatted_tasks
from rhapsody.backends.protocol import (
    ATTEMPT_KEY,
    PROMPT,
    accepted_kinds,
    backends_for_ai_kind,
)
from rhapsody.errors import ConfigurationError, TaskValidationError, as_exception
from rhapsody.inference.agents.agent import AGENT_OPTIONS, Agent, Conversation
from rhapsody.inference.kinds import GENERATE, SCORE, pooling_inputs, pooling_result
from rhapsody.sampling import SAMPLING_FIELDS, is_model_class
from rhapsody.suggest import unknown_name

__all__ = ["AITaskDecorator", "extend"]

E = TypeVar("E")
PromptFunction = Callable[..., Coroutine[Any, Any, Any]]

OPTIONS = SAMPLING_FIELDS | {
    "adapter",
    "backend",
    "kind",
    "model",
    "on_text",
    "priority",
    "system_prompt",
    "timeout",
}
ENGINE_OPTIONS = ("backoff", "cache", "journal", "retries", "version")
"""Options that only Rhapsody's engine has."""
DRY_RUN_RESPONSE = "Dummy Prompt Output"
"""The response of AsyncFlow's own no-op backend."""


def extend(flow: E, journal: str | os.PathLike[str] | None = None) -> E:
    """Add the decorator `ai_task`, and a journal, to one engine of AsyncFlow.

    `function_task` and `executable_task` of AsyncFlow's own engine also take plain functions then,
    if all its backends are Rhapsody's.

    Args:
        flow: A `WorkflowEngine` without tasks; other engines do not change.
        journal: File of a journal, which is created if it does not exist. The results of finished
            tasks are kept there, and a later run of the program does not repeat them. It is
            `flow.journal`, and is closed when the engine shuts its backends down. None: no
            journal. In a dry run it is not used.

    Returns:
        The same engine.

    Raises:
        TypeError: `flow` is not a workflow engine, or it is Rhapsody's own and `journal` is given.
        JournalError: The journal cannot be used, for example because another program uses it.
    """
    if not hasattr(flow, "block") or not hasattr(flow, "_backends"):
        raise TypeError(
            f"extend() takes a radical.asyncflow WorkflowEngine, got {type(flow).__name__}"
        )
    if not hasattr(flow, "_machine"):  # Rhapsody's engine takes them itself
        take_plain_functions(flow)
    if journal is not None:
        if hasattr(flow, "_machine"):
            raise TypeError(
                "extend() adds a journal to AsyncFlow's own engine; for this one give it to "
                "WorkflowEngine.create(journal=...)"
            )
        if not flow.dry_run:  # type: ignore[attr-defined]
            stock_journal = StockJournal(flow, journal)
            flow._stock_journal = stock_journal  # type: ignore[attr-defined]
            flow.journal = stock_journal.journal  # type: ignore[attr-defined]
    flow.ai_task = AITaskDecorator(flow)  # type: ignore[attr-defined]
    return flow


class AITaskDecorator:
    """The decorator `ai_task` of one engine, used with or without options.

    The decorated async function gets the values of its dependencies, including those inside lists,
    tuples and dicts. It returns a prompt: a str, a list of str, chat messages, or an `AITask`,
    whose fields override the options. Calling the function returns a future of the response.

    With `kind="embed"`, `"score"` or `"classify"` it returns texts or pairs as for `AITask`, and
    the result is what `AITask` has as `response`.

    The options are `kind`, `backend`, `model`, `adapter`, `system_prompt`, `timeout` (seconds),
    `priority`, sampling parameters such as `temperature`, and `on_text`, which is called on the
    caller's loop with each piece of the response as it is generated. If `response_format` is a
    pydantic model class, the result is an instance of it. On Rhapsody's engine the decorator also
    accepts `retries` and `backoff` (seconds), and `journal`, `cache` and `version` for its journal;
    `retries` cannot be combined with `on_text`, since a retry would repeat text that `on_text` has
    received.

    With `tools=`, a list of functions or of tasks of this engine, the model may call them: each
    call runs as a task, calls of one turn run at the same time, and their results go back to the
    model, until it responds without a call. `max_rounds` (default 8) limits its responses, and
    `timeout` the whole conversation. `tool_choice="required"`, or the name of a tool, makes the
    first response call one. The model gets `max_result_chars` (default 20,000) of a
    result. A tool that fails is told to the model, or with `on_tool_error="fail"` fails the task.
    An `AITask` that the function returns may have tools of its own. The conversation is in
    `messages` of an `AITask` that the function returned, and on Rhapsody's engine in
    `future.task["messages"]`; the calls, with whole results, are in `tool_calls`.

    Options are given to the decorator, as keywords of a call (unless the function has a parameter
    of that name), or in a `task_description`, either of a call or as the default of the function's
    parameter. An engine with one inference backend needs no `backend`; with several, `backend` or
    `model` selects one.

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
            TypeError: The function is not async, an option is unknown, or a tool cannot be called
                by a model.
            TaskValidationError: An option has a wrong value.
            ConfigurationError: The engine has no inference backend, the named backend is none, or
                no backend serves the model. The message lists the inference backends.
        """
        retrying: dict[str, Any] = {}
        if hasattr(self._flow, "_ai_component"):
            retrying = {name: options.pop(name) for name in ENGINE_OPTIONS if name in options}
        given = {name: options.pop(name) for name in AGENT_OPTIONS if name in options}
        agent = Agent.of(make_tool, **given) if given.get("tools") is not None else None
        if agent is None and given:
            raise TypeError(f"'{min(given)}' needs 'tools'")
        _check_options(options)
        self._backends_for(options)

        def decorate(function: PromptFunction) -> Callable[..., asyncio.Future[Any]]:
            return self._decorate(function, options, retrying, agent)

        return decorate if function is None else decorate(function)

    def _decorate(
        self,
        function: PromptFunction,
        options: dict[str, Any],
        retrying: dict[str, Any],
        agent: Agent | None,
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
            self._backends_for(options)

        _check_once(options, retrying)

        async def body(args: Any, kwargs: Any, merged: Any) -> Any:
            task = _make_task(await function(*args, **kwargs), merged, name)
            texts = [task["prompt"], task["system_prompt"]]
            refuse_formatted_tasks(name, texts, self._flow.components.__contains__)
            _check_once(task, retrying)
            return await self._run(name, task, merged, agent)

        component = self._component(body, name, retrying)

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
            _check_once(merged, retrying)
            self._pick(merged)
            future: asyncio.Future[Any] = component(args, kwargs, merged, **engine_kwargs)
            return future

        return submit

    def _component(
        self, body: PromptFunction, name: str, retrying: dict[str, Any]
    ) -> Callable[..., asyncio.Future[Any]]:
        """Make a component of the engine, which takes arguments that contain futures."""
        body.__name__ = name
        own_kind = getattr(self._flow, "_ai_component", None)
        if own_kind is not None:
            made: Callable[..., asyncio.Future[Any]] = own_kind(**retrying)(body)
            return made

        async def waiting_body(arguments: _Arguments) -> Any:
            try:
                return await body(*await arguments.values(name))
            except (asyncio.CancelledError, KeyboardInterrupt, SystemExit):
                raise
            except BaseException as error:  # the stock engine ends a block on an Exception only
                raise as_exception(error) from error.__cause__

        waiting_body.__name__ = name
        block = self._flow.block(waiting_body)

        def component(*args: Any, **engine_kwargs: Any) -> asyncio.Future[Any]:
            future: asyncio.Future[Any] = block(_Arguments(args), **engine_kwargs)
            return future

        return component

    def _backends_for(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Return the backends, by name, that fit these options; none in a dry run."""
        flow = self._flow
        if flow.dry_run:
            return {}
        backends = {
            name: backend
            for name, backend in flow._backends.items()
            if callable(getattr(backend, "run_one", None)) and PROMPT in accepted_kinds(backend)
        }
        names = ", ".join(f"'{name}'" for name in backends) or "none"
        name, model = options.get("backend"), options.get("model")
        if name is not None and name not in backends:
            fault = "cannot run prompts" if name in flow._backends else "is not in the engine"
            raise ConfigurationError(f"backend '{name}' {fault}; these can: {names}")
        if not backends:
            raise ConfigurationError(
                "no backend of the engine runs prompts; create the engine with an inference "
                "backend too: WorkflowEngine.create(backend=[compute, inference])"
            )
        if name is not None:
            backends = {name: backends[name]}
        kind = options.get("kind") or GENERATE
        able = backends_for_ai_kind(backends.values(), kind)
        if not able:
            every = [b for b in flow._backends.values() if callable(getattr(b, "run_one", None))]
            others = ", ".join(f"'{b.name}'" for b in backends_for_ai_kind(every, kind)) or "none"
            tried = ", ".join(f"'{name}'" for name in backends)
            raise ConfigurationError(
                f"{tried} cannot run an AI task of kind '{kind}'; these can: {others}"
            )
        backends = {name: backend for name, backend in backends.items() if backend in able}
        if model is None:
            return backends
        served = {name: getattr(backend, "model_name", model) for name, backend in backends.items()}
        if model not in served.values():
            models = ", ".join(f"'{served[name]}' by '{name}'" for name in served)
            raise ConfigurationError(f"no backend serves the model '{model}'; served: {models}")
        return {name: backends[name] for name in backends if served[name] == model}

    def _pick(self, options: Mapping[str, Any]) -> Any:
        """Return the backend for these options; None in a dry run."""
        backends = self._backends_for(options)
        if len(backends) > 1 and options.get("model") is None:
            names = ", ".join(f"'{name}'" for name in backends)
            raise ConfigurationError(
                f"several backends run prompts ({names}); name one: ai_task(backend=...)"
            )
        return next(iter(backends.values()), None)

    async def _run(
        self, name: str, task: AITask, options: Mapping[str, Any], agent: Agent | None
    ) -> Any:
        fields = {**options, **task}
        backend = self._pick(fields)
        if backend is None:
            return _placeholder(fields)
        if task.get("tools") is not None:
            agent = Agent.of_task(make_tool, task)
        respond = partial(self._respond, name, backend)
        if agent is None:
            result = await respond(fields)
        else:
            conversation = self._conversation()
            task.update(messages=conversation.messages, tool_calls=conversation.calls)
            result = await agent.run(fields, respond, conversation)
        task.update(result, state="DONE")
        return task["parsed" if is_model_class(fields.get("response_format")) else "response"]

    def _conversation(self) -> Conversation:
        """Return the conversation of the component whose body runs, of all its attempts."""
        machine: Any = getattr(self._flow, "_machine", None)
        component = machine.bodies.current.get() if machine is not None else None
        if component is None:
            return Conversation()
        if component.conversation is None:
            component.conversation = Conversation()
        conversation: Conversation = component.conversation
        component.description["messages"] = conversation.messages
        component.description["tool_calls"] = conversation.calls
        return conversation

    async def _respond(self, name: str, backend: Any, fields: dict[str, Any]) -> dict[str, Any]:
        """Return the result fields of a prompt, from the engine's journal if it has them."""
        asked = fields
        attempt = getattr(self._flow, "_current_attempt", lambda: None)()
        if attempt is not None and hasattr(backend, "active_records"):
            asked = {**fields, ATTEMPT_KEY: attempt}
        machine: Any = getattr(self._flow, "_machine", None)
        journal = getattr(machine, "journal", None)
        stock_journal: StockJournal | None = getattr(self._flow, "_stock_journal", None)
        run: Callable[[], Coroutine[Any, Any, dict[str, Any]]] = partial(backend.run_one, asked)
        if stock_journal is not None:
            return await stock_journal.run_prompt(name, fields, backend, run)
        if machine is not None and machine.walltime is not None:
            component = machine.bodies.current.get()
            run = partial(machine.walltime.run_prompt, component, backend.name, fields, run)
        if journal is None:
            return await run()
        result: dict[str, Any] = await journal.run_prompt(
            machine.bodies.current.get(), fields, backend, run
        )
        return result


def _check_options(options: Mapping[str, Any]) -> None:
    for name in options:
        if name not in OPTIONS:
            known = OPTIONS | set(AGENT_OPTIONS) | set(ENGINE_OPTIONS)
            raise TypeError(unknown_name("ai_task option", name, known))
    AITask(("-", "-") if options.get("kind") == SCORE else "-", uid="ai_task", **options)


def _check_once(options: Mapping[str, Any], retrying: Mapping[str, Any]) -> None:
    if options.get("on_text") is not None and retrying.get("retries"):
        raise TypeError(
            "'retries' and 'on_text' exclude each other: a retry would repeat the text that "
            "'on_text' has already received; leave one out"
        )


def _described(description: Any) -> dict[str, Any]:
    if description is None:
        return {}
    if not isinstance(description, Mapping):
        raise TypeError(
            f"'task_description' must be a dict of options, got {type(description).__name__}"
        )
    _check_options(description)
    return dict(description)


def _make_task(prompt: Any, options: Mapping[str, Any], name: str) -> AITask:
    if isinstance(prompt, AITask):
        return prompt
    if prompt is None:
        raise TaskValidationError(name, "its function returned None, not a prompt")
    return AITask(prompt, uid=name, **options)


def _placeholder(task: Mapping[str, Any]) -> Any:
    """Return a response of the right shape: one for each prompt, or a list if `n` is above 1."""
    kind = task.get("kind") or GENERATE
    if kind != GENERATE:
        inputs, single = pooling_inputs(kind, task["prompt"])
        rows = [bytes(4)] * len(inputs)  # one number, 0
        return pooling_result(kind, rows, [[DRY_RUN_RESPONSE]] * len(inputs), single=single)
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


class _Arguments:
    """Arguments hidden from the stock engine, which finds only futures that are not nested."""

    def __init__(self, arguments: tuple[Any, ...]) -> None:
        self._arguments, self._futures = find_futures(arguments)

    async def values(self, name: str) -> Any:
        """Wait for all futures in the arguments, and return the arguments with their values.

        Args:
            name: The name of the task, for errors.

        Raises:
            DependencyFailureError: A future failed.
            asyncio.CancelledError: A future was cancelled; the task is cancelled too.
        """
        futures = self._futures
        if not futures:
            return self._arguments
        await asyncio.wait(futures)
        needed = required(futures)
        if any(future.cancelled() for future in needed):
            raise asyncio.CancelledError(f"a task that '{name}' depends on was cancelled")
        failure = dependency_failure(name, needed)
        if failure is not None:
            raise failure
        return with_values(self._arguments)
