"""`rhapsody report`: its page and its exit codes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from rhapsody import ComputeTask, Session
from rhapsody.backends import NoopExecutionBackend
from rhapsody.command.app import app


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "run.telemetry.jsonl"
    common = {"section": "event", "task_id": "task.7", "session_id": "<campaign>", "backend": "b"}
    events = [("TaskSubmitted", 1e9), ("TaskStarted", 1e9 + 1), ("TaskFailed", 1e9 + 60)]
    lines = [{**common, "event_type": kind, "event_time": at} for kind, at in events]
    lines[-1]["error_type"] = "OSError"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["report", *map(str, arguments)])


def test_page_has_tasks_failures_and_the_date_of_the_run(file: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    done = run(file, "-o", page)
    assert (done.exit_code, done.output.strip()) == (0, str(page))
    text = page.read_text()
    assert "&lt;campaign&gt;" in text
    assert "OSError" in text
    assert "2001-09-0" in text  # 1e9 seconds after 1970


def test_page_is_beside_the_file_by_default(file: Path) -> None:
    assert run(file, "--title", "My run").exit_code == 0
    assert "My run" in file.with_suffix(".html").read_text()


def test_missing_file_is_one_line_and_exit_code_1(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "rhapsody", "report", str(tmp_path / "missing")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=50, check=False)
    assert done.returncode == 1
    assert done.stderr == (f"rhapsody: error: No such file or directory: {tmp_path / 'missing'}\n")


def test_page_of_a_live_page(tmp_path: Path) -> None:
    with Session([NoopExecutionBackend()]) as session:
        session.run(ComputeTask(function=print, uid="the-task"))
        page = session.serve_page(title="Live")
        done = run(page.url, "-o", tmp_path / "page.html")
        assert (done.exit_code, done.output.strip()) == (0, str(tmp_path / "page.html"))
        for url in (page.url.rsplit("/", 2)[0], f"{page.url}tasks/"):
            done = run(url)
            assert done.exit_code == 1
            assert "is not the address of a live page" in str(done.exception)
    assert "the-task" in (tmp_path / "page.html").read_text()
    assert "no program responds at" in str(run(page.url).exception)
