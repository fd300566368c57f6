"""Who uses which segment."""

import pytest

from rhapsody.backends.data.ledger import PROGRAM, Ledger


@pytest.fixture
def unused() -> list[tuple[str, bool]]:
    return []


@pytest.fixture
def ledger(unused: list[tuple[str, bool]]) -> Ledger:
    """A ledger with the worker 1."""
    made = Ledger(lambda *end: unused.append(end))
    made.admit(1)
    return made


def test_segment_ends_with_its_last_use(ledger: Ledger, unused: list[tuple[str, bool]]) -> None:
    for process in (PROGRAM, 1, 1):
        ledger.hold("a", process)
    ledger.drop("a", 1)
    ledger.drop("a", PROGRAM)
    assert (unused, ledger.segments) == ([], {"a"})
    ledger.drop("a", 1)
    assert (unused, ledger.segments) == ([("a", True)], set())


def test_one_user_may_forbid_to_write_it_again(
    ledger: Ledger, unused: list[tuple[str, bool]]
) -> None:
    ledger.hold("a", PROGRAM)
    ledger.hold("a", 1)
    ledger.drop("a", 1, reusable=False)
    ledger.drop("a", PROGRAM)
    assert unused == [("a", False)]


def test_uses_of_a_process_that_ended_end_with_it(
    ledger: Ledger, unused: list[tuple[str, bool]]
) -> None:
    for segment in ("a", "a", "b", "c"):
        ledger.hold(segment, 1)
    ledger.hold("b", PROGRAM)
    ledger.forget(1)
    assert unused == [("a", False), ("c", False)]  # a child of it may still see them
    ledger.drop("b", PROGRAM)
    assert unused[2:] == [("b", False)]


def test_process_that_ended_uses_nothing(ledger: Ledger, unused: list[tuple[str, bool]]) -> None:
    ledger.forget(1)
    ledger.hold("a", 1)
    assert unused == [("a", True)]


def test_unknown_uses_are_ignored(ledger: Ledger, unused: list[tuple[str, bool]]) -> None:
    ledger.drop("a", 1)
    ledger.hold("a", PROGRAM)
    ledger.drop("a", 1)
    assert unused == []
