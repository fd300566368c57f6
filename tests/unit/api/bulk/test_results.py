"""Files of the results of rows."""

import csv
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from rhapsody.api.bulk.results import Finished, open_results
from rhapsody.api.bulk.rows import RowError
from rhapsody.errors import ConfigurationError

SUFFIXES = [".jsonl", ".csv"]


def read(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".csv":
        with path.open(newline="") as file:
            return list(csv.DictReader(file))
    return [json.loads(line) for line in path.read_text().splitlines()]


def written(path: Path) -> None:
    results = open_results(path, Finished(False))
    results.write(0, {"a": "x"}, 'two\n"lines", and a comma', None)
    results.write(2, {"a": "y"}, None, "it is bad")
    results.close()


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_results_are_written_with_the_columns_of_the_rows(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"out{suffix}"
    written(path)
    first, second = read(path)
    assert list(first) == ["index", "a", "response", "error"]
    assert first["response"] == 'two\n"lines", and a comma'
    assert (str(second["index"]), second["a"], second["error"]) == ("2", "y", "it is bad")


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("rest", [b"", b'3,"cut', b"{"])
def test_file_is_continued(tmp_path: Path, suffix: str, rest: bytes) -> None:
    path = tmp_path / f"out{suffix}"
    written(path)
    before = path.read_bytes()
    path.write_bytes(before + rest)
    finished = Finished(False)
    results = open_results(path, finished)
    assert [index in finished for index in range(4)] == [True, False, True, False]
    results.write(3, {"a": "z"}, "a text", None)
    results.complete()
    assert path.read_bytes().startswith(before)
    assert len(read(path)) == 3
    assert [one.name for one in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_errors_are_removed_if_they_are_retried(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"out{suffix}"
    written(path)
    finished = Finished(True)
    open_results(path, finished).close()
    assert [index in finished for index in range(3)] == [True, False, False]
    assert [str(one["index"]) for one in read(path)] == ["0"]


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("text", ["a,b\n1,2\n", '{"a": 1}\n', "\xff\n"])
def test_other_file_is_refused_and_not_changed(tmp_path: Path, suffix: str, text: str) -> None:
    path = tmp_path / f"out{suffix}"
    path.write_text(text)
    with pytest.raises(ConfigurationError, match="not a result of generate_from"):
        open_results(path, Finished(False))
    assert path.read_text() == text


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("retry_errors", [False, True])
def test_file_belongs_to_one_run(tmp_path: Path, suffix: str, retry_errors: bool) -> None:
    path = tmp_path / f"out{suffix}"
    written(path)
    results = open_results(path, Finished(retry_errors))
    before = path.read_bytes()
    with pytest.raises(ConfigurationError, match="another run writes its results to"):
        open_results(path, Finished(True))
    assert path.read_bytes() == before
    results.write(4, {"a": "z"}, "late", None)
    results.close()
    assert read(path)[-1]["response"] == "late"
    open_results(path, Finished(False)).close()


def test_csv_cannot_get_more_columns(tmp_path: Path) -> None:
    results = open_results(tmp_path / "out.csv", Finished(False))
    results.write(0, {"a": 1}, "x", None)
    with pytest.raises(RowError, match="no column 'b', since the first row had none"):
        results.write(1, {"a": 1, "b": 2}, "x", None)
    results.write(2, {}, [0.5, 1.0], None)
    results.close()
    assert read(tmp_path / "out.csv")[1]["response"] == "[0.5, 1.0]"


def test_name_without_a_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"must end in \.jsonl, \.csv or \.parquet"):
        open_results(tmp_path / "out.txt", Finished(False))


def test_parquet_needs_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ConfigurationError, match="need pyarrow: pip install pyarrow"):
        open_results(tmp_path / "out.parquet", Finished(False))


def test_parquet_is_written_after_the_last_row(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    from pyarrow import parquet

    path = tmp_path / "out.parquet"
    interrupted = open_results(path, Finished(False))
    interrupted.write(0, {"a": 1}, "x", None)
    interrupted.close()
    finished = Finished(False)
    results = open_results(path, finished)
    assert 0 in finished
    results.write(1, {"a": 2}, None, "it is bad")
    results.complete()
    assert parquet.read_table(path).to_pylist() == [
        {"index": 0, "a": 1, "response": "x", "error": None},
        {"index": 1, "a": 2, "response": None, "error": "it is bad"},
    ]
    assert [one.name for one in tmp_path.iterdir()] == ["out.parquet"]
    with pytest.raises(ConfigurationError, match="exists and is complete"):
        open_results(path, Finished(False))


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_text_that_utf8_cannot_encode_is_written(tmp_path: Path, suffix: str) -> None:
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
    path = tmp_path / f"out{suffix}"
    results = open_results(path, Finished(False))
    results.write(0, {"a": "x\ud800"}, "\U0001f600\udc00 is it", None)
    results.complete()
    if suffix == ".csv":
        [row] = read(path)
    else:
        from pyarrow import parquet

        [row] = parquet.read_table(path).to_pylist()
    assert (row["a"], row["response"]) == ("x?", "\U0001f600? is it")
