"""The writer thread of a journal: the only thread that uses the file after it was opened."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Mapping
from typing import Any

from rhapsody.errors import JournalError
from rhapsody.journal.store import CodeRow, Row, Store

__all__ = ["Writer"]

logger = logging.getLogger(__name__)

GATHER_SECONDS = 0.05
"""Longest time that a row waits for others before it is committed."""


class Writer:
    """Commits rows in groups, and runs other uses of the file between the commits.

    Args:
        store: The open file.
        counts: Returns the numbers of unfinished and of recalled calls by name.
        on_failure: Called once, in the writer thread, if the file cannot be written any more.
    """

    def __init__(
        self,
        store: Store,
        counts: Callable[[], tuple[Mapping[str, int], Mapping[str, int]]],
        on_failure: Callable[[JournalError], None],
    ) -> None:
        self._store = store
        self._counts = counts
        self._on_failure = on_failure
        self._items: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._hurry = threading.Event()
        self._codes: list[CodeRow] = []
        self.failure: JournalError | None = None
        self._thread = threading.Thread(target=self._run, name="rhapsody-journal", daemon=True)
        self._thread.start()

    def add(self, row: Row) -> None:
        """Commit a row within `GATHER_SECONDS`."""
        self._items.put(row)

    def add_code(self, code: CodeRow) -> None:
        """Commit a code that this run uses with the next rows."""
        self._items.put(code)

    def call(self, use: Callable[[], None]) -> None:
        """Run a function in the writer thread, after all rows so far were committed."""
        self._items.put(use)
        self._hurry.set()

    def stop(self) -> None:
        """Commit all rows, close the file and end the thread; `join` waits for it."""
        self._items.put(None)
        self._hurry.set()

    def join(self, seconds: float | None = None) -> None:
        """Wait for the end of the thread."""
        self._thread.join(seconds)

    def _run(self) -> None:
        stopped = False
        while not stopped:
            items = [self._items.get()]
            self._hurry.wait(GATHER_SECONDS)
            self._hurry.clear()
            while True:
                try:
                    items.append(self._items.get_nowait())
                except queue.Empty:
                    break
            stopped = self._process(items)
        try:
            self._store.close()
        except JournalError as error:
            self._fail(error)

    def _process(self, items: list[Any]) -> bool:
        """Process items in order; return whether the last one ends the thread."""
        rows: list[Row] = []
        for item in items:
            if isinstance(item, Row):
                rows.append(item)
                continue
            if isinstance(item, CodeRow):
                self._codes.append(item)
                continue
            self._commit(rows)
            rows = []
            if item is None:
                return True
            try:
                item()
            except Exception:
                logger.exception("the journal %s", self._store.path)
        self._commit(rows)
        return False

    def _commit(self, rows: list[Row]) -> None:
        if self.failure is not None or not (rows or self._codes):
            return
        codes, self._codes = self._codes, []
        try:
            self._store.write(rows, codes, *self._counts())
        except JournalError as error:
            self._fail(error)
        except Exception as error:  # the thread must go on: others wait for it
            self._fail(JournalError(self._store.path, f"cannot be written ({error})"))

    def _fail(self, error: JournalError) -> None:
        if self.failure is None:
            self.failure = error
            self._on_failure(error)
