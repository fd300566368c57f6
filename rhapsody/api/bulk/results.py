"""Files of the results of rows: JSON lines, CSV and Parquet, continued after an interrupt."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from rhapsody.api.bulk.rows import Row, RowError, import_pyarrow
from rhapsody.errors import ConfigurationError
from rhapsody.inference.bulk.results import Results, open_alone, replacing

__all__ = ["Finished", "RowResults", "open_results"]

INDEX, RESPONSE, ERROR = "index", "response", "error"
OWN_COLUMNS = (INDEX, RESPONSE, ERROR)
NOUN = "a result of generate_from"
GROUP_ROWS = 10_000
"""Rows of a group in a Parquet file."""
UNENCODABLE = "replace"
"""Lone surrogates, which the text of a JSON string may have and UTF-8 has not, become "?"."""


class Finished:
    """The indices of rows that have a result, in a byte each.

    Args:
        retry_errors: Whether rows whose result is an error are not among them.
    """

    def __init__(self, retry_errors: bool) -> None:
        self._retry_errors = retry_errors
        self._marks = bytearray()
        self.errors = 0
        """Results that are an error and whose rows are not run again."""

    def __contains__(self, index: int) -> bool:
        return index < len(self._marks) and bool(self._marks[index])

    def take(self, result: Mapping[str, Any]) -> bool:
        """Note a result of an earlier run, and return whether it stays in the file."""
        index, error = int(result[INDEX]), result[ERROR]
        if index < 0:
            raise KeyError(INDEX)
        if error and self._retry_errors:
            return False
        if index >= len(self._marks):
            self._marks.extend(bytes(index + 1 - len(self._marks)))
        self._marks[index] = 1
        self.errors += bool(error)
        return True


class RowResults(Protocol):
    """A file of results."""

    def write(self, index: int, row: Row, response: Any, error: str | None) -> None:
        """Append the result of a row.

        Args:
            index: The place of the row among all, from 0.
            row: The columns of the row that are kept.
            response: The response; None if the row failed.
            error: Why the row failed.

        Raises:
            RowError: The file cannot hold the columns of the row.
        """

    def close(self) -> None:
        """Close the file. Idempotent."""

    def complete(self) -> None:
        """Finish the file, after the last row."""


def open_results(path: Path, finished: Finished) -> RowResults:
    """Open a file of results, and note the rows that it has already. This may block.

    Args:
        path: The file; its name ends in `.jsonl`, `.csv` or `.parquet`.
        finished: Gets the rows that have a result.

    Raises:
        ConfigurationError: The name ends otherwise, the file holds something else, or another run
            writes to it.
    """
    suffix = path.suffix.lower()
    if suffix in (".jsonl", ".ndjson"):
        return _JsonResults(path, finished)
    if suffix == ".csv":
        return _CsvResults(path, finished)
    if suffix == ".parquet":
        return _ParquetResults(path, finished)
    raise ConfigurationError(f"'to' must end in .jsonl, .csv or .parquet, got {path}")


class _JsonResults:
    def __init__(self, path: Path, finished: Finished) -> None:
        self._results = Results(path, finished.take, NOUN)

    def write(self, index: int, row: Row, response: Any, error: str | None) -> None:
        fields = {INDEX: index, **row, RESPONSE: response, ERROR: error}
        self._results.write(json.dumps(fields, default=str) + "\n")

    def close(self) -> None:
        self._results.close()

    def complete(self) -> None:
        self.close()


class _CsvResults:
    def __init__(self, path: Path, finished: Finished) -> None:
        self._columns: list[str] | None = None
        self._file = open_alone(path)
        try:
            if path.stat().st_size:
                self._read(path, finished)
        except BaseException:
            self.close()
            raise

    def _read(self, path: Path, finished: Finished) -> None:
        """Copy the complete records that stay, and replace the file."""
        with replacing(path) as copy, path.open("rb") as file:
            for record in _records(file):
                if self._is_kept(path, record, finished):
                    copy.write(record)
        self._file.close()
        self._file = copy

    def _is_kept(self, path: Path, record: bytes, finished: Finished) -> bool:
        fault = ConfigurationError(f"{path} has a record that is not {NOUN}; name another file")
        try:
            [values] = csv.reader(io.StringIO(record.decode(), newline=""), strict=True)
        except (ValueError, csv.Error):
            raise fault from None
        if self._columns is None:
            if values[:1] != [INDEX] or values[-2:] != [RESPONSE, ERROR]:
                raise fault
            self._columns = values
            return True
        try:
            return finished.take(dict(zip(self._columns, values, strict=True)))
        except (ValueError, KeyError):
            raise fault from None

    def write(self, index: int, row: Row, response: Any, error: str | None) -> None:
        if self._columns is None:
            self._columns = [INDEX, *row, RESPONSE, ERROR]
            self._append(self._columns)
        if extra := [name for name in row if name not in self._columns]:
            raise RowError(
                f"the file has no column '{extra[0]}', since the first row had none; use .jsonl"
            )
        text = response if isinstance(response, str) else json.dumps(response)
        own = {INDEX: index, RESPONSE: "" if error is not None else text, ERROR: error or ""}
        fields = {**row, **own}
        self._append([fields.get(name, "") for name in self._columns])

    def _append(self, values: list[Any]) -> None:
        record = io.StringIO(newline="")
        csv.writer(record, lineterminator="\n").writerow(values)
        self._file.write(record.getvalue().encode(errors=UNENCODABLE))
        self._file.flush()

    def close(self) -> None:
        self._file.close()

    def complete(self) -> None:
        self.close()


def _records(file: BinaryIO) -> Iterator[bytes]:
    """Yield the records of a CSV file; an incomplete last one, of a killed program, is left out."""
    record, quotes = b"", 0
    for line in file:
        record += line
        quotes += line.count(b'"')
        if quotes % 2 == 0 and line.endswith(b"\n"):
            yield record
            record, quotes = b"", 0


class _ParquetResults(_JsonResults):
    """A Parquet file cannot be continued, so results are JSON lines until the last row."""

    def __init__(self, path: Path, finished: Finished) -> None:
        import_pyarrow()
        if path.exists():
            raise ConfigurationError(f"{path} exists and is complete; name another file")
        self._path = path
        self._lines = path.with_name(f"{path.name}.jsonl")
        super().__init__(self._lines, finished)

    def complete(self) -> None:
        """Write the Parquet file from the lines, in groups of rows."""
        pa = import_pyarrow()
        from pyarrow.parquet import ParquetWriter

        schema = pa.unify_schemas(
            [table.schema for table in self._tables(pa)], promote_options="permissive"
        )
        whole = self._path.with_name(f"{self._path.name}.kept")
        try:
            with ParquetWriter(whole, schema) as writer:
                for table in self._tables(pa, schema):
                    writer.write_table(table)
            whole.replace(self._path)
        finally:
            whole.unlink(missing_ok=True)
        os.unlink(self._lines)
        self.close()

    def _tables(self, pa: Any, schema: Any = None) -> Iterator[Any]:
        with self._lines.open("rb") as lines:
            while group := [_encodable(line) for line in islice(lines, GROUP_ROWS)]:
                yield pa.Table.from_pylist(group, schema=schema)


def _encodable(line: bytes) -> Any:
    """Return the value of a line whose texts UTF-8 can encode."""
    value = json.loads(line)
    if b"\\ud" not in line:
        return value
    return json.loads(json.dumps(value, ensure_ascii=False).encode("utf-8", UNENCODABLE))
