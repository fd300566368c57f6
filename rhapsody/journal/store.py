"""The file of a journal: an SQLite database that belongs to one program at a time.

Rows are written by one thread. A commit holds all rows that gathered since the last one, because
the time of a commit, some tens of milliseconds on a parallel file system, does not depend on its
size. Results above `LARGEST_ROW` bytes are files in a folder beside the database.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import socket
import sqlite3
import stat
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from rhapsody.errors import JournalError
from rhapsody.validation import checked_path

__all__ = ["CodeRow", "Entry", "Row", "Store", "check_database"]

FORMAT = 2
APPLICATION_ID = 0x52485044
LARGEST_ROW = 1 << 20
"""Results above this many bytes are files."""
LARGEST_LOADED = 4096
"""Results up to this many bytes are loaded when a journal is opened."""
MOST_LOADED = 256 << 20
"""The most bytes of results that are loaded when a journal is opened."""

DONE = "DONE"

SCHEMA = """
CREATE TABLE run (
    id INTEGER PRIMARY KEY, host TEXT, pid INTEGER, began REAL, ended REAL, last REAL,
    unfinished TEXT, recalled TEXT, end TEXT);
CREATE TABLE code (
    id INTEGER PRIMARY KEY, name TEXT, kind TEXT, digest BLOB, parts TEXT, origin TEXT,
    used INTEGER, UNIQUE (name, kind, digest));
CREATE TABLE result (
    key BLOB PRIMARY KEY, code INTEGER, state TEXT, run INTEGER, ended REAL, seconds REAL,
    why TEXT, reason TEXT, size INTEGER, crc INTEGER, file TEXT, value BLOB);
"""


ENDING_SECONDS = 5.0
"""How long the threads of a killed program may keep the file, for example in a slow `fsync`."""

DISK_FULL = "cannot be written because the disk is full; free some space"

NO_LINKS = getattr(os, "O_NOFOLLOW", 0)
"""Another user may have put a link to a file of this user in a shared folder."""


class Entry(NamedTuple):
    """A finished call in the journal.

    Attributes:
        value: The pickled result. None: it has to be read from the file.
        code: The number of its code.
    """

    value: bytes | None
    code: int


class CodeRow(NamedTuple):
    """The code of a function.

    Attributes:
        number: Its number in the file.
        name: The name of the function's tasks.
        kind: The kind of its tasks.
        digest: The hash of the code.
        parts: The hash of each part, by its description.
        origin: The module and the qualified name of the function, which tell functions of one
            name apart; "": it has none.
        results: How many results are of this code; only of codes that were read from the file.
    """

    number: int
    name: str
    kind: str
    digest: bytes
    parts: Mapping[str, str]
    origin: str = ""
    results: int = 0


class Row(NamedTuple):
    """A call that has ended.

    Attributes:
        key: The key of the call.
        code: The number of its code.
        state: DONE, FAILED or CANCELED.
        ended: When, in seconds since the epoch.
        seconds: How long the call took.
        why: Why it ran in this run.
        reason: Why it failed; "" for any other end.
        value: The pickled result of a DONE call.
    """

    key: bytes
    code: int
    state: str
    ended: float
    seconds: float
    why: str
    reason: str
    value: bytes | None


class Store:
    """An open journal file. Only one thread may use it at a time.

    Args:
        path: The file; it is created if it does not exist, for its owner only.

    Raises:
        ConfigurationError: The path is none.
        JournalError: The file is in use, belongs to another user, can be written by others, is
            damaged, is no journal, or has another format; the message says which.

    Attributes:
        path: The file.
        run: The number of this run.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.path.abspath(checked_path("journal", path))
        self.folder = Path(f"{self.path}.files")
        _create(self.path)
        _check_owner(self.path)
        for beside in (f"{self.path}-wal", f"{self.path}-journal", str(self.folder)):
            if os.path.lexists(beside):
                _check_owner(beside)
        self._owner_file = f"{self.path}.owner"
        with self._explained():
            self._database = sqlite3.connect(
                self.path, timeout=0, isolation_level=None, check_same_thread=False
            )
        try:
            with self._explained():
                self._open_when_free()
        except BaseException:
            self._database.close()
            raise

    def _open_when_free(self) -> None:
        """Open the file; if the program that used it was killed, wait until it has ended."""
        deadline = time.monotonic() + ENDING_SECONDS
        while True:
            try:
                return self._open()
            except sqlite3.OperationalError as error:
                waits = _is_busy(error) and _has_been_killed(self._owner())
                if not waits or time.monotonic() > deadline:
                    raise
            time.sleep(0.02)

    def _owner(self) -> dict[str, Any]:
        """Return the host and the pid of the program that uses the file; empty if unknown."""
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
            held = json.loads(Path(self._owner_file).read_text())
            return {"host": str(held["host"]), "pid": int(held["pid"])}
        return {}

    def _open(self) -> None:
        database = self._database
        database.execute("PRAGMA locking_mode = EXCLUSIVE")
        try:
            # An exclusive lock makes WAL work without shared memory, also on network file systems.
            database.execute("PRAGMA journal_mode = WAL").fetchone()
            database.execute("BEGIN IMMEDIATE").execute("COMMIT")
        except sqlite3.OperationalError as error:
            if _is_busy(error):
                raise
            database.execute("PRAGMA journal_mode = TRUNCATE").fetchone()
        database.execute("PRAGMA synchronous = FULL")
        database.execute("BEGIN IMMEDIATE")
        if database.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0:
            database.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            database.execute(f"PRAGMA user_version = {FORMAT}")
            for statement in filter(str.strip, SCHEMA.split(";")):
                database.execute(statement)
        check_database(database, self.path)
        host, pid, now = socket.gethostname(), os.getpid(), time.time()
        database.execute(
            "UPDATE run SET end = 'was killed', ended = last WHERE ended IS NULL",
        )
        cursor = database.execute(
            "INSERT INTO run (host, pid, began, last) VALUES (?, ?, ?, ?)", (host, pid, now, now)
        )
        self.run = cursor.lastrowid or 0
        database.execute("COMMIT")
        text = json.dumps({"host": host, "pid": pid})
        descriptor = os.open(
            self._owner_file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | NO_LINKS, 0o600
        )
        with os.fdopen(descriptor, "w") as file:
            file.write(text)

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """Turn errors of SQLite into sentences."""
        try:
            yield
        except sqlite3.Error as error:
            raise JournalError(self.path, self._explain(error)) from error

    def _explain(self, error: sqlite3.Error) -> str:
        text = str(error)
        if _is_busy(error):
            held = self._owner()
            owner = f" by process {held['pid']} on host {held['host']}" if held else ""
            return f"is in use{owner}; wait until that program has ended, or use another file"
        if "not a database" in text:
            return "is not a journal; choose another file"
        if "malformed" in text:
            return (
                "is damaged (a page of the file is corrupt); restore a copy, or move the file away "
                "to start anew"
            )
        if "readonly" in text:
            return "cannot be written; make the file and its folder writable, or use another file"
        if "full" in text:
            return DISK_FULL
        return f"cannot be used ({text})"

    def load(self) -> tuple[dict[bytes, Entry], dict[bytes, str]]:
        """Return all calls in the journal.

        Returns:
            The finished calls by key, small results included; and the states of the others.
        """
        done: dict[bytes, Entry] = {}
        other: dict[bytes, str] = {}
        loaded = 0
        with self._explained():
            rows = self._database.execute(
                "SELECT key, code, state, crc, CASE WHEN size <= ? THEN value END FROM result",
                (LARGEST_LOADED,),
            )
            for key, code, state, crc, value in rows:
                if state != DONE:
                    other[key] = state
                elif value is None:
                    done[key] = Entry(None, code)
                elif zlib.crc32(value) == crc:
                    loaded += len(value)
                    done[key] = Entry(value if loaded <= MOST_LOADED else None, code)
        return done, other

    def codes(self) -> list[CodeRow]:
        """Return every code, with the number of its results."""
        with self._explained():
            return [
                CodeRow(number, name, kind, digest, json.loads(parts), origin, results)
                for number, name, kind, digest, parts, origin, results in self._database.execute(
                    "SELECT id, name, kind, digest, parts, origin, count(key) FROM code "
                    "LEFT JOIN result ON result.code = code.id AND state = 'DONE' GROUP BY code.id"
                )
            ]

    def read(self, key: bytes) -> bytes | None:
        """Return a pickled result; None if it is missing or damaged."""
        with self._explained():
            row = self._database.execute(
                "SELECT value, file, crc FROM result WHERE key = ?", (key,)
            ).fetchone()
        if row is None:
            return None
        value, file, crc = row
        if file is not None:
            try:
                value = (self.folder / file).read_bytes()
            except OSError:
                return None
        return value if value is not None and zlib.crc32(value) == crc else None

    def write(
        self,
        rows: Sequence[Row],
        codes: Sequence[CodeRow] = (),
        unfinished: Mapping[str, int] | None = None,
        recalled: Mapping[str, int] | None = None,
    ) -> None:
        """Commit rows, after the files of large results.

        Args:
            rows: Calls that have ended.
            codes: Codes that this run uses.
            unfinished: How many calls of each name have not ended.
            recalled: How many results of each name were taken from the journal.

        Raises:
            JournalError: The rows cannot be written; none of them was.
        """
        with self._explained():
            try:
                stored = [self._stored(row) for row in rows]
            except OSError as error:
                full = error.errno in (errno.ENOSPC, errno.EDQUOT)
                message = DISK_FULL if full else f"cannot be written ({error.strerror})"
                raise JournalError(self.path, message) from error
            database = self._database
            database.execute("BEGIN IMMEDIATE")
            try:
                database.executemany(
                    "INSERT OR REPLACE INTO code VALUES (?, ?, ?, ?, ?, ?, ?)",
                    [
                        (
                            c.number,
                            c.name,
                            c.kind,
                            c.digest,
                            json.dumps(c.parts),
                            c.origin,
                            self.run,
                        )
                        for c in codes
                    ],
                )
                database.executemany(
                    "INSERT OR REPLACE INTO result VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                    stored,
                )
                database.execute(
                    "UPDATE run SET last = ?, unfinished = ?, recalled = ? WHERE id = ?",
                    (time.time(), json.dumps(unfinished), json.dumps(recalled), self.run),
                )
                database.execute("COMMIT")
            except BaseException:
                with contextlib.suppress(sqlite3.Error):
                    database.execute("ROLLBACK")
                raise

    def _stored(self, row: Row) -> tuple[Any, ...]:
        value, file = row.value, None
        size = 0 if value is None else len(value)
        crc = 0 if value is None else zlib.crc32(value)
        if value is not None and size > LARGEST_ROW:
            file = f"{row.key.hex()}-{secrets.token_hex(4)}"
            _write_file(self.folder, file, value)
            value = None
        return (
            row.key,
            row.code,
            row.state,
            self.run,
            row.ended,
            row.seconds,
            row.why,
            row.reason,
            size,
            crc,
            file,
            value,
        )

    def vacuum(self) -> int:
        """Remove results of older code and files without a result, and make the file smaller.

        A code is older if the last run that was not killed used another code of the same
        function, and not this one.

        Returns:
            How many results were removed.
        """
        with self._explained():
            removed = self._database.execute(
                "DELETE FROM result WHERE code IN (SELECT old.id FROM code old JOIN code new "
                "USING (name, kind, origin) WHERE old.used < :run AND new.used >= :run)",
                {"run": self._last_complete_run()},
            ).rowcount
            self._database.execute("VACUUM")
            rows = self._database.execute("SELECT file FROM result WHERE file IS NOT NULL")
            kept = {file for (file,) in rows}
        if self.folder.exists():
            for path in self.folder.iterdir():
                if path.name not in kept:
                    path.unlink()
        return removed

    def _last_complete_run(self) -> int:
        query = "SELECT max(id) FROM run WHERE end = 'ended'"
        return self._database.execute(query).fetchone()[0] or 0

    def close(self, end: str = "ended") -> None:
        """Close the file. Idempotent.

        Args:
            end: How the run ended, in words.
        """
        try:
            with self._explained():
                self._database.execute(
                    "UPDATE run SET ended = ?, end = ? WHERE id = ?", (time.time(), end, self.run)
                )
        finally:
            self._database.close()
            with contextlib.suppress(OSError):
                os.unlink(self._owner_file)


def check_database(database: sqlite3.Connection, path: str) -> None:
    """Check that a database is a journal of this format.

    Raises:
        JournalError: It is not.
    """
    if database.execute("PRAGMA application_id").fetchone()[0] != APPLICATION_ID:
        raise JournalError(path, "is the database of another program; choose another file")
    found = database.execute("PRAGMA user_version").fetchone()[0]
    if found != FORMAT:
        age = "a newer" if found > FORMAT else "an older"
        raise JournalError(
            path,
            f"was written by {age} version of Rhapsody (format {found}; this one reads format "
            f"{FORMAT}); run it with that version, or use another file",
        )


def _has_been_killed(owner: Mapping[str, Any]) -> bool:
    """Return whether a program on this host does not run any more; threads of it may still end."""
    if owner.get("host") != socket.gethostname():
        return False
    try:
        status: str = psutil.Process(owner["pid"]).status()
    except psutil.Error:
        return True
    return status in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)


def _is_busy(error: sqlite3.Error) -> bool:
    return "locked" in str(error) or "busy" in str(error)


def _create(path: str) -> None:
    """Create a file for its owner only, unless it exists."""
    if os.path.isdir(path):
        raise JournalError(path, "is a folder; give the name of a file")
    folder = os.path.dirname(path)
    if not os.path.isdir(folder):
        raise JournalError(path, f"has no folder; make it first: mkdir -p {folder}")
    try:
        if not os.path.exists(path):
            os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
    except OSError as error:
        raise JournalError(path, f"cannot be created ({error.strerror})") from error


def _check_owner(path: str) -> None:
    """Refuse a file whose pickles another user may have written: loading them runs code.

    Raises:
        JournalError: The file belongs to another user, or others may write it.
    """
    found = os.stat(path)
    if found.st_uid != os.geteuid():
        raise JournalError(
            path,
            f"belongs to another user (uid {found.st_uid}), who could make this program run code; "
            "use a file of your own",
        )
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise JournalError(
            path,
            "can be written by other users, who could make this program run code; protect it: "
            f"chmod go-w {path}",
        )


def _write_file(folder: Path, name: str, data: bytes) -> None:
    """Write a file so that it is whole or absent after a crash."""
    if not folder.exists():
        folder.mkdir(mode=0o700)
        _sync_folder(folder.parent)
    part = folder / f"{name}.part"
    try:
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        part.rename(folder / name)
        _sync_folder(folder)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
