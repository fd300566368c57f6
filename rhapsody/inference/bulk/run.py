"""A run of many requests from a file: a bounded number at a time, with a result for each."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterable, AsyncIterator, Callable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from rhapsody.errors import (
    PartialFailureError,
    PromptError,
    ReplicaError,
    UnsupportedTaskError,
)
from rhapsody.inference.bulk.lines import LineError, error_line, read_request, response_line
from rhapsody.inference.bulk.results import Result
from rhapsody.inference.bulk.window import Window

__all__ = [
    "AT_ONCE",
    "MAX_LINE_BYTES",
    "PRIORITY",
    "BulkRun",
    "Finished",
    "Target",
    "count_requests",
    "ending_error",
    "has_request",
    "read_lines",
]

AT_ONCE = 2048
"""Lines in progress, so that memory does not grow with the file."""
PRIORITY = -10
"""Somebody may use the same servers interactively."""
MAX_LINE_BYTES = 64 * 1024 * 1024
"""A longer line is an error. It is not kept in memory."""
LINES_AT_A_TIME = 64

LINE_ERRORS = (LineError, PromptError, PartialFailureError, UnsupportedTaskError)
"""Errors of one request. Others end the run: no server is left, or the file cannot be written."""


def ending_error(error: BaseException) -> BaseException:
    """Return the error of a lost server if it is among those of a list of prompts, else the error.

    A request that was answered in part because a server was lost must be sent again.
    """
    errors = error.errors if isinstance(error, PartialFailureError) else ()
    return next((one for one in errors if isinstance(one, ReplicaError)), error)


class Target(Protocol):
    """What answers the requests."""

    def model_for(self, name: Any) -> str:
        """Return the model for a request.

        Args:
            name: The model that the request names; None: it names none.

        Raises:
            LineError: There is no such model.
        """

    async def run(self, model: str, task: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the result fields of a task.

        Args:
            model: The model.
            task: The fields of an AI task.
        """


class Finished:
    """The ids of requests that have a result from an earlier run.

    Args:
        retry_errors: Whether requests whose result is an error are sent again.
    """

    def __init__(self, retry_errors: bool = False) -> None:
        self.ids: set[str] = set()
        self.errors = 0
        """Results that are an error and whose requests are not sent again."""
        self._retry_errors = retry_errors

    def take(self, result: Result) -> bool:
        """Note a result of an earlier run, and return whether it stays in the file."""
        is_error = result["error"] is not None
        if self._retry_errors and is_error:
            return False
        self.ids.add(result["custom_id"])
        self.errors += is_error
        return True


class BulkRun:
    """Sends the requests of lines, and writes a line for each.

    Args:
        target: What answers them.
        write: Writes a line of a result; its second argument is whether it is an error.
        finished: The requests that are not sent again.
        url: The only route of the requests; None: each line says it.
        at_once: Lines in progress at a time.
    """

    def __init__(
        self,
        target: Target,
        write: Callable[[str, bool], None],
        finished: Finished,
        *,
        url: str | None = None,
        at_once: int = AT_ONCE,
    ) -> None:
        self._target = target
        self._write = write
        self._finished = finished.ids
        self._url = url
        self._at_once = at_once
        self._seen: set[str] = set()
        self.counts: Counter[str] = Counter()
        """The number of lines that are `done`, are `errors`, or had a result `before`."""

    async def run(self, lines: AsyncIterable[tuple[int, bytes | None]]) -> None:
        """Send all requests. Cancelling this cancels those in progress.

        Args:
            lines: The lines with their numbers, as `read_lines` yields them.

        Raises:
            Exception: No server is left, or a result cannot be written.
        """
        window = Window(self._at_once)
        try:
            async for number, line in lines:
                if has_request(line):
                    window.add(asyncio.create_task(self._handle(number, line)))
                await window.wait_room()
            await window.wait_all()
        finally:
            running = list(window.running)
            for task in running:
                task.cancel()
            if running:
                await asyncio.wait(running)

    async def _handle(self, number: int, text: bytes | None) -> None:
        custom_id = f"line-{number}"
        failed = False
        try:
            line = _parsed(number, text)
            custom_id = self._new_id(number, line)
            if custom_id in self._finished:
                self.counts["before"] += 1
                return
            body = line.get("body")
            model = self._target.model_for(body.get("model") if isinstance(body, dict) else None)
            request = read_request(custom_id, line, model)
            if self._url not in (None, request.url):
                raise LineError(f"'url' must be '{self._url}', that of the batch")
            task = {"uid": f"line-{number}", "priority": PRIORITY, **request.task}
            written = response_line(request, await self._target.run(model, task), model)
        except LINE_ERRORS as error:
            if (ending := ending_error(error)) is not error:
                raise ending from error
            if custom_id in self._finished:
                self.counts["before"] += 1
                return
            written, failed = error_line(custom_id, error), True
        self._write(written, failed)
        self.counts["errors" if failed else "done"] += 1

    def _new_id(self, number: int, line: Mapping[str, Any]) -> str:
        given = line.get("custom_id", f"line-{number}")
        if not isinstance(given, str) or given in self._seen:
            fault = "is used by an earlier line" if given in self._seen else "must be a string"
            raise LineError(f"the 'custom_id' {given!r:.80} of line {number} {fault}")
        self._seen.add(given)
        return given


def has_request(line: bytes | None) -> bool:
    """Return whether a line, as `read_lines` yields it, is not blank."""
    return line is None or bool(line.strip())


def _parsed(number: int, text: bytes | None) -> Mapping[str, Any]:
    if text is None:
        raise LineError(f"line {number} is longer than {MAX_LINE_BYTES} bytes")
    try:
        line = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise LineError(f"line {number} is not JSON: {error}") from None
    if not isinstance(line, dict):
        raise LineError(f"line {number} must be an object, got {line!r:.80}")
    return line


async def count_requests(path: Path) -> int:
    """Return the number of lines of a file that are not blank."""
    return sum([has_request(line) async for _, line in read_lines(path)])


async def read_lines(
    path: Path, limit: int = MAX_LINE_BYTES
) -> AsyncIterator[tuple[int, bytes | None]]:
    """Yield the lines of a file with their numbers from 1; None for a line that is too long.

    Args:
        path: The file, which is read in a thread.
        limit: The largest number of bytes in a line.
    """
    file = await asyncio.to_thread(path.open, "rb")
    try:
        number = 0
        lines = iter(lambda: _read_line(file, limit), b"")
        while part := await asyncio.to_thread(lambda: list(islice(lines, LINES_AT_A_TIME))):
            for line in part:
                number += 1
                yield number, line
    finally:
        file.close()


def _read_line(file: BinaryIO, limit: int) -> bytes | None:
    """Return the next line, b"" at the end of the file, and None for a line that is too long."""
    line = file.readline(limit + 1)
    if len(line) <= limit:
        return line
    while line and not line.endswith(b"\n"):
        line = file.readline(1024 * 1024)
    return None
