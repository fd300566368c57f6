"""The writer thread: groups of rows, their order, and its failures."""

import os
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from rhapsody.errors import JournalError
from rhapsody.journal.store import Row, Store
from rhapsody.journal.writer import Writer

SECONDS = 30.0


class Opened:
    """A store and its writer, with the failures that it reported."""

    def __init__(self, path: Path) -> None:
        self.store = Store(path)
        self.failures: list[JournalError] = []
        self.writer = Writer(self.store, lambda: ({}, {}), self.failures.append)

    def write(self, number: int, value: bytes = b"value") -> bytes:
        key = b"%016d" % number
        self.writer.add(Row(key, 1, "DONE", 1.0, 0.5, "it is new", "", value))
        return key

    def wait(self) -> None:
        """Wait until the thread has processed everything so far."""
        reached = threading.Event()
        self.writer.call(reached.set)
        assert reached.wait(SECONDS)


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Opened]:
    made = Opened(tmp_path / "run.journal")
    yield made
    made.writer.stop()
    made.writer.join(SECONDS)


def add(read: list[bytes | None], store: Store, key: bytes) -> None:
    read.append(store.read(key))


def test_call_runs_after_earlier_rows_were_committed(opened: Opened) -> None:
    read: list[bytes | None] = []
    keys = [opened.write(number) for number in range(3)]
    for key in keys:
        opened.writer.call(partial(add, read, opened.store, key))
    opened.wait()
    assert read == [b"value"] * 3


def test_rows_are_committed_together(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    write = opened.store.write

    def count(rows: list[Row], *args: object) -> None:
        sizes.append(len(rows))
        write(rows, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(opened.store, "write", count)
    for number in range(1000):
        opened.write(number)
    opened.wait()
    assert sum(sizes) == 1000
    assert len(sizes) < 100


def test_stop_commits_rows_and_closes_the_file(tmp_path: Path) -> None:
    opened = Opened(tmp_path / "run.journal")
    key = opened.write(1)
    opened.writer.stop()
    opened.writer.join(SECONDS)
    again = Store(tmp_path / "run.journal")
    assert again.read(key) == b"value"
    again.close()


def test_failure_is_reported_once_and_the_thread_lives_on(opened: Opened) -> None:
    opened.wait()
    pages = opened.store._database.execute("PRAGMA page_count").fetchone()[0]
    opened.store._database.execute(f"PRAGMA max_page_count = {pages}")
    for number in range(2):
        opened.write(number, os.urandom(100_000))
        opened.wait()
    assert ["disk is full" in str(error) for error in opened.failures] == [True]
    assert opened.writer.failure is opened.failures[0]


def test_call_that_raises_does_not_end_the_thread(
    opened: Opened, caplog: pytest.LogCaptureFixture
) -> None:
    opened.writer.call(lambda: 1 // 0)  # type: ignore[arg-type]
    opened.wait()
    assert "run.journal" in caplog.text
