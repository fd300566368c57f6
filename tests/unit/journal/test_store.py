"""The file of a journal: what it keeps, who may use it, and which files are refused."""

import json
import os
import socket
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rhapsody.errors import JournalError
from rhapsody.journal import Journal
from rhapsody.journal import store as store_module
from rhapsody.journal.store import CodeRow, Row, Store

CODE = CodeRow(1, "simulate", "function", b"d" * 16, {"code": "1"}, "program.simulate")


def row(number: int, value: bytes | None = b"value", state: str = "DONE") -> Row:
    return Row(b"%016d" % number, 1, state, 1.0, 0.5, "it is new", "", value)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.journal"


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    opened = Store(path)
    yield opened
    opened.close()


def test_rows_are_there_after_reopening(path: Path) -> None:
    store = Store(path)
    store.write([row(1), row(2, None, "FAILED")], [CODE])
    store.close()
    again = Store(path)
    done, ended = again.load()
    assert {key: entry.value for key, entry in done.items()} == {b"%016d" % 1: b"value"}
    assert ended == {b"%016d" % 2: "FAILED"}
    assert again.codes() == [CODE._replace(results=1)]
    assert again.run == 2
    again.close()


def test_later_end_of_a_call_replaces_the_earlier_one(store: Store) -> None:
    store.write([row(1, None, "FAILED")])
    store.write([row(1, b"new")])
    assert store.read(b"%016d" % 1) == b"new"
    assert store.load()[1] == {}


def test_large_result_is_a_file_of_the_owner(store: Store) -> None:
    value = os.urandom(store_module.LARGEST_ROW + 1)
    store.write([row(1, value)])
    [file] = store.folder.iterdir()
    assert file.read_bytes() == value == store.read(b"%016d" % 1)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(store.folder.stat().st_mode) == 0o700
    assert store.load()[0][b"%016d" % 1].value is None


def test_result_that_is_not_small_is_read_when_it_is_needed(store: Store) -> None:
    value = b"x" * (store_module.LARGEST_LOADED + 1)
    store.write([row(1, value)])
    assert store.load()[0][b"%016d" % 1].value is None
    assert store.read(b"%016d" % 1) == value


def test_missing_or_damaged_result_is_not_read(store: Store) -> None:
    store.write([row(1, os.urandom(store_module.LARGEST_ROW + 1)), row(2)])
    [file] = store.folder.iterdir()
    file.write_bytes(b"other")
    assert store.read(b"%016d" % 1) is None
    file.unlink()
    assert store.read(b"%016d" % 1) is None
    assert store.read(b"%016d" % 9) is None


def test_file_and_folder_of_results_are_for_the_owner_only(store: Store, path: Path) -> None:
    store.write([row(1, os.urandom(store_module.LARGEST_ROW + 1))], [CODE])
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(store.folder.stat().st_mode) == 0o700


def test_second_user_of_a_file_learns_who_has_it(store: Store, path: Path) -> None:
    expected = rf"is in use by process {os.getpid()} on host \S+; wait until that program has ended"
    with pytest.raises(JournalError, match=expected):
        Store(path)


HOLD = """
import sys
from rhapsody.journal.store import Store
store = Store(sys.argv[1])
print("open", flush=True)
sys.stdin.read()
"""


def test_end_of_a_killed_program_is_waited_for(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(path)
    with subprocess.Popen([sys.executable, "-c", ""]) as killed:
        killed.wait()
    owner = {"host": socket.gethostname(), "pid": killed.pid}
    Path(f"{path}.owner").write_text(json.dumps(owner))
    monkeypatch.setattr("time.sleep", lambda _: store._database.close())
    Store(path).close()  # would raise if it did not wait


def test_file_of_a_killed_program_can_be_used(path: Path) -> None:
    program = [sys.executable, "-c", HOLD, str(path)]
    with subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        with pytest.raises(JournalError, match=f"is in use by process {child.pid} on host"):
            Store(path)
        child.kill()
        child.wait()
    again = Store(path)
    assert again.run == 2
    again.close()


def test_file_that_others_can_write_is_refused(path: Path) -> None:
    Store(path).close()
    path.chmod(0o620)
    with pytest.raises(JournalError, match=r"can be written by other users.*chmod go-w"):
        Store(path)


def test_folder_of_results_that_others_can_write_is_refused(path: Path) -> None:
    Store(path).close()
    folder = Path(f"{path}.files")
    folder.mkdir()
    folder.chmod(0o777)
    with pytest.raises(JournalError, match="can be written by other users"):
        Store(path)


def test_file_of_another_user_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Store(path).close()
    monkeypatch.setattr(os, "geteuid", lambda: os.stat(path).st_uid + 1)
    with pytest.raises(JournalError, match="belongs to another user"):
        Store(path)


def test_file_that_is_no_database_is_refused(path: Path) -> None:
    path.write_text("notes, and no journal at all" * 100)
    path.chmod(0o600)
    with pytest.raises(JournalError, match="is not a journal; choose another file"):
        Store(path)


def test_database_of_another_program_is_refused(path: Path) -> None:
    database = sqlite3.connect(path)
    database.execute("CREATE TABLE other (a)")
    database.commit()
    database.close()
    with pytest.raises(JournalError, match="is the database of another program"):
        Store(path)


@pytest.mark.parametrize(("version", "age"), [(99, "a newer"), (0, "an older")])
def test_other_format_is_refused_with_its_number(path: Path, version: int, age: str) -> None:
    Store(path).close()
    database = sqlite3.connect(path)
    database.execute(f"PRAGMA user_version = {version}")
    database.close()
    with pytest.raises(JournalError, match=rf"written by {age} version .*format {version}"):
        Store(path)


def test_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(JournalError, match="is a folder"):
        Store(tmp_path)


def test_file_that_cannot_be_created_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a file")
    with pytest.raises(JournalError, match="has no folder"):
        Store(tmp_path / "a" / "run.journal")
    with pytest.raises(JournalError, match="cannot be created"):
        Store(tmp_path / ("a" * 300))


def corrupt(path: Path) -> None:
    """Overwrite all pages but the first two."""
    size = path.stat().st_size
    with open(path, "r+b") as file:
        file.seek(8192)
        file.write(b"\xa5" * (size - 8192))


def test_corrupt_page_is_refused_with_advice(path: Path) -> None:
    store = Store(path)
    store.write([row(n, os.urandom(500)) for n in range(200)], [CODE])
    store.close()
    corrupt(path)
    with pytest.raises(JournalError, match=r"is damaged .*restore a copy, or move the file away"):
        Journal(path)


def test_rows_that_cannot_be_written_raise_and_leave_the_file_whole(
    store: Store, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.write([row(1)], [CODE])
    store._database.execute(f"PRAGMA max_page_count = {_pages(store)}")
    with pytest.raises(JournalError, match="the disk is full; free some space"):
        store.write([row(n, os.urandom(50_000)) for n in range(2, 9)])
    assert list(store.load()[0]) == [b"%016d" % 1]


def _pages(store: Store) -> Any:
    return store._database.execute("PRAGMA page_count").fetchone()[0]


def test_file_system_without_wal_gets_a_rollback_journal(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Refusing(sqlite3.Connection):
        def execute(self, sql: str, *args: Any) -> sqlite3.Cursor:
            if sql == "PRAGMA journal_mode = WAL":
                raise sqlite3.OperationalError("disk I/O error")
            return super().execute(sql, *args)

    connect = sqlite3.connect
    monkeypatch.setattr(
        sqlite3, "connect", lambda *args, **kwargs: connect(*args, **kwargs, factory=Refusing)
    )
    store = Store(path)
    assert store._database.execute("PRAGMA journal_mode").fetchone() == ("truncate",)
    store.write([row(1)], [CODE])
    store.close()
    again = Store(path)
    assert list(again.load()[0]) == [b"%016d" % 1]
    again.close()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write every file")
def test_read_only_file_is_refused(path: Path) -> None:
    Store(path).close()
    path.chmod(0o400)
    with pytest.raises(JournalError, match="cannot be written"):
        Store(path)


def test_file_in_a_folder_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(JournalError, match=r"has no folder; make it first: mkdir -p .*/nope"):
        Store(tmp_path / "nope" / "run.journal")
    assert not list(tmp_path.iterdir())
