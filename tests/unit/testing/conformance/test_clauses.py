import inspect
import re
from pathlib import Path

import pytest

from rhapsody.testing.conformance import BackendConformance

PAGE = Path(__file__).parents[4] / "docs" / "backend-protocol.md"
TESTS = inspect.getmembers(BackendConformance, lambda member: inspect.isfunction(member))


def documented_clauses() -> list[str]:
    return re.findall(r"^\| (C\d+) \|", PAGE.read_text(), re.MULTILINE)


def clauses_of(docstring: str) -> list[str]:
    ids, _, _ = docstring.partition(":")
    return ids.split(", ")


@pytest.fixture
def docstrings() -> dict[str, str]:
    return {name: inspect.getdoc(test) or "" for name, test in TESTS if name.startswith("test_")}


def test_clauses_are_numbered_in_order() -> None:
    numbers = [int(clause[1:]) for clause in documented_clauses()]
    assert numbers == [n for n in range(1, 35) if n != 32]


def test_every_test_names_documented_clauses(docstrings: dict[str, str]) -> None:
    for name, docstring in docstrings.items():
        assert set(clauses_of(docstring)) <= set(documented_clauses()), name


def test_every_documented_clause_has_a_test(docstrings: dict[str, str]) -> None:
    tested = {clause for docstring in docstrings.values() for clause in clauses_of(docstring)}
    assert tested == set(documented_clauses())
