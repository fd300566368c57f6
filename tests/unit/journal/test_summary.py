"""The summary of a journal: its runs, its tasks, and why they ran again."""

import csv
import io
import os
import sqlite3
from pathlib import Path

import pytest

from rhapsody.errors import JournalError
from rhapsody.journal.store import LARGEST_ROW, CodeRow, Row, Store
from rhapsody.journal.summary import summarize, vacuum, write_csv

CODES = [
    CodeRow(1, "simulate", "function", b"a" * 16, {}, "program.simulate"),
    CodeRow(2, "simulate", "function", b"b" * 16, {}, "program.simulate"),
    CodeRow(3, "report", "function", b"c" * 16, {}, "program.report"),
    CodeRow(4, "simulate", "function", b"d" * 16, {}, "other.simulate"),
]


def row(number: int, code: int, state: str = "DONE", why: str = "it is new") -> Row:
    value = b"v" * 10 if state == "DONE" else None
    reason = "OSError: broken" if state == "FAILED" else ""
    return Row(b"%016d" % number, code, state, 1.0, 0.5, why, reason, value)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "run.journal"
    store = Store(path)
    rows = [row(1, 1), row(2, 1), row(3, 2, why="its code changed: global SCALE changed")]
    store.write([*rows, row(4, 3, "FAILED")], CODES, {"report": 2}, {"simulate": 5})
    store.close()
    return path


def test_summary_names_runs_tasks_reasons_and_failures(path: Path) -> None:
    text = summarize(path)
    assert f"process {os.getpid()}, ended after" in text
    assert "5 from the journal, 2 unfinished" in text
    assert "1 simulate: its code changed: global SCALE changed" in text
    assert "1 report: OSError: broken" in text
    assert ["simulate", "DONE", "3", "1.5", "30"] in [line.split() for line in text.splitlines()]


def test_reason_of_several_lines_is_one_line(path: Path) -> None:
    store = Store(path)
    store.write([row(9, 3, "FAILED")._replace(reason="OSError: first\n\n  second")])
    store.close()
    assert "1 report: OSError: first second" in summarize(path)


def test_journal_in_use_is_read(path: Path) -> None:
    store = Store(path)
    store.write([row(9, 2, why="it failed before")])
    assert "1 simulate: it failed before" in summarize(path)
    store.close()


def test_csv_has_a_line_for_each_task(path: Path) -> None:
    file = io.StringIO()
    write_csv(path, file)
    lines = list(csv.DictReader(io.StringIO(file.getvalue())))
    assert [line["state"] for line in lines] == ["DONE"] * 3 + ["FAILED"]
    assert lines[2]["why"] == "its code changed: global SCALE changed"


def use(path: Path, *codes: int, end: str = "ended") -> None:
    """Open the journal in a run that uses codes by their numbers."""
    store = Store(path)
    store.write([], [CODES[number - 1] for number in codes])
    store.close(end)


def left(path: Path) -> list[int]:
    """Return the numbers of the codes that have results."""
    store = Store(path)
    codes = [code.number for code in store.codes() if code.results]
    store.close("looked")
    return codes


def test_vacuum_removes_results_of_older_code_and_their_files(path: Path) -> None:
    store = Store(path)
    store.write([row(5, 1)._replace(value=os.urandom(LARGEST_ROW + 1))])
    store.close()
    use(path, 2, 3)
    assert vacuum(path) == 3
    assert left(path) == [2]
    store = Store(path)
    assert list(store.folder.iterdir()) == []
    store.close()


def test_vacuum_keeps_results_of_another_function_of_the_same_name(path: Path) -> None:
    store = Store(path)
    store.write([row(6, 4)], CODES)
    store.close()
    use(path, 2, 4)
    use(path, 2)  # this run did not come to the other function
    assert vacuum(path) == 2
    assert left(path) == [2, 4]


def test_vacuum_removes_newer_code_if_a_change_was_undone(path: Path) -> None:
    use(path, 1)
    assert vacuum(path) == 1
    assert left(path) == [1]


def test_vacuum_removes_nothing_by_a_run_that_was_killed(path: Path) -> None:
    use(path, 2, end="was killed")
    assert vacuum(path) == 0
    assert left(path) == [1, 2]


def test_missing_file_is_refused(tmp_path: Path) -> None:
    for use in (summarize, vacuum):
        with pytest.raises(JournalError, match="does not exist"):
            use(tmp_path / "none")


def test_other_database_is_refused(tmp_path: Path) -> None:
    database = sqlite3.connect(tmp_path / "other")
    database.execute("CREATE TABLE other (a)")
    database.close()
    with pytest.raises(JournalError, match="is the database of another program"):
        summarize(tmp_path / "other")
