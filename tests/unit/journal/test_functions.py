"""Functions in a journal: the numbers of their codes, and why their calls run."""

import threading
from functools import partial

import pytest

from rhapsody.journal.functions import JournaledFunctions
from rhapsody.journal.store import CodeRow


def task(x: object) -> object:
    return x


def test_function_has_one_entry_and_one_row() -> None:
    added: list[CodeRow] = []
    functions = JournaledFunctions([], added.append)
    entry = functions.get("task", "function", task)
    assert functions.get("task", "function", task) is entry
    assert (entry.number, entry.why) == (1, "it is new")
    assert [(row.number, row.name) for row in added] == [(1, "task")]


def test_code_of_an_earlier_run_keeps_its_number() -> None:
    rows: list[CodeRow] = []
    JournaledFunctions([], rows.append).get("task", "function", task)
    earlier = [row._replace(number=7, results=2) for row in rows]
    entry = JournaledFunctions(earlier, rows.append).get("task", "function", task)
    assert (entry.number, entry.why) == (7, "its arguments are new")


def test_changed_code_is_logged_with_the_number_of_results(
    caplog: pytest.LogCaptureFixture,
) -> None:
    rows: list[CodeRow] = []
    JournaledFunctions([], rows.append).get("task", "function", task, "1")
    earlier = [row._replace(results=1) for row in rows]
    entry = JournaledFunctions(earlier, rows.append).get("task", "function", task, "2")
    assert entry.number == 2
    assert "1 result of task() is of older code and will run again" in caplog.text


def test_function_without_an_identity_is_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    added: list[CodeRow] = []
    functions = JournaledFunctions([], added.append)
    for _ in range(2):
        entry = functions.get("task", "function", partial(task, threading.Lock()), "1")
        assert entry.prefix == b""
    assert len(caplog.records) == 1
    assert added == []
