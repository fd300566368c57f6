"""The journal as an engine or a session uses it: finds the results of calls, and records new ones.

All methods are called in the owner's thread, and none blocks: the writer thread uses the file.
"""

from __future__ import annotations

import asyncio
import logging
import os
import pickle
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from rhapsody.errors import JournalError, describe_error
from rhapsody.journal.functions import JournaledFunctions
from rhapsody.journal.key import (
    Call,
    JournaledFunction,
    Occurrences,
    call_key,
    describe_unstable,
)
from rhapsody.journal.key_thread import KeyThread
from rhapsody.journal.pickles import is_quick, pickled
from rhapsody.journal.prompts import is_of_version
from rhapsody.journal.store import DONE, Entry, Row, Store
from rhapsody.journal.values import UnstableValueError
from rhapsody.journal.writer import Writer

__all__ = ["Journal", "open_journal"]

logger = logging.getLogger(__name__)

Fields = dict[str, Any]
Deliver = Callable[[Fields | None], None]

RESULT_FIELDS = (
    "exit_code",
    "finish_reason",
    "message",
    "model_version",
    "parsed",
    "ranks",
    "response",
    "response_logprobs",
    "return_value",
    "stderr",
    "stdout",
    "usage",
)
"""The fields of a task that a journal keeps."""

LONGEST_REASON = 500


class Journal:
    """The results of finished calls in one file, kept between the runs of a program.

    Opening reads the file, about 0.3 s for 100,000 results; use `open_journal` on a running loop.

    Args:
        path: The file; it is created if it does not exist, for its owner only.
        required: If the file cannot be written any more, for example because the disk is full,
            end the run. False: continue without the journal, with a warning.

    Raises:
        JournalError: The file cannot be used; the message says why.

    Attributes:
        path: The file.
        recalled: How many results were taken from the journal, by the name of the task.
        recorded: How many results were added, by the name of the task.
        on_failure: Called once if the file cannot be written any more and `required` is true, on
            the loop that is given to `bind`.
    """

    def __init__(self, path: str | os.PathLike[str], required: bool = False) -> None:
        store = Store(path)
        try:
            self._done, self._ended = store.load()
            codes = store.codes()
        except BaseException:
            store.close()
            raise
        self.path = store.path
        self.required = required
        self.recalled: Counter[str] = Counter()
        self.recorded: Counter[str] = Counter()
        self.on_failure: Callable[[JournalError], None] | None = None
        self._store = store
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = False
        self._occurrences = Occurrences()
        self._unfinished: Counter[str] = Counter()
        self._waiting: dict[bytes, list[tuple[Call, Deliver]]] = {}
        self._keys = KeyThread()
        self._writer = Writer(store, self._count, self._on_failure)
        self._functions = JournaledFunctions(codes, self._writer.add_code)
        if self._done:
            logger.info("journal %s has the results of %d tasks", self.path, len(self._done))

    def bind(self, loop: asyncio.AbstractEventLoop) -> None:
        """Deliver results and failures on this loop from now on."""
        self._loop = loop

    @property
    def failure(self) -> JournalError | None:
        """Why the file cannot be written any more; None: it can."""
        return self._writer.failure

    @property
    def is_open(self) -> bool:
        """Whether results can be found and recorded."""
        return not self._closed and self._writer.failure is None

    def function(
        self, name: str, kind: str, function: Any, version: str | None = None
    ) -> JournaledFunction:
        """Return the entry of a function.

        Args:
            name: The name of its tasks.
            kind: The kind of its tasks, such as "function".
            function: The function; None: its code does not matter.
            version: Replaces the hash of its code.
        """
        return self._functions.get(name, kind, function, version)

    def call(
        self,
        function: JournaledFunction,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        cache: bool = False,
        encode_future: Any = None,
        earlier: Call | None = None,
    ) -> Call | None:
        """Return the call of a function with these arguments; None if it is not journaled.

        Args:
            function: The function.
            args: Its positional arguments.
            kwargs: Its keyword arguments.
            cache: Equal calls share one result, also in the same run.
            encode_future: Returns bytes for a future among the arguments.
            earlier: The call of an earlier attempt, which is returned if the arguments are equal.
        """
        if not (self.is_open and function.prefix):
            return None
        try:
            base = call_key(function.prefix, args, kwargs, encode_future)
        except UnstableValueError as error:
            function.warn(describe_unstable(function.name, error))
            return None
        return self._made(function, base, cache, earlier)

    async def call_in_thread(
        self,
        function: JournaledFunction,
        describe: Callable[[Any], tuple[Sequence[Any], Mapping[str, Any]]],
        read: Callable[[], Any] = tuple,
        cache: bool = False,
        encode_future: Any = None,
        earlier: Call | None = None,
    ) -> Call | None:
        """Return a call as `call` does, but make its key in another thread.

        Equal calls are numbered in the order of these calls.

        Args:
            function: The function.
            describe: Returns its arguments, positional and by keyword, from what was read.
            read: Reads the files that belong to the key.
            cache: Equal calls share one result, also in the same run.
            encode_future: Returns bytes for a future among the arguments.
            earlier: The call of an earlier attempt, which is returned if the arguments are equal.

        Raises:
            OSError: A file cannot be read.
        """
        if not (self.is_open and function.prefix):
            return None

        def make(found: Any) -> tuple[bytes, Callable[[], bytes]]:
            args, kwargs = describe(found)
            make_base = partial(call_key, function.prefix, args, kwargs, encode_future)
            return make_base(), make_base

        try:
            base, make_base = await self._keys.run(read, make)
        except UnstableValueError as error:
            function.warn(describe_unstable(function.name, error))
            return None
        return self._made(function, base, cache, earlier, make_base)

    def _made(
        self,
        function: JournaledFunction,
        base: bytes,
        cache: bool,
        earlier: Call | None,
        make_base: Callable[[], bytes] | None = None,
    ) -> Call:
        if earlier is not None and earlier.base == base:
            return earlier
        key = base if cache else self._occurrences.next_key(base)
        return Call(key, base, function, cache, make_base)

    def recall(self, call: Call, deliver: Deliver, rerun: str = "") -> bool:
        """Find the result of a call.

        Args:
            call: The call.
            deliver: Called with the result fields, at once or later; or later with None, if the
                call has to run after all.
            rerun: Why the call runs again although the journal may have its result; "": it does
                not.

        Returns:
            False if the call has to run; then `deliver` is not called.
        """
        if call.cache and call.key in self._waiting:  # an equal call runs
            self._waiting[call.key].append((call, deliver))
            return True
        entry = self._done.get(call.key)
        if entry is None or rerun:
            self._done.pop(call.key, None)
            self._start(call)
            if entry is not None:
                call.why = rerun
            return False
        if entry.value is None:
            self._read(call, deliver)
            return True
        fields = self._unpickled(call, entry.value)
        if fields is None:
            self._start(call)
            return False
        self._count_recalled(call)
        deliver(fields)
        return True

    def _count_recalled(self, call: Call) -> None:
        call.recalled = True
        call.make_base = None
        self.recalled[call.function.name] += 1

    def _start(self, call: Call) -> None:
        call.began = time.monotonic()
        self._unfinished[call.function.name] += 1
        state = self._ended.get(call.key)
        if state is not None:
            call.why = "it failed before" if state == "FAILED" else "it was cancelled before"
        if call.cache:
            self._waiting.setdefault(call.key, [])

    def captured_files(self, call: Call) -> list[str]:
        """Return the files that hold the output of a finished executable, if they were captured.

        Args:
            call: A call with the option `capture_stdio`.
        """
        entry = self._done.get(call.key)
        if entry is None or entry.value is None:
            return []
        fields = self._unpickled(call, entry.value) or {}
        return [fields[name] for name in ("stdout", "stderr") if fields.get(name)]

    def _read(self, call: Call, deliver: Deliver) -> None:
        loop = asyncio.get_running_loop()

        def read() -> None:
            try:
                data = self._store.read(call.key)
            except JournalError as error:
                logger.warning("%s", error)
                data = None
            fields = None if data is None else self._unpickled(call, data)
            _call_soon(loop, partial(self._on_read, call, deliver, fields))

        self._writer.call(read)

    def _on_read(self, call: Call, deliver: Deliver, fields: Fields | None) -> None:
        if fields is None:
            if self.recall(call, deliver, rerun="its result cannot be read"):
                return  # an equal call runs already
        else:
            self._count_recalled(call)
        deliver(fields)

    def _unpickled(self, call: Call, data: bytes) -> Fields | None:
        try:
            fields: Fields = pickle.loads(data)
        except Exception as error:
            call.function.warn(
                f"a result of '{call.function.name}' cannot be read from the journal and is "
                f"computed again: {describe_error(error)}",
            )
            return None
        return fields

    def hold(self, call: Call, fields: Mapping[str, Any], then: Callable[[], None]) -> bool:
        """Pickle a large result, and check large arguments, in another thread before a task ends.

        Otherwise the owner could change the result before it is pickled. Arguments that differ
        from those of the key may be what the function got, so its result is not journaled.

        Args:
            call: A running call.
            fields: The fields of its task.
            then: Called on this loop when that is done; may end the task.

        Returns:
            False if both are small and `done` may be called at once.
        """
        kept = _kept(fields)
        if call.data is not None or (call.make_base is None and is_quick(kept)):
            return False
        loop = asyncio.get_running_loop()

        def work() -> None:
            call.data = self._pickled(call, kept) or b""
            _call_soon(loop, then)

        self._writer.call(work)
        return True

    def _pickled(self, call: Call, kept: Fields) -> bytes | None:
        if call.version is not None and not is_of_version(kept, call.version):
            return None  # the weights were replaced after the key was made
        if self._has_changed(call):
            call.function.warn(
                f"an argument of '{call.function.name}' was changed before its task ended, so its "
                "result is not journaled; pass a copy, or silence this with journal=False",
            )
            return None
        try:
            return pickled(kept)
        except Exception as error:
            call.function.warn(
                f"a result of '{call.function.name}' cannot be pickled and is not journaled: "
                f"{describe_error(error)}",
            )
            return None

    def _has_changed(self, call: Call) -> bool:
        make_base, call.make_base = call.make_base, None
        if make_base is None or not self.is_open:
            return False
        try:
            return make_base() != call.base
        except UnstableValueError:
            return True

    def done(self, call: Call, fields: Mapping[str, Any]) -> None:
        """Record the result of a call.

        Args:
            call: A running call.
            fields: The fields of its task.
        """
        if call.data is None:
            call.data = self._pickled(call, _kept(fields))
        data = call.data or None
        ran = getattr(fields.get("execution"), "running_seconds", None)
        self._end(call, DONE, "", data, ran)
        if call.cache:
            if data is not None:
                value = data if len(data) <= 4096 else None
                self._done[call.key] = Entry(value, call.function.number)
            for waiting, deliver in self._waiting.pop(call.key, ()):
                if data is None:
                    self._start(waiting)
                    deliver(None)
                elif not self.recall(waiting, deliver):
                    deliver(None)

    def ended(self, call: Call, state: str, error: BaseException | None = None) -> None:
        """Record that a call failed or was cancelled.

        Args:
            call: A running call.
            state: FAILED or CANCELED.
            error: Why it failed.
        """
        reason = "" if error is None else describe_error(error)[:LONGEST_REASON]
        reason = reason.encode("utf-8", "backslashreplace").decode()  # SQLite takes no surrogates
        self._end(call, state, reason, None)
        waiting = self._waiting.pop(call.key, None) if call.cache else None
        if waiting:  # the next one runs, and the others wait for it
            following, deliver = waiting.pop(0)
            self._start(following)
            self._waiting[call.key] = waiting
            deliver(None)

    def _end(
        self, call: Call, state: str, reason: str, data: bytes | None, ran: float | None = None
    ) -> None:
        name = call.function.name
        began, call.began = call.began, 0.0
        call.make_base = None  # it holds the arguments
        self._unfinished[name] -= 1
        if state == DONE and data is None:
            return
        if state == DONE:
            self.recorded[name] += 1
        seconds = time.monotonic() - began if ran is None else ran  # without the queue
        number, why = call.function.number, call.why
        self._writer.add(Row(call.key, number, state, time.time(), seconds, why, reason, data))

    def forget(self, call: Call) -> None:
        """Say that a call does not wait for an equal one any more, if it does."""
        for waiting in self._waiting.get(call.key, ()):
            if waiting[0] is call:
                self._waiting[call.key].remove(waiting)
                return

    def get_statistics(self) -> dict[str, Any]:
        """Return how many results were taken from the journal, and how many were added."""
        return {"recalled": self.recalled.total(), "recorded": self.recorded.total()}

    def _count(self) -> tuple[Mapping[str, int], Mapping[str, int]]:
        return {k: n for k, n in self._unfinished.copy().items() if n}, self.recalled.copy()

    def _on_failure(self, error: JournalError) -> None:
        if not self.required:
            logger.warning("%s; the run continues without its journal", error)
        elif self._loop is not None and self.on_failure is not None:
            logger.error("%s; the run ends, because its journal is required", error)
            _call_soon(self._loop, partial(self.on_failure, error))

    async def flush(self) -> None:
        """Wait until everything recorded so far is on disk.

        Raises:
            JournalError: The file cannot be written.
        """
        if not self._closed:
            loop = asyncio.get_running_loop()
            written: asyncio.Future[None] = loop.create_future()
            self._writer.call(lambda: _call_soon(loop, partial(_complete, written)))
            await written
        if self._writer.failure is not None:
            raise self._writer.failure

    async def close(self) -> None:
        """Write everything recorded so far and close the file. Idempotent."""
        if not self._closed:
            self._closed = True
            self._writer.stop()
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(None, self._keys.stop)
        await loop.run_in_executor(None, self._writer.join)


async def open_journal(path: str | os.PathLike[str], required: bool = False) -> Journal:
    """Open a journal in a thread; see `Journal`."""
    loop = asyncio.get_running_loop()
    journal = await loop.run_in_executor(None, Journal, path, required)
    journal.bind(loop)
    return journal


def _kept(fields: Mapping[str, Any]) -> Fields:
    return {name: fields[name] for name in RESULT_FIELDS if name in fields}


def _complete(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _call_soon(loop: asyncio.AbstractEventLoop, call: Callable[[], None]) -> None:
    try:
        loop.call_soon_threadsafe(call)
    except RuntimeError:
        logger.debug("the loop of a journal's owner is closed")
