"""`rhapsody journal`: its options, its output and its exit codes."""

from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from rhapsody.command.app import app
from rhapsody.errors import JournalError
from rhapsody.journal.store import CodeRow, Row, Store


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "run.journal"
    store = Store(path)
    failed = Row(b"k" * 16, 1, "FAILED", 1.0, 0.5, "it is new", "OSError: <broken>", None)
    store.write([failed], [CodeRow(1, "simulate", "function", b"d" * 16, {})])
    store.close()
    return path


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["journal", *map(str, arguments)])


@pytest.mark.parametrize(
    ("options", "expected"),
    [([], "run 1:"), (["--csv"], "name,state,run"), (["--vacuum"], "0 results of older code")],
    ids=["summary", "csv", "vacuum"],
)
def test_command_writes(path: Path, options: list[str], expected: str) -> None:
    done = run(path, *options)
    assert done.exit_code == 0
    assert done.output.startswith(expected)


def test_page_names_tasks_and_failures(path: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    done = run(path, "--html", page)
    assert (done.exit_code, done.output.strip()) == (0, str(page))
    text = page.read_text()
    assert "simulate" in text
    assert "OSError: &lt;broken&gt;" in text


def test_options_that_exclude_each_other_exit_with_2(path: Path) -> None:
    assert run(path, "--csv", "--vacuum").exit_code == 2


def test_file_of_another_kind_is_an_error_without_output(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_text("no database")
    done = run(other, "--csv")
    assert (done.exit_code, done.output) == (1, "")
    assert isinstance(done.exception, JournalError)
    assert str(run(tmp_path).exception) == f"Journal '{tmp_path}' is a directory"


def test_missing_file_is_an_error_of_one_sentence(tmp_path: Path) -> None:
    done = run(tmp_path / "none")
    assert done.exit_code == 1
    assert isinstance(done.exception, JournalError)
    assert str(done.exception) == f"Journal '{tmp_path}/none' does not exist"
