"""Capture of prints, for one function and for several at a time."""

import asyncio
import contextlib
import io
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from rhapsody.backends.workers.stdio import captured, route_stdio
from rhapsody.errors import TaskExecutionError


@contextlib.contextmanager
def routed_streams() -> Iterator[tuple[io.StringIO, io.StringIO]]:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        route_stdio()
        yield out, err


def test_prints_go_to_the_files_of_the_task(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "task"
    with routed_streams() as streams:
        with captured("task", str(path)):
            print("result")
            print("warning", file=sys.stderr)
        print("elsewhere")
    assert path.with_suffix(".stdout").read_text() == "result\n"
    assert path.with_suffix(".stderr").read_text() == "warning\n"
    assert streams[0].getvalue() == "elsewhere\n"
    assert streams[1].getvalue() == ""


def test_none_captures_nothing() -> None:
    with routed_streams() as streams, captured("task", None):
        print("seen")
    assert streams[0].getvalue() == "seen\n"


async def test_concurrent_functions_print_to_their_own_files(tmp_path: Path) -> None:
    barrier = asyncio.Event()

    async def print_twice(name: str) -> None:
        with captured("task", str(tmp_path / name)):
            print("before", name)
            if name == "b":
                barrier.set()
            await barrier.wait()
            print("after", name)

    with routed_streams() as streams:
        await asyncio.gather(print_twice("a"), print_twice("b"))
    for name in ("a", "b"):
        assert (tmp_path / f"{name}.stdout").read_text() == f"before {name}\nafter {name}\n"
    assert streams[0].getvalue() == ""


class Frozen(Exception):
    def __setattr__(self, name: str, value: object) -> None:
        raise TypeError("accepts no attributes")


def test_exception_without_attributes_passes(tmp_path: Path) -> None:
    with pytest.raises(Frozen), captured("task", str(tmp_path / "task")):
        raise Frozen


LINES = """
    import os
    from rhapsody.backends.workers.stdio import route_stdio

    route_stdio()
    print("a line")
    os._exit(0)  # nothing is flushed any more
"""


def test_lines_are_flushed_at_once() -> None:
    program = [sys.executable, "-c", textwrap.dedent(LINES)]
    run = subprocess.run(program, capture_output=True, text=True, check=True, timeout=30)
    assert run.stdout == "a line\n"


def test_files_that_cannot_be_written_are_named(tmp_path: Path) -> None:
    capture = captured("task", str(tmp_path / ("long" * 100)))
    with pytest.raises(TaskExecutionError, match=r"cannot be written to '.*stdout': File name"):
        capture.__enter__()


def test_prints_are_dropped_without_standard_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    route_stdio()
    print("seen by nobody", flush=True)
    assert sys.stdout.write("abc") == 3


def test_captured_text_that_utf8_cannot_encode_is_escaped(tmp_path: Path) -> None:
    path = tmp_path / "task"
    with routed_streams(), captured("task", str(path)):
        print("caf\udce9.txt")
    assert path.with_suffix(".stdout").read_text() == "caf\\udce9.txt\n"


def test_closed_stream_can_be_used_by_the_next_task() -> None:
    with routed_streams() as streams:
        sys.stdout.close()
        sys.stdout.writelines(["seen\n"])
        assert not sys.stdout.closed
    assert streams[0].getvalue() == "seen\n"
