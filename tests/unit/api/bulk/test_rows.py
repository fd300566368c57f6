"""Rows of data from files and iterators."""

import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from rhapsody.api.bulk.rows import RowError, read_rows
from rhapsody.errors import ConfigurationError


async def read(source: Any) -> list[Any]:
    return [str(row) if isinstance(row, RowError) else row async for row in read_rows(source)]


async def test_iterables_are_read() -> None:
    async def produce() -> AsyncIterator[Any]:
        yield "a text"
        yield {"a": 1}
        yield 3

    expected = [{"prompt": "a text"}, {"a": 1}, "'a row' must be a mapping or a text, got 3"]
    assert await read(produce()) == expected
    assert await read(["a text", {"a": 1}, 3]) == expected
    assert await read(iter(["a"])) == [{"prompt": "a"}]


async def test_json_lines_are_read_and_wrong_ones_are_errors(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(b'{"a": 1}\n\n{\n"a text"\n\xff\n[1]\n')
    first, bad, text, binary, other = await read(path)
    assert (first, text) == ({"a": 1}, {"prompt": "a text"})
    assert bad.startswith("line 3 is not JSON")
    assert binary.startswith("line 5 is not JSON")
    assert other == "'a row' must be a mapping or a text, got [1]"


async def test_csv_is_read_and_uneven_rows_are_errors(tmp_path: Path) -> None:
    path = tmp_path / "in.csv"
    path.write_text('a,b\n1,"two\nlines"\n1\n1,2,3\n4,5\n')
    rows = await read(str(path))
    assert rows[0] == {"a": "1", "b": "two\nlines"}
    assert rows[3] == {"a": "4", "b": "5"}
    assert rows[1] == "line 4 does not have the 2 columns of the first line"
    assert rows[2] == "line 5 does not have the 2 columns of the first line"


async def test_file_in_another_format_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "in.csv"
    path.write_bytes(b"a,b\n\xff,2\n")
    with pytest.raises(ConfigurationError, match="is not CSV in UTF-8"):
        await read(path)
    with pytest.raises(ConfigurationError, match=r"must end in \.jsonl, \.csv or \.parquet"):
        await read("rows.txt")
    with pytest.raises(OSError, match="nothing"):
        await read(tmp_path / "nothing.jsonl")


@pytest.mark.parametrize("source", [3, b"a", {"a": 1}])
async def test_other_source_is_refused(source: Any) -> None:
    with pytest.raises(ConfigurationError, match="'rows' must be a path, or an iterable"):
        await read(source)


async def test_parquet_needs_pyarrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ConfigurationError, match="need pyarrow: pip install pyarrow"):
        await read("in.parquet")


async def test_parquet_is_read(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pa.table({"a": [1, 2], "b": ["x", None]}), tmp_path / "in.parquet")
    assert await read(tmp_path / "in.parquet") == [{"a": 1, "b": "x"}, {"a": 2, "b": None}]
