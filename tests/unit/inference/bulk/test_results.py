"""Files of results, read and continued."""

import json
from pathlib import Path
from typing import Any

import pytest

from rhapsody.errors import ConfigurationError
from rhapsody.inference.bulk.results import Results


def lines(*results: Any) -> str:
    return "".join(json.dumps(result) + "\n" for result in results)


def test_file_that_does_not_exist_has_no_results(tmp_path: Path) -> None:
    Results(tmp_path / "out.jsonl", lambda _: pytest.fail("there is none")).close()


def test_incomplete_last_line_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    path.write_text(lines({"id": 1}) + '{"id": 2')
    found: list[Any] = []

    def take(result: Any) -> bool:
        found.append(result["id"])
        return True

    Results(path, take).close()
    assert found == [1]
    assert path.read_text() == lines({"id": 1})


def test_results_that_are_not_taken_are_removed(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    path.write_text(lines({"id": 1}, {"id": 2}, {"id": 3}) + '{"id"')
    Results(path, lambda result: result["id"] != 2).close()
    assert path.read_text() == lines({"id": 1}, {"id": 3})
    assert [one.name for one in tmp_path.iterdir()] == ["out.jsonl"]


@pytest.mark.parametrize("text", ["no json\n", "{}\n", "[1]\n"])
def test_other_file_is_refused_and_not_changed(tmp_path: Path, text: str) -> None:
    path = tmp_path / "out.jsonl"
    path.write_text(text)
    with pytest.raises(ConfigurationError, match=r"line 1 of .* is not a result of a batch"):
        Results(path, lambda result: bool(result["id"]))
    assert path.read_text() == text


def test_written_lines_are_appended_at_once(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    path.write_text("1\n")
    results = Results(path, lambda result: True)
    results.write("2\n")
    assert path.read_text() == "1\n2\n"
    results.close()
    results.close()


@pytest.mark.parametrize("removes", [False, True])
def test_file_belongs_to_one_run(tmp_path: Path, removes: bool) -> None:
    path = tmp_path / "out.jsonl"
    path.write_text(lines({"id": 1}, {"id": 2}))
    results = Results(path, lambda result: not removes or result["id"] != 1)
    results.write(lines({"id": 3}))
    before = path.read_text()
    with pytest.raises(ConfigurationError, match=r"another run writes its results to .*out\.jsonl"):
        Results(path, lambda result: False)
    assert path.read_text() == before
    results.close()
    Results(path, lambda result: False).close()
    assert path.read_text() == ""
