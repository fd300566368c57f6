"""Rows of data from files and iterators, read in parts."""

from __future__ import annotations

import asyncio
import csv
import json
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from rhapsody.errors import ConfigurationError
from rhapsody.inference.bulk.run import read_lines
from rhapsody.validation import must_be

__all__ = ["Row", "RowError", "Rows", "check_source", "import_pyarrow", "read_rows"]

Row = Mapping[str, Any]
Rows = Iterable[Any] | AsyncIterable[Any]
ROWS_AT_A_TIME = 64
"""Rows that are read from a file in one call of a thread."""


class RowError(ValueError):
    """One row cannot be used; the others can.

    Args:
        message: What is wrong with it, and what was expected.
    """


async def read_rows(source: Any) -> AsyncIterator[Row | RowError]:
    """Yield rows one by one. Files are read in a thread, iterators on the running loop.

    Args:
        source: A path that ends in `.jsonl`, `.csv` or `.parquet`, or an iterable or an async
            iterable of mappings and texts. A text is a row with the one column `prompt`.

    Yields:
        The rows, and a RowError in the place of a row that is none.

    Raises:
        ConfigurationError: The source is something else, or a file is not in its format.
        OSError: A file cannot be read.
    """
    async for row in _rows_of(source):
        if isinstance(row, (RowError, Mapping)):
            yield row
        elif isinstance(row, str):
            yield {"prompt": row}
        else:
            yield RowError(must_be("a row", "a mapping or a text", row))


def check_source(source: Any) -> None:
    """Check, before any work, that `read_rows` can read a source; reads no rows.

    Raises:
        ConfigurationError: As for `read_rows`.
        OSError: A file cannot be read.
    """
    _rows_of(source)
    if isinstance(source, (str, Path)):
        Path(source).open("rb").close()


def _rows_of(source: Any) -> AsyncIterable[Any]:
    if isinstance(source, (str, Path)):
        return _file_rows(Path(source))
    if isinstance(source, AsyncIterable):
        return source
    if isinstance(source, Iterable) and not isinstance(source, (bytes, Mapping)):
        return _iterated(source)
    expected = "a path, or an iterable of mappings or texts"
    raise ConfigurationError(must_be("rows", expected, source))


async def _iterated(rows: Iterable[Any]) -> AsyncIterator[Any]:
    for number, row in enumerate(rows):
        yield row
        if number % ROWS_AT_A_TIME == 0:
            await asyncio.sleep(0)


def _file_rows(path: Path) -> AsyncIterable[Any]:
    suffix = path.suffix.lower()
    if suffix in (".jsonl", ".ndjson"):
        return _json_rows(path)
    if suffix == ".csv":
        return _in_thread(_csv_rows(path))
    if suffix == ".parquet":
        return _in_thread(_parquet_rows(path))
    raise ConfigurationError(f"a file of rows must end in .jsonl, .csv or .parquet, got {path}")


async def _json_rows(path: Path) -> AsyncIterator[Any]:
    async for number, line in read_lines(path):
        if line is None:
            yield RowError(f"line {number} is too long")
        elif line.strip():
            try:
                yield json.loads(line)
            except (ValueError, RecursionError) as error:
                yield RowError(f"line {number} is not JSON: {error}")


async def _in_thread(rows: Iterator[Any]) -> AsyncIterator[Any]:
    while part := await asyncio.to_thread(lambda: list(islice(rows, ROWS_AT_A_TIME))):
        for row in part:
            yield row


def _csv_rows(path: Path) -> Iterator[Row | RowError]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file, strict=True)
        try:
            for row in reader:
                extra = row.pop(None, None)
                if extra is not None or None in row.values():
                    expected = f"{len(reader.fieldnames or ())} columns of the first line"
                    yield RowError(f"line {reader.line_num} does not have the {expected}")
                else:
                    yield row
        except (csv.Error, UnicodeDecodeError) as error:
            where = f"line {reader.line_num} of {path}"
            raise ConfigurationError(f"{where} is not CSV in UTF-8: {error}") from error


def _parquet_rows(path: Path) -> Iterator[Row]:
    import_pyarrow()
    from pyarrow.parquet import ParquetFile

    with ParquetFile(path) as file:
        for batch in file.iter_batches(1024):
            yield from batch.to_pylist()


def import_pyarrow() -> Any:
    """Return the module `pyarrow`. Raises ConfigurationError if it is not installed."""
    try:
        import pyarrow as pa
    except ImportError:
        raise ConfigurationError(
            "files that end in .parquet need pyarrow: pip install pyarrow; or use .jsonl or .csv"
        ) from None
    return pa
