"""The standard input of executables: text, bytes, files and pipes."""

import os
import pickle
from pathlib import Path
from typing import Any

import pytest

from rhapsody.backends.executables.executable import Executable
from rhapsody.backends.executables.guard import GuardedGroups
from rhapsody.errors import TaskExecutionError, UnsupportedTaskError
from tests.support.executables import run


def sh(script: str) -> Executable:
    return Executable(uid="task.1", command=["sh", "-c", script])


def described(**options: Any) -> dict[str, Any]:
    what = {"uid": "task.1", "executable": "cat"}
    return {**what, "task_backend_specific_kwargs": options}


async def test_stdin_is_empty() -> None:
    assert (await run(sh("cat")))["stdout"] == ""


async def test_stdin_is_text_bytes_or_a_file(tmp_path: Path) -> None:
    (tmp_path / "input").write_text("from a file")
    large = b"x" * 300_000
    for given, expected in (
        ("caf\u00e9", "caf\u00e9"),
        (large, large.decode()),
        ("", ""),
        (tmp_path / "input", "from a file"),
    ):
        executable = Executable.from_task(described(stdin=given), "")
        assert (await run(pickle.loads(pickle.dumps(executable))))["stdout"] == expected
    relative = Executable.from_task(described(stdin=Path("input"), cwd=tmp_path), "")
    assert (await run(relative))["stdout"] == "from a file"


def test_blocking_run_reads_stdin() -> None:
    children = GuardedGroups()
    fields = Executable.from_task(described(stdin="a"), "").run_blocking(children)
    children.close()
    assert fields["stdout"] == "a"


async def test_missing_or_wrong_stdin_is_refused(tmp_path: Path) -> None:
    missing = Executable.from_task(described(stdin=tmp_path / "no"), "")
    with pytest.raises(TaskExecutionError, match=r"its standard input '.*no' cannot be read: No"):
        await run(missing)
    with pytest.raises(UnsupportedTaskError, match="'stdin' must be a str, bytes, or"):
        Executable.from_task(described(stdin=3), "")


async def test_named_pipe_as_stdin_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    for name in ("pipe", "link"):
        with pytest.raises(TaskExecutionError, match="is a named pipe"):
            await run(Executable.from_task(described(stdin=Path(name), cwd=tmp_path), ""))


async def test_open_pipe_as_stdin_is_read() -> None:
    reader, writer = os.pipe()
    os.write(writer, b"from a pipe")
    os.close(writer)
    try:
        opened = Executable.from_task(described(stdin=Path(f"/dev/fd/{reader}")), "")
        assert (await run(opened))["stdout"] == "from a pipe"
    finally:
        os.close(reader)


def test_text_that_utf8_cannot_encode_is_refused() -> None:
    with pytest.raises(UnsupportedTaskError, match="UTF-8 cannot encode; pass bytes"):
        Executable.from_task(described(stdin="\udc80"), "")
