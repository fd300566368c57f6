"""The journal of an owner: calls that are found, recorded, shared and refused."""

import asyncio
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rhapsody.backends.core.execution import Execution
from rhapsody.errors import JournalError
from rhapsody.journal import Journal
from rhapsody.journal.key import Call
from rhapsody.journal.recorder import open_journal


def task(x: int) -> int:
    return x


class Holder:
    """A class whose pickles become unreadable when it is renamed."""


def call(journal: Journal, *args: Any, cache: bool = False, version: str | None = None) -> Call:
    made = journal.call(journal.function("task", "function", task, version), args, {}, cache)
    assert made is not None
    return made


def run(journal: Journal, *args: Any, value: Any = "result", **options: Any) -> bool:
    """Recall the result of a call, or else run it; return whether it was recalled."""
    found: list[Any] = []
    made = call(journal, *args, **options)
    if journal.recall(made, found.append):
        assert found == [{"return_value": value}]
        return True
    journal.done(made, {"return_value": value, "uid": "task.1"})
    return False


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.journal"


async def test_finished_call_is_recalled_in_the_next_run(path: Path) -> None:
    for recalled in (False, True):
        journal = await open_journal(path)
        assert [run(journal, 1), run(journal, 2)] == [recalled] * 2
        await journal.close()
    assert journal.get_statistics() == {"recalled": 2, "recorded": 0}


async def test_equal_calls_are_different_results_in_order(path: Path) -> None:
    for recalled in (False, True):
        journal = await open_journal(path)
        assert [run(journal, 1, value=n) for n in range(5)] == [recalled] * 5
        await journal.close()


@pytest.mark.parametrize("state", ["FAILED", "CANCELED"])
async def test_call_that_did_not_finish_runs_again(path: Path, state: str) -> None:
    journal = await open_journal(path)
    failed = call(journal, 1)
    assert not journal.recall(failed, print)
    journal.ended(failed, state, OSError("broken"))
    await journal.close()
    journal = await open_journal(path)
    again = call(journal, 1)
    assert not journal.recall(again, print)
    assert again.why == ("it failed before" if state == "FAILED" else "it was cancelled before")
    await journal.close()


async def deliver(journal: Journal, made: Call) -> Any:
    """Recall a result that may be read from the file."""
    found: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    assert journal.recall(made, found.set_result)
    return await found


async def test_large_result_is_recalled_from_the_file(path: Path) -> None:
    value = np.arange(10_000)
    journal = await open_journal(path)
    assert not run(journal, 1, value=value)
    await journal.close()
    journal = await open_journal(path)
    fields = await deliver(journal, call(journal, 1))
    assert (fields["return_value"] == value).all()
    await journal.close()


async def test_large_result_is_pickled_in_the_thread_before_its_task_ends(path: Path) -> None:
    journal = await open_journal(path)
    made = call(journal, 1)
    assert not journal.recall(made, print)
    ready = asyncio.Event()
    fields = {"return_value": np.arange(1_000_000)}
    assert journal.hold(made, fields, ready.set)
    await ready.wait()
    assert made.data is not None
    assert not journal.hold(made, fields, ready.set)
    await journal.close()


async def test_small_result_is_pickled_at_once(path: Path) -> None:
    journal = await open_journal(path)
    made = call(journal, 1)
    assert not journal.recall(made, print)
    value = [1]
    fields = {"return_value": value}
    assert not journal.hold(made, fields, lambda: None)
    journal.done(made, fields)
    value.append(2)
    await journal.close()
    journal = await open_journal(path)
    assert run(journal, 1, value=[1])
    await journal.close()


async def test_cached_calls_share_a_result_in_one_run(path: Path) -> None:
    journal = await open_journal(path)
    assert [run(journal, 1, cache=True) for _ in range(3)] == [False, True, True]
    await journal.close()
    journal = await open_journal(path)
    assert [run(journal, 1, cache=True) for _ in range(3)] == [True, True, True]
    await journal.close()


async def test_cached_call_waits_for_an_equal_one_that_runs(path: Path) -> None:
    journal = await open_journal(path)
    first, second, third = (call(journal, 1, cache=True) for _ in range(3))
    found: list[Any] = []
    assert not journal.recall(first, found.append)
    assert journal.recall(second, found.append)
    assert journal.recall(third, found.append)
    assert found == []
    journal.done(first, {"return_value": 5})
    assert found == [{"return_value": 5}] * 2
    await journal.close()


async def test_next_equal_call_runs_if_the_first_one_fails(path: Path) -> None:
    journal = await open_journal(path)
    first, second, third = (call(journal, 1, cache=True) for _ in range(3))
    found: list[tuple[str, Any]] = []
    assert not journal.recall(first, print)
    assert journal.recall(second, lambda fields: found.append(("second", fields)))
    assert journal.recall(third, lambda fields: found.append(("third", fields)))
    journal.ended(first, "FAILED", OSError("broken"))
    assert found == [("second", None)]
    journal.done(second, {"return_value": 5})
    assert found == [("second", None), ("third", {"return_value": 5})]
    await journal.close()


async def test_cancelled_call_does_not_wait_any_more(path: Path) -> None:
    journal = await open_journal(path)
    first, second, third = (call(journal, 1, cache=True) for _ in range(3))
    found: list[str] = []
    assert not journal.recall(first, print)
    assert journal.recall(second, lambda _: found.append("second"))
    assert journal.recall(third, lambda _: found.append("third"))
    journal.forget(second)
    journal.ended(first, "CANCELED")
    assert found == ["third"]
    await journal.close()


async def test_unstable_argument_is_not_journaled_and_warned_of_once(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    journal = await open_journal(path)
    function = journal.function("task", "function", task)
    for _ in range(3):
        assert journal.call(function, (1, threading.Lock()), {}) is None
    assert caplog.text.count("argument 2 is or contains a _thread.lock") == 1
    await journal.close()


async def test_result_that_cannot_be_pickled_is_not_journaled_and_warned_of_once(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    journal = await open_journal(path)
    for n in range(2):
        assert not run(journal, n, value=threading.Lock())
    assert caplog.text.count("cannot be pickled and is not journaled") == 1
    await journal.close()
    journal = await open_journal(path)
    assert not run(journal, 0)
    await journal.close()


async def test_result_that_cannot_be_unpickled_runs_again(
    path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = await open_journal(path)
    run(journal, 1, value=Holder())
    await journal.close()
    monkeypatch.delitem(globals(), "Holder")
    journal = await open_journal(path)
    assert not journal.recall(call(journal, 1), print)
    assert "cannot be read from the journal and is computed again" in caplog.text
    await journal.close()


async def test_changed_code_is_logged_with_its_change(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    journal = await open_journal(path)
    for n in range(3):
        run(journal, n, version="1")
    await journal.close()
    journal = await open_journal(path)
    assert not run(journal, 1, version="2")
    assert "3 results of task() are of older code and will run again" in caplog.text
    assert "version changed" in caplog.text
    await journal.close()


async def test_function_of_the_same_name_elsewhere_is_no_older_code(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def other() -> None:
        """Do nothing."""

    journal = await open_journal(path)
    run(journal, 1)
    await journal.close()
    journal = await open_journal(path)
    assert journal.function("task", "function", other).why == "it is new"
    assert journal.function("task", "executable", None).why == "it is new"
    assert "older code" not in caplog.text
    await journal.close()


async def test_code_that_changed_back_is_recalled(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for version in ("1", "2"):
        journal = await open_journal(path)
        run(journal, 1, version=version)
        await journal.close()
    caplog.clear()
    journal = await open_journal(path)
    assert run(journal, 1, version="1")
    assert "older code" not in caplog.text
    await journal.close()


async def test_flush_waits_for_the_commit(path: Path) -> None:
    journal = await open_journal(path)
    run(journal, 1)
    await journal.flush()
    assert journal._store.read(call(journal, 1).base) is not None
    await journal.close()
    await journal.close()
    await journal.flush()


def fill(journal: Journal) -> None:
    """Leave no room in the file."""
    done = threading.Event()

    def limit() -> None:
        pages = journal._store._database.execute("PRAGMA page_count").fetchone()[0]
        journal._store._database.execute(f"PRAGMA max_page_count = {pages}")
        done.set()

    journal._writer.call(limit)
    assert done.wait(30)


async def test_full_disk_turns_the_journal_off_with_one_warning(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    journal = await open_journal(path)
    fill(journal)
    run(journal, 1, value="x" * 100_000)
    with pytest.raises(JournalError, match="disk is full"):
        await journal.flush()
    assert caplog.text.count("the run continues without its journal") == 1
    assert journal.call(journal.function("task", "function", task), (1,), {}) is None
    await journal.close()


async def test_full_disk_is_reported_if_the_journal_is_required(path: Path) -> None:
    journal = await open_journal(path, required=True)
    failed: asyncio.Future[JournalError] = asyncio.get_running_loop().create_future()
    journal.on_failure = failed.set_result
    fill(journal)
    run(journal, 1, value="x" * 100_000)
    assert "disk is full" in str(await failed)
    await journal.close()


async def test_call_of_an_earlier_attempt_is_used_again(path: Path) -> None:
    journal = await open_journal(path)
    function = journal.function("task", "function", task)
    first = journal.call(function, (1,), {})
    assert journal.call(function, (1,), {}, earlier=first) is first
    assert journal.call(function, (2,), {}, earlier=first) is not first
    await journal.close()


async def test_time_of_a_call_is_that_of_its_execution(path: Path) -> None:
    journal = await open_journal(path)
    made = call(journal, 1)
    assert not journal.recall(made, lambda _: None)
    execution = Execution(100.0, 108.0, 110.0, None, None, None, 1)  # it waited for 8 s
    journal.done(made, {"return_value": 1, "execution": execution})
    await journal.flush()
    found = journal._store._database.execute("SELECT seconds FROM result").fetchall()
    assert found == [(2.0,)]
    await journal.close()
