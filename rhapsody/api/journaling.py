"""The journal of a session: which results of tasks it recalls, and which it records."""

from __future__ import annotations

import asyncio
import logging
import os
import types
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from rhapsody.api.tasks.base import runs_a_loop
from rhapsody.backends.protocol import (
    EXECUTABLE,
    FUNCTION,
    TaskStates,
    task_kind,
    task_name,
)
from rhapsody.errors import describe_error
from rhapsody.journal.files import FileDigests, missing_files, resolved
from rhapsody.journal.key import Call, JournaledFunction
from rhapsody.journal.options import input_files, key_options
from rhapsody.journal.pickles import is_quick
from rhapsody.journal.prompts import prompt_arguments, served_model
from rhapsody.journal.recorder import Journal
from rhapsody.report.runs import RecalledTasks

__all__ = ["SessionJournal"]

logger = logging.getLogger(__name__)

Task = MutableMapping[str, Any]
Fields = Mapping[str, Any]
Deliver = Callable[[Task, Fields | None], None]


class SessionJournal:
    """Recalls and records the results of a session's tasks.

    Args:
        journal: The open journal.
        deliver: Called with a task and its recalled result fields; or with None, if the task has
            to run after all.

    Attributes:
        journal: The open journal.
        recalled: The tasks whose results were recalled, for reports.
    """

    def __init__(self, journal: Journal, deliver: Deliver) -> None:
        self.journal = journal
        self.recalled = RecalledTasks(journal)
        self._deliver = deliver
        self._calls: dict[str, Call] = {}
        self._functions: dict[tuple[int, str | None], tuple[Any, JournaledFunction]] = {}
        self._prompts: dict[str, JournaledFunction] = {}
        self._files = FileDigests()
        self._jobs: set[asyncio.Task[None]] = set()
        self._waiting: set[str] = set()

    def recall(self, task: Task, backend: Any) -> bool:
        """Find the result of a task that is about to be given to its backend.

        Returns:
            True if `deliver` is called with the task, now or later; False if the task has to run.
        """
        if (
            task.get("journal") is False
            or self.journal.failure is not None
            or task_kind(task) is None
        ):
            return False
        folder = (task.get("task_backend_specific_kwargs") or {}).get("cwd")
        inputs = resolved([*(task.get("inputs") or ()), *input_files(task)], folder)
        outputs = resolved(task.get("outputs") or (), folder)
        self._waiting.add(task["uid"])
        if not inputs and not outputs and not _captures(task) and _has_small_arguments(task):
            if self._find(task, self._call(task, backend)):
                return True
            self._waiting.discard(task["uid"])
            return False
        job = asyncio.get_running_loop().create_task(
            self._recall_in_thread(task, backend, inputs, outputs)
        )
        self._jobs.add(job)
        job.add_done_callback(self._jobs.discard)
        return True

    def _find(self, task: Task, call: Call | None, rerun: str = "") -> bool:
        if call is None:
            return False
        self._calls[task["uid"]] = call
        return self.journal.recall(call, partial(self._on_found, task, call), rerun)

    def _on_found(self, task: Task, call: Call, fields: Fields | None) -> None:
        uid = task["uid"]
        if uid not in self._waiting:  # it was cancelled
            if call.began:
                self.journal.ended(call, TaskStates.CANCELED)
            return
        self._waiting.discard(uid)
        if fields is not None:
            self._calls.pop(uid, None)
            self.recalled.add(uid, task_kind(task), task)
        self._deliver(task, fields)

    async def _recall_in_thread(
        self, task: Task, backend: Any, inputs: list[str], outputs: list[str]
    ) -> None:
        loop = asyncio.get_running_loop()
        call, missing = None, []
        try:
            with suppress(OSError, ValueError):  # the task itself will say what is missing
                call = await self._call_in_thread(task, backend, inputs)
            if call is not None and _captures(task):
                outputs = [*outputs, *self.journal.captured_files(call)]
            missing = await loop.run_in_executor(None, missing_files, outputs)
        except Exception as error:  # of code of the user, such as that of a callable object
            call = None
            logger.error(
                "task %s runs without the journal, which cannot read it: %s",
                task["uid"],
                describe_error(error),
            )
        if task["uid"] not in self._waiting:  # it was cancelled
            return
        rerun = f"its output {missing[0]} is missing" if missing else ""
        if not self._find(task, call, rerun):
            self._waiting.discard(task["uid"])
            self._deliver(task, None)

    def _call(self, task: Task, backend: Any) -> Call | None:
        version = getattr(backend, "model_version", None)  # before the key is made
        args, kwargs = _described(task, backend, ())
        call = self.journal.call(self._function(task), args, kwargs, bool(task.get("cache")))
        if call is not None:
            call.version = version
        return call

    async def _call_in_thread(self, task: Task, backend: Any, inputs: list[str]) -> Call | None:
        version = getattr(backend, "model_version", None)  # before the key is made
        call = await self.journal.call_in_thread(
            self._function(task),
            partial(_described, task, backend),
            partial(self._files.digests, inputs),
            bool(task.get("cache")),
        )
        if call is not None:
            call.version = version
        return call

    def _function(self, task: Task) -> JournaledFunction:
        function, version, kind = task.get("function"), task.get("version"), task_kind(task)
        assert kind is not None  # `recall` has refused it
        name = task_name(task, kind)
        if kind != FUNCTION:
            entry = self._prompts.get(f"{kind} {name} {version}")
            if entry is None:
                entry = self.journal.function(name, kind, None, version)
                self._prompts[f"{kind} {name} {version}"] = entry
            return entry
        known = self._functions.get((id(function), version))
        if known is not None:
            return known[1]
        made = self.journal.function(name, kind, function, version)
        # Methods and partials are new at every use.
        if isinstance(function, types.FunctionType) or hasattr(function, "__wrapped__"):
            self._functions[id(function), version] = (function, made)
        return made

    def hold(self, task: Task, state: str, then: Callable[[], None]) -> bool:
        """Pickle a large result in another thread; the task ends after that.

        Returns:
            False if the task may end at once.
        """
        call = self._calls.get(task["uid"])
        return (
            call is not None
            and state == TaskStates.DONE
            and runs_a_loop()
            and self.journal.hold(call, task, then)
        )

    def ended(self, task: Task, state: str) -> None:
        """Record the end of a task."""
        self._waiting.discard(task["uid"])
        call = self._calls.pop(task["uid"], None)
        if call is None:
            return
        if not call.began:
            self.journal.forget(call)
        elif state == TaskStates.DONE:
            self.journal.done(call, task)
        else:
            self.journal.ended(call, state, task.get("exception"))


def _captures(task: Task) -> bool:
    return bool(task.get("capture_stdio")) and task_kind(task) == EXECUTABLE


def _has_small_arguments(task: Task) -> bool:
    """Return whether the key of a task may be made on the caller's loop."""
    return is_quick([task.get(name) for name in ("args", "kwargs", "arguments", "prompt")])


def _described(
    task: Task, backend: Any, digests: Sequence[bytes]
) -> tuple[Sequence[Any], Mapping[str, Any]]:
    """Return the arguments that the key of a task is made from."""
    kind = task_kind(task)
    options = key_options(task, kind)
    extra: list[Any] = [list(digests), options] if digests or options else []
    if kind == FUNCTION:
        return (*(task.get("args") or ()), *extra), task.get("kwargs") or {}
    if kind == EXECUTABLE:
        command = [os.fspath(task[EXECUTABLE]), *map(str, task.get("arguments") or ())]
        return (command, extra), {}
    return prompt_arguments(served_model(backend), task), {}
