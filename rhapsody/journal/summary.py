"""The summary of a journal: what is done, what failed, and why tasks ran again."""

from __future__ import annotations

import csv
import json
import os
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from jinja2 import ChoiceLoader, Environment, PackageLoader

from rhapsody.errors import JournalError
from rhapsody.journal.store import Store, check_database
from rhapsody.report.formatting import format_duration
from rhapsody.report.page import write_file

__all__ = ["Summary", "read_summary", "summarize", "vacuum", "write_csv", "write_html"]

COLUMNS = ("name", "state", "run", "ended", "seconds", "why", "reason", "bytes")

ROWS = """
    SELECT name, state, run, ended, seconds, why, reason, size
    FROM result JOIN code ON result.code = code.id ORDER BY ended
"""
GROUPS = """
    SELECT name, state, count(*), total(seconds), total(size)
    FROM result JOIN code ON result.code = code.id GROUP BY name, state ORDER BY name, state
"""
REASONS = """
    SELECT name, {column}, count(*) FROM result JOIN code ON result.code = code.id
    WHERE {column} != '' {condition} GROUP BY name, {column} ORDER BY count(*) DESC LIMIT 20
"""


def _check_file(path: str | os.PathLike[str]) -> None:
    if not os.path.isfile(path):
        raise JournalError(
            os.fspath(path), "is a directory" if os.path.isdir(path) else "does not exist"
        )


@contextmanager
def _reading(path: str | os.PathLike[str]) -> Iterator[sqlite3.Connection]:
    """Open a copy of a journal: a running program holds the file itself under an exclusive lock."""
    _check_file(path)
    with tempfile.TemporaryDirectory(prefix="rhapsody-journal-") as folder:
        copy = os.path.join(folder, "copy")
        for suffix in ("", "-wal"):
            if os.path.exists(f"{path}{suffix}"):
                shutil.copyfile(f"{path}{suffix}", f"{copy}{suffix}")
        database = sqlite3.connect(copy)
        try:
            check_database(database, os.fspath(path))
            yield database
        except sqlite3.Error as error:
            raise JournalError(os.fspath(path), f"cannot be read ({error})") from error
        finally:
            database.close()


class Summary(NamedTuple):
    """What a journal holds.

    Attributes:
        runs: A sentence for each run.
        groups: For each name and state of tasks: name, state, number, seconds, bytes.
        reasons: Why tasks ran again: name, why, number.
        failures: Why tasks failed: name, why, number.
    """

    runs: list[str]
    groups: list[tuple[str, str, int, float, float]]
    reasons: list[tuple[str, str, int]]
    failures: list[tuple[str, str, int]]


def read_summary(path: str | os.PathLike[str]) -> Summary:
    """Read what a journal holds. The program that uses it may be running.

    Args:
        path: The file.

    Raises:
        JournalError: It is no journal, or it cannot be read.
    """
    with _reading(path) as database:
        reasons, failures = (
            database.execute(REASONS.format(column=column, condition=condition)).fetchall()
            for column, condition in (
                ("why", "AND why != 'it is new'"),
                ("reason", "AND state = 'FAILED'"),
            )
        )
        groups = database.execute(GROUPS).fetchall()
        return Summary(list(_runs(database)), groups, reasons, failures)


def summarize(path: str | os.PathLike[str]) -> str:
    """Return the summary of a journal as text; see `read_summary`."""
    summary = read_summary(path)
    lines = [*summary.runs, ""]
    lines.append(f"{'task':30} {'state':9} {'number':>7} {'seconds':>9} {'bytes':>12}")
    for name, state, number, seconds, size in summary.groups:
        lines.append(f"{name:30.30} {state:9} {number:7} {seconds:9.1f} {size:12.0f}")
    for title, rows in (("Why tasks ran", summary.reasons), ("Failures", summary.failures)):
        if rows:
            lines += ["", f"{title}:"]
            for name, text, number in rows:
                lines.append(f"  {number:6} {name}: {' '.join(str(text).split())}")
    return "\n".join(lines)


def write_html(path: str | os.PathLike[str], page: str | os.PathLike[str]) -> Path:
    """Write the summary of a journal as an HTML page that needs no other file.

    Args:
        path: The file of the journal.
        page: The file of the page; an existing one is replaced.

    Returns:
        The file of the page.

    Raises:
        JournalError: It is no journal, or it cannot be read.
        OSError: The page cannot be written.
    """
    loaders = [PackageLoader("rhapsody.journal", "."), PackageLoader("rhapsody.report", ".")]
    environment = Environment(loader=ChoiceLoader(loaders), autoescape=True)
    environment.filters["duration"] = format_duration
    template = environment.get_template("summary.html.j2")
    title = os.path.basename(path)
    return write_file(page, template.render(title=title, summary=read_summary(path)))


def _runs(database: sqlite3.Connection) -> Iterator[str]:
    query = "SELECT id, host, pid, began, ended, last, unfinished, recalled, end FROM run"
    for number, host, pid, began, ended, last, unfinished, recalled, end in database.execute(query):
        seconds = (ended or last) - began
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(began))
        state = end or "is running or was killed"
        text = f"run {number}: {when}, host {host}, process {pid}, {state} after {seconds:.0f} s"
        counts = (("from the journal", recalled), ("unfinished", unfinished))
        for what, encoded in counts:
            found: dict[str, Any] = json.loads(encoded or "null") or {}
            if total := sum(found.values()):
                text += f", {total} {what}"
        yield text


def write_csv(path: str | os.PathLike[str], file: TextIO) -> None:
    """Write a line for each task of a journal, with a header.

    Args:
        path: The file of the journal.
        file: Where to write.

    Raises:
        JournalError: It is no journal, or it cannot be read.
    """
    writer = csv.writer(file)
    with _reading(path) as database:
        rows = database.execute(ROWS)
        writer.writerow(COLUMNS)
        writer.writerows(rows)


def vacuum(path: str | os.PathLike[str]) -> int:
    """Remove results of older code and files without a result, and make the file smaller.

    Args:
        path: The file of the journal, which no program may use meanwhile.

    Returns:
        How many results were removed.

    Raises:
        JournalError: The journal is in use, or cannot be used.
    """
    _check_file(path)
    store = Store(path)
    try:
        return store.vacuum()
    finally:
        store.close("removed results of older code")
