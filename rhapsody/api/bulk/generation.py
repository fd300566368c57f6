"""Many rows through a model: a task for each row, a bounded number at a time."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from rhapsody.api.bulk.results import OWN_COLUMNS, Finished, RowResults, open_results
from rhapsody.api.bulk.rows import Row, RowError, check_source, read_rows
from rhapsody.api.tasks import AITask
from rhapsody.errors import (
    ConfigurationError,
    PartialFailureError,
    PromptError,
    TaskTimeoutError,
    TaskValidationError,
    UnsupportedTaskError,
)
from rhapsody.inference.bulk.run import AT_ONCE, PRIORITY, ending_error
from rhapsody.inference.bulk.window import Window
from rhapsody.inference.kinds import SCORE, Classification
from rhapsody.validation import must_be

logger = logging.getLogger(__name__)

__all__ = ["Generation", "PromptOf", "RowCounts"]

PromptOf = str | Callable[[Row], Any] | None
"""A template, a function that returns the prompt of a row, or None for the column `prompt`."""
SUBMITTED_TOGETHER = 64

ROW_ERRORS = (
    PartialFailureError,
    PromptError,
    TaskTimeoutError,
    TaskValidationError,
    UnsupportedTaskError,
)
"""Errors of one row. Others end the run: no server is left, or the session is closed."""


class RowCounts(NamedTuple):
    """How many rows there were.

    Attributes:
        done: Rows with a response from this run.
        failed: Rows with an error from this run.
        before: Rows that had a result from an earlier run.
    """

    done: int
    failed: int
    before: int


class TaskOwner(Protocol):
    """The interface of `Session` that a run uses."""

    async def submit_tasks(self, tasks: Sequence[AITask]) -> list[asyncio.Future[Any]]:
        """Submit tasks, and return a future for each."""

    def cancel_soon(self, tasks: Iterable[AITask]) -> None:
        """Ask the backends to cancel tasks."""


class Generation:
    """A run over all rows, see `Session.generate_from`.

    Args:
        owner: The session.
        prompt: How the prompt of a row is made.
        columns: Columns of the rows that go into the results; None: all.
        at_once: Rows in progress at a time.
        in_order: Whether the results are in the order of the rows.
        options: Fields of each task.

    Raises:
        ConfigurationError: An argument has the wrong type.
        TaskValidationError: There is no such field, or its value is invalid.
    """

    def __init__(
        self,
        owner: TaskOwner,
        prompt: PromptOf,
        *,
        columns: Collection[str] | None,
        at_once: int | None,
        in_order: bool,
        options: Mapping[str, Any],
    ) -> None:
        if not (prompt is None or isinstance(prompt, str) or callable(prompt)):
            expected = "a template such as 'Summarise: {text}', or a function of a row"
            raise ConfigurationError(must_be("prompt", expected, prompt))
        at_once = AT_ONCE if at_once is None else at_once
        if not isinstance(at_once, int) or at_once < 1:
            raise ConfigurationError(must_be("at_once", "a whole number of at least 1", at_once))
        if isinstance(columns, str):
            raise ConfigurationError(must_be("columns", "a list of names, or None", columns))
        self._owner = owner
        self._prompt = prompt
        self._columns = columns
        self._absent = set(columns or ())
        """Chosen columns that no row had so far."""
        self._known: tuple[str, ...] = ()
        """The columns of the latest row."""
        self._in_order = in_order
        self._options = {"priority": PRIORITY, **options}
        AITask(("a", "b") if options.get("kind") == SCORE else "a", **self._options)  # checks them
        self._window = Window(at_once)
        self._together: list[tuple[_Place, AITask]] = []
        """Rows that are submitted together, when there are enough or their source waits."""
        self._submitting: set[asyncio.Task[None]] = set()
        self._tasks: dict[asyncio.Future[Any], AITask] = {}
        self._places: deque[_Place] = deque()
        """Rows whose results wait for those of earlier rows, if they are written in order."""
        self._done = self._failed = self._before = 0

    async def run(self, rows: Any, to: str | os.PathLike[str], retry_errors: bool) -> RowCounts:
        """Run a task for each row that has no result yet, and append the results to a file.

        Args:
            rows: The rows, see `read_rows`.
            to: The file of results.
            retry_errors: Whether rows whose result is an error are run again.
        """
        path = Path(to)
        finished = Finished(retry_errors)
        results = await asyncio.to_thread(_open, rows, path, finished)
        if finished.errors:
            logger.warning(
                "Errors of an earlier run in %s: %d. Their rows are not run again; pass "
                "retry_errors=True to run them",
                path,
                finished.errors,
            )
        with contextlib.closing(results):
            running = asyncio.ensure_future(self._run_all(rows, finished, results))
            failing = asyncio.ensure_future(self._window.failed.wait())
            try:
                # The source of the rows may wait for long, and the run has failed meanwhile.
                await asyncio.wait([running, failing], return_when=asyncio.FIRST_COMPLETED)
                if self._window.error is not None:
                    raise self._window.error
                await running
            finally:
                running.cancel()
                failing.cancel()
                await asyncio.gather(running, failing, return_exceptions=True)
                await self._cancel_rest()
            await asyncio.to_thread(results.complete)
        self._log_absent_columns()
        return RowCounts(self._done, self._failed, self._before)

    async def _run_all(self, rows: Any, finished: Finished, results: RowResults) -> None:
        index = -1
        async for row in read_rows(rows):
            index += 1
            if index in finished:
                self._before += 1
                continue
            try:
                kept = self._kept(row)
            except RowError as error:
                row, kept = error, {}
            place = _Place(index, kept, results)
            if self._in_order:
                self._places.append(place)
            if (task := self._task_of(place, row)) is not None:
                self._gather(place, task)
            if not place.written.done():
                self._window.add(place.written)
            # All of them, before it waits: the first row in the window may be among them.
            if len(self._together) == SUBMITTED_TOGETHER or self._window.is_full:
                await self._submit()
            await self._window.wait_room()
        await self._submit()
        await self._window.wait_all()

    def _gather(self, place: _Place, task: AITask) -> None:
        if not self._together:
            # It runs when the source of the rows waits, which may be for long.
            asyncio.get_running_loop().call_soon(self._submit_soon)
        self._together.append((place, task))

    def _submit_soon(self) -> None:
        if self._together:
            submitting = asyncio.get_running_loop().create_task(self._submit())
            self._submitting.add(submitting)
            submitting.add_done_callback(self._submitted)

    def _submitted(self, submitting: asyncio.Task[None]) -> None:
        self._submitting.discard(submitting)
        if not submitting.cancelled() and (error := submitting.exception()) is not None:
            self._window.fail(error)

    def _kept(self, row: Row | RowError) -> Row:
        if isinstance(row, RowError):
            return {}
        names = row if self._columns is None else self._columns
        if clash := [name for name in OWN_COLUMNS if name in names]:
            fault = (
                f"the rows have a column '{clash[0]}', as the results do; rename it, or choose the "
                "columns that go into the results by columns=[...]"
            )
            raise RowError(fault) if self._known else ConfigurationError(fault)
        self._known = tuple(row)
        self._absent.difference_update(row)
        return {name: row[name] for name in names if name in row}

    def _log_absent_columns(self) -> None:
        if self._known and self._absent:
            logger.warning(
                "No row has the column '%s', which 'columns' asks for; the last row has %s",
                min(self._absent),
                ", ".join(map(str, self._known)),
            )

    def _task_of(self, place: _Place, row: Row | RowError) -> AITask | None:
        """Return the task of a row; None if the row has an error, which is its result then."""
        try:
            if isinstance(row, RowError):
                raise row
            return AITask(self._prompt_of(row), **self._options)
        except (RowError, TaskValidationError) as error:
            self._settle(place, None, str(error))
            return None

    def _prompt_of(self, row: Row) -> Any:
        if callable(self._prompt):
            try:
                return self._prompt(row)
            except Exception as error:
                raise RowError(f"the function of the prompt raised {error!r}") from error
        template = "{prompt}" if self._prompt is None else self._prompt
        try:
            return template.format_map(row) if self._prompt is not None else row["prompt"]
        except KeyError as error:
            known = ", ".join(map(str, row))
            raise RowError(f"the row has no column '{error.args[0]}'; it has {known}") from None
        except (ValueError, AttributeError, IndexError, TypeError) as error:
            raise RowError(f"the template does not fit the row: {error}") from None

    async def _submit(self) -> None:
        together, self._together = self._together, []
        if not together:
            return
        futures = await self._owner.submit_tasks([task for _, task in together])
        for future, (place, task) in zip(futures, together, strict=True):
            self._tasks[future] = task
            future.add_done_callback(partial(self._end, place))

    def _end(self, place: _Place, future: asyncio.Future[Any]) -> None:
        task = self._tasks.pop(future)
        error = asyncio.CancelledError() if future.cancelled() else future.exception()
        try:
            if error is None:
                self._settle(place, plain(task["response"]), None)
            elif isinstance(ending := ending_error(error), ROW_ERRORS):
                self._settle(place, None, str(error))
            else:
                self._window.fail(ending)
        except Exception as failure:  # the file cannot be written
            self._window.fail(failure)

    def _settle(self, place: _Place, response: Any, error: str | None) -> None:
        place.outcome = (response, error)
        if not self._in_order:
            self._write(place)
            return
        while self._places and self._places[0].outcome is not None:
            self._write(self._places.popleft())

    def _write(self, place: _Place) -> None:
        if place.write():
            self._done += 1
        else:
            self._failed += 1

    async def _cancel_rest(self) -> None:
        self._together = []
        if self._submitting:
            await asyncio.wait(list(self._submitting))
        left = dict(self._tasks)
        if left:
            self._owner.cancel_soon(left.values())
            await asyncio.wait(left)


class _Place:
    """A row, until its result is written."""

    __slots__ = ("index", "outcome", "results", "row", "written")

    def __init__(self, index: int, row: Row, results: RowResults) -> None:
        self.index = index
        self.row = row
        self.results = results
        self.outcome: tuple[Any, str | None] | None = None
        self.written: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def write(self) -> bool:
        """Write the result, and return whether it is a response."""
        assert self.outcome is not None
        response, error = self.outcome
        try:
            self.results.write(self.index, self.row, response, error)
        except RowError as unfit:
            response, error = None, error or str(unfit)
            self.results.write(self.index, {}, None, error)
        self.written.set_result(None)
        return error is None


def _open(rows: Any, path: Path, finished: Finished) -> RowResults:
    if isinstance(rows, (str, Path)) and Path(rows).resolve() == path.resolve():
        raise ConfigurationError("the results must go to another file than the rows come from")
    check_source(rows)  # before there is a file of results
    return open_results(path, finished)


def plain(response: Any) -> Any:
    """Return a response of any kind as JSON values."""
    if isinstance(response, Classification):
        return response._asdict()
    if isinstance(response, list):
        return [plain(one) for one in response]
    return response.tolist() if hasattr(response, "tolist") else response
