"""The journal of AsyncFlow's own engine: between the engine and its backends."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Coroutine, Mapping
from functools import partial
from types import MethodType
from typing import Any

from asyncflow_ext.recovery.journal import complete
from rhapsody.api.journaling import SessionJournal
from rhapsody.errors import TaskCancelledError
from rhapsody.journal import Journal
from rhapsody.journal.pickles import is_quick
from rhapsody.journal.prompts import prompt_arguments, served_model
from rhapsody.streaming import TextCallback

__all__ = ["StockJournal"]

OPTIONS = ("cache", "inputs", "journal", "outputs", "version")
"""Options of tasks, which the engine's decorators take in a `task_description` only."""


class StockJournal:
    """Recalls and records the results of an engine's tasks.

    It replaces the engine's backends by objects that first look into the journal, and their
    callback by one that first records what the engine is told.

    Args:
        flow: An engine of `radical.asyncflow`, on its running loop.
        path: The file of the journal.

    Raises:
        JournalError: The journal cannot be used, for example because another program uses it.

    Attributes:
        journal: The open journal.
        recalled: The tasks whose results were recalled, for reports.
    """

    def __init__(self, flow: Any, path: str | os.PathLike[str]) -> None:
        self.journal = Journal(path)
        self.journal.bind(asyncio.get_running_loop())
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._flow = flow
        self._states = flow.task_states_map
        self._tasks: dict[str, Any] = {}
        self._recording = SessionJournal(self.journal, self._deliver)
        self.recalled = self._recording.recalled
        self._handovers: set[asyncio.Task[None]] = set()
        self._left = len(flow._backends)

        def on_state(_: Any, task: Any, state: str, *more: Any) -> None:
            self._on_state(task, state, *more)

        self._callback = on_state  # backends hold callbacks weakly
        for name, backend in flow._backends.items():
            # A method of the engine, which stays the backend's owner.
            backend.register_callback(MethodType(on_state, flow))
            flow._backends[name] = _JournaledBackend(backend, self)

    async def submit(self, backend: Any, tasks: list[Any]) -> None:
        """End tasks whose results are known, and submit the others to their backend."""
        left = []
        for task in tasks:
            try:
                if not self._recall(backend, task):
                    left.append(task)
            except Exception as error:  # otherwise no task of the engine would run any more
                self._tasks.pop(task["uid"], None)
                self._fail(task, error)
        if left:
            await backend.submit_tasks(left)

    def _recall(self, backend: Any, task: Any) -> bool:
        if task.get("is_service"):
            return False
        described = task["task_backend_specific_kwargs"] or {}
        given = {name: described[name] for name in OPTIONS if name in described}
        seen = task
        if given:
            rest = {name: value for name, value in described.items() if name not in given}
            task["task_backend_specific_kwargs"] = rest
            seen = {**task, **given}
        self._tasks[task["uid"]] = (backend, task)
        if self._recording.recall(seen, backend):
            return True
        del self._tasks[task["uid"]]
        return False

    def _deliver(self, seen: Any, fields: Mapping[str, Any] | None) -> None:
        backend, task = self._tasks.pop(seen["uid"])
        if fields is not None:
            task.update(fields, from_journal=True)
            self._flow.task_callbacks(task, self._states.DONE)
            return
        job = self._loop.create_task(self._hand_over(backend, task))
        self._handovers.add(job)
        job.add_done_callback(self._handovers.discard)

    async def _hand_over(self, backend: Any, task: Any) -> None:
        try:
            await backend.submit_tasks([task])
        except Exception as error:
            self._recording.ended(task, self._states.FAILED)
            self._fail(task, error)

    def _fail(self, task: Any, error: Exception) -> None:
        task["exception"] = error
        self._flow.task_callbacks(task, self._states.FAILED)

    def _on_state(self, task: Any, state: str, *more: Any) -> None:
        if threading.get_ident() != self._thread:  # a backend that reports from its own thread
            self._loop.call_soon_threadsafe(self._on_state, task, state, *more)
            return
        fields = task if isinstance(task, dict) else task.as_dict()
        if state in self._states.terminal_states:
            if self._recording.hold(fields, state, lambda: self._on_state(task, state, *more)):
                return
            self._recording.ended(fields, state)
        self._flow.task_callbacks(task, state, *more)

    def withdraw(self, uid: str) -> bool:
        """Cancel a task that waits for the journal; return whether it did."""
        waiting = self._tasks.pop(uid, None)
        if waiting is None:
            return False
        self._recording.ended(waiting[1], self._states.CANCELED)
        self._flow.task_callbacks(waiting[1], self._states.CANCELED)
        return True

    async def run_prompt(
        self,
        name: str,
        fields: Mapping[str, Any],
        backend: Any,
        run: Callable[[], Coroutine[Any, Any, dict[str, Any]]],
    ) -> dict[str, Any]:
        """Return the result fields of an AI task: recalled, or computed and recorded.

        Args:
            name: The name of the AI task.
            fields: The fields of its prompt.
            backend: Its backend.
            run: Sends the prompt.
        """
        journal = self.journal
        function = journal.function(name, "ai", None)
        version = getattr(backend, "model_version", None)  # before the key is made
        arguments = prompt_arguments(served_model(backend), fields)
        if is_quick(arguments):
            call = journal.call(function, arguments, {})
        else:
            call = await journal.call_in_thread(function, lambda _: (arguments, {}))
        if call is None:
            return await run()
        call.version = version
        found: asyncio.Future[Any] = self._loop.create_future()
        if journal.recall(call, partial(complete, found)):
            recalled: dict[str, Any] | None = await found
            if recalled is not None:
                self.recalled.add(name, "ai", {"uid": name, "name": name, **recalled})
                if callable(on_text := fields.get("on_text")):
                    TextCallback(name, on_text)(recalled["response"])
                return recalled
        try:
            result = await run()
        except BaseException as error:
            cancelled = isinstance(error, (asyncio.CancelledError, TaskCancelledError))
            journal.ended(call, "CANCELED" if cancelled else "FAILED", error)
            raise
        journal.done(call, result)
        return result

    async def backend_ended(self) -> None:
        """Close the journal after the shutdown of the last backend."""
        self._left -= 1
        if self._left <= 0:
            await self.journal.close()


class _JournaledBackend:
    """A backend as its engine sees it: tasks with known results do not reach it.

    Args:
        backend: The backend.
        journal: The journal of the engine.
    """

    def __init__(self, backend: Any, journal: StockJournal) -> None:
        self._backend = backend
        self._stock_journal = journal

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    async def submit_tasks(self, tasks: list[Any]) -> None:
        await self._stock_journal.submit(self._backend, tasks)

    async def cancel_task(self, uid: str) -> Any:
        return self._stock_journal.withdraw(uid) or await self._backend.cancel_task(uid)

    async def shutdown(self) -> None:
        await self._backend.shutdown()
        await self._stock_journal.backend_ended()
