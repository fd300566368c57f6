"""The journal of an engine: which results of components it recalls, and which it records."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from radical.asyncflow import InputFile

from asyncflow_ext.arguments import Tolerated
from asyncflow_ext.component import EXECUTABLE, FUNCTION, PROMPT, Component, Event, Options, Stage
from asyncflow_ext.execution import OwnedTasks
from rhapsody.journal.files import FileDigests, missing_files, resolved
from rhapsody.journal.key import NEW, Call, JournaledFunction
from rhapsody.journal.options import input_files, key_options
from rhapsody.journal.pickles import is_quick
from rhapsody.journal.prompts import prompt_arguments, served_model
from rhapsody.journal.recorder import Journal
from rhapsody.journal.values import ValueHasher
from rhapsody.report.runs import RecalledTasks
from rhapsody.streaming import TextCallback

__all__ = ["ComponentJournal", "complete"]

NO_FILES: tuple[list[str], list[str]] = ([], [])


class ComponentJournal:
    """Recalls and records the results of an engine's components.

    Args:
        journal: The open journal.
        tasks: Owns the asyncio tasks that read files.
        resume: Called with a component that has to run after all.

    Attributes:
        journal: The open journal.
        recalled: The tasks whose results were recalled, for reports.
    """

    def __init__(
        self, journal: Journal, tasks: OwnedTasks, resume: Callable[[Component], None]
    ) -> None:
        self.journal = journal
        self.recalled = RecalledTasks(journal)
        self._tasks = tasks
        self._resume = resume
        self._functions: dict[tuple[int, int], tuple[Options, Any, JournaledFunction]] = {}
        self._files = FileDigests()

    def recall(self, component: Component) -> bool:
        """Find the result of a component that is about to be queued.

        Returns:
            True if the component ends with a recalled result, or will be resumed later.
        """
        options, call = component.options, component.call
        if not options.journal or options.service or self.journal.failure is not None:
            return False
        if isinstance(component.dependencies, Tolerated):
            return False  # the key of a call does not say which of its dependencies failed
        if call is not None:
            if call.began and component.kind == FUNCTION:
                return False  # a later attempt of the same call
            self.journal.forget(call)
        inputs, outputs = self._files_of(component)
        if not inputs and not outputs and not _captures(component):
            arguments = _described(component, ())
            if is_quick(arguments):
                function, cache = self._function(component), options.cache
                self._set_call(
                    component,
                    self.journal.call(function, *arguments, cache, _encode_future, call),
                )
                return self._find(component)
        job = asyncio.Task(
            self._recall_in_thread(component, inputs, outputs), loop=component.get_loop()
        )
        self._tasks.add(job)
        return True

    def _set_call(self, component: Component, call: Call | None) -> None:
        earlier = component.call
        if earlier is not None and earlier is not call and earlier.began:
            self.journal.ended(earlier, "FAILED")  # the next attempt has another command
        component.call = call

    def _find(self, component: Component, rerun: str = "") -> bool:
        call = component.call
        if call is None or call.began:
            return False
        if self.journal.recall(call, partial(self._deliver, component, call), rerun):
            return True
        if not rerun:
            call.why = _cause(component.dependencies) or call.why
        return False

    def _deliver(self, component: Component, call: Call, fields: Mapping[str, Any] | None) -> None:
        if fields is not None:
            component.handle(Event.RECALL, fields)
        elif component.stage == Stage.QUEUED:
            self._resume(component)
        elif component.done():  # it was cancelled while the journal was read
            self.journal.ended(call, "CANCELED")

    async def _recall_in_thread(
        self, component: Component, inputs: list[str], outputs: list[str]
    ) -> None:
        try:
            await self._find_in_thread(component, inputs, outputs)
        except Exception as error:  # for example, a backend that does not exist
            component.handle(Event.FAIL, error)

    async def _find_in_thread(
        self, component: Component, inputs: list[str], outputs: list[str]
    ) -> None:
        loop, attempt = component.get_loop(), component.attempt
        call = None
        with suppress(OSError, ValueError):  # the task itself will say what is missing
            call = await self.journal.call_in_thread(
                self._function(component),
                partial(_described, component),
                partial(self._files.digests, inputs),
                component.options.cache,
                _encode_future,
                component.call,
            )
        if call is not None and _captures(component):
            outputs = [*outputs, *self.journal.captured_files(call)]
        missing = await loop.run_in_executor(None, missing_files, outputs)
        if component.stage != Stage.QUEUED or component.attempt != attempt:
            return
        self._set_call(component, call)
        rerun = f"its output {missing[0]} is missing" if missing else ""
        if not self._find(component, rerun):
            self._resume(component)

    def _files_of(self, component: Component) -> tuple[list[str], list[str]]:
        options, description = component.options, component.description
        metadata = description["metadata"]
        named = input_files(description)
        if not (options.inputs or options.outputs or metadata["input_files"] or named):
            return NO_FILES
        folder = (description["task_backend_specific_kwargs"] or {}).get("cwd")
        args, kwargs = description["args"], description["kwargs"]
        files = (a for a in (*args, *kwargs.values()) if isinstance(a, InputFile) and a.filepath)
        inputs = [*_paths(options.inputs, args, kwargs), *named]
        inputs += [str(file.filepath) for file in files]
        return resolved(inputs, folder), resolved(_paths(options.outputs, args, kwargs), folder)

    async def run_prompt(
        self,
        component: Component,
        fields: Mapping[str, Any],
        backend: Any,
        run: Callable[[], Coroutine[Any, Any, dict[str, Any]]],
    ) -> dict[str, Any]:
        """Return the result fields of an AI task: recalled, or computed and recorded.

        Args:
            component: The AI task, whose body runs.
            fields: The fields of its prompt.
            backend: Its backend.
            run: Sends the prompt.
        """
        options = component.options
        if not options.journal:
            return await run()
        version = getattr(backend, "model_version", None)  # before the key is made
        prompt = prompt_arguments(served_model(backend), fields)
        call = await self._prompt_call(component, (*prompt, list(component.dependencies)))
        self._set_call(component, call)
        if call is None:
            return await run()
        call.version = version
        if not call.began:
            recalled = await self._find_prompt(component, call)
            if recalled is not None:
                if callable(on_text := fields.get("on_text")):
                    TextCallback(component.uid, on_text)(recalled["response"])
                return recalled
        if component.description.get("from_journal"):  # an earlier turn of an agent was recalled
            component.description["from_journal"] = False
        result = await run()
        self.journal.done(call, result)
        return result

    async def _prompt_call(self, component: Component, arguments: Sequence[Any]) -> Call | None:
        function, cache, earlier = (
            self._function(component),
            component.options.cache,
            component.call,
        )
        if is_quick(arguments):
            return self.journal.call(function, arguments, {}, cache, _encode_future, earlier)
        call = await self.journal.call_in_thread(
            function, lambda _: (arguments, {}), tuple, cache, _encode_future, earlier
        )
        if call is not None:
            call.make_base = None  # the body of the task has made the prompt, and has ended
        return call

    async def _find_prompt(self, component: Component, call: Call) -> dict[str, Any] | None:
        found: asyncio.Future[Any] = component.get_loop().create_future()
        self.journal.forget(call)  # an attempt that timed out while it waited
        if not self.journal.recall(call, partial(complete, found)):
            call.why = _cause(component.dependencies) or call.why
            return None
        try:
            recalled: dict[str, Any] | None = await found
        except asyncio.CancelledError:
            self.journal.forget(call)
            raise
        if recalled is not None:
            component.description.setdefault("from_journal", True)
            self.recalled.add(component.uid, component.kind, component.description)
        return recalled

    def _function(self, component: Component) -> JournaledFunction:
        options = component.options
        # One decorator may be applied to several functions.
        key = (id(options), id(component.function))
        known = self._functions.get(key)
        if known is None:
            # The command line or the prompt is the whole result of the function.
            function = component.function if component.kind == FUNCTION else None
            made = self.journal.function(component.name, component.kind, function, options.version)
            known = self._functions[key] = (options, component.function, made)
        return known[2]

    def hold(self, component: Component, fields: Mapping[str, Any], value: Any) -> bool:
        """Pickle a large result in another thread; the component ends after that.

        Returns:
            False if the result is small, and the component may end at once.
        """
        call = component.call
        if call is None or call.recalled:
            return False
        attempt = component.attempt

        def end() -> None:
            if component.attempt == attempt:
                component.handle(Event.SUCCEED, value)
            else:
                call.data = None

        return self.journal.hold(call, _with_value(component, fields, value), end)

    def done(self, component: Component, value: Any) -> None:
        """Record the result of a component."""
        call = component.call
        if call is not None and not call.recalled and call.began:
            self.journal.done(call, _with_value(component, component.description, value))

    def ended(self, component: Component, state: str, error: BaseException | None = None) -> None:
        """Record that a component failed or was cancelled."""
        call = component.call
        if call is None or call.recalled:
            return
        if call.began:
            self.journal.ended(call, state, error)
        else:
            self.journal.forget(call)


def _paths(
    given: Sequence[str] | Callable[..., Sequence[str]] | None,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
) -> Sequence[str]:
    if given is None:
        return ()
    return given(*args, **kwargs) if callable(given) else given


def _with_value(component: Component, fields: Mapping[str, Any], value: Any) -> Mapping[str, Any]:
    """Return the fields of a task with its value, which backends may report elsewhere."""
    key = "stdout" if component.kind in (EXECUTABLE, PROMPT) else "return_value"
    return fields if key in fields else {**fields, key: value}


def _described(
    component: Component, digests: Sequence[bytes]
) -> tuple[Sequence[Any], Mapping[str, Any]]:
    """Return the arguments that the key of a component is made from."""
    description = component.description
    options = key_options(description, component.kind)
    extra: list[Any] = [list(digests), options] if digests or options else []
    if component.kind == FUNCTION:
        args, kwargs = component.arguments or (description["args"], description["kwargs"])
        return ((*args, extra) if extra else args), kwargs
    if component.dependencies:
        extra = [*extra, list(component.dependencies)]
    text = description["prompt"] if component.kind == PROMPT else description["executable"]
    return (text, *description.get("arguments", ()), extra), {}


def _captures(component: Component) -> bool:
    return component.kind == EXECUTABLE and component.options.capture_stdio


def complete(future: asyncio.Future[Any], value: Any) -> None:
    """Set the result of a future, unless it was cancelled meanwhile."""
    if not future.done():
        future.set_result(value)


def _cause(dependencies: Iterable[asyncio.Future[Any]]) -> str:
    """Return why a call has a new key if it is that of a dependency; else ""."""
    for dependency in dependencies:
        call: Call | None = getattr(dependency, "call", None)
        if call is not None and not call.recalled and call.why != NEW:
            return f"{call.function.name}(), which it depends on, ran again"
    return ""


def _encode_future(future: asyncio.Future[Any], hasher: ValueHasher) -> bytes:
    """Encode a dependency by the key of its call, if it has one, and else by its value."""
    call = getattr(future, "call", None)
    if isinstance(call, Call):
        return b"key" + call.key
    return hasher.encode(future.result())
