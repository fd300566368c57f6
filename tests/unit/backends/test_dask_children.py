import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from rhapsody.api.errors import TaskExecutionError
from rhapsody.backends.dask_children import Child
from rhapsody.backends.executables import Executable
from rhapsody.backends.guard import GuardedGroups
from tests.support.processes import wait_gone


def shell(script: str, **options: Any) -> Executable:
    return Executable("task.1", ["/bin/sh", "-c", script], **options)


async def line_of(path: Path) -> str:
    """The first line that somebody writes to a FIFO."""
    text = await asyncio.wait_for(asyncio.to_thread(path.read_text), 20)
    return text.splitlines()[0]


@pytest.fixture
def fifo(tmp_path: Path) -> Path:
    os.mkfifo(tmp_path / "fifo")
    return tmp_path / "fifo"


def test_more_output_than_a_pipe_holds_comes_whole(children: GuardedGroups) -> None:
    fields = Child(shell("yes out | head -c 300000; yes err | head -c 300000 >&2"), children).run()
    assert (len(fields["stdout"]), len(fields["stderr"])) == (300_000, 300_000)
    assert fields["exit_code"] == 0
    assert "exception" not in fields


def test_an_exit_code_is_a_failure_that_keeps_the_output(children: GuardedGroups) -> None:
    fields = Child(shell("echo out; echo err >&2; exit 3"), children).run()
    assert (fields["stdout"], fields["stderr"], fields["exit_code"]) == ("out\n", "err\n", 3)
    assert isinstance(fields["exception"], TaskExecutionError)
    assert not children


def test_captured_output_goes_to_files(tmp_path: Path, children: GuardedGroups) -> None:
    fields = Child(shell("echo out; echo err >&2", capture_dir=str(tmp_path)), children).run()
    assert fields["stdout"] == str(tmp_path / "task.1.stdout")
    assert (tmp_path / "task.1.stdout").read_text() == "out\n"
    assert (tmp_path / "task.1.stderr").read_text() == "err\n"


def test_what_cannot_be_started_says_why_and_leaves_no_pipe_open(children: GuardedGroups) -> None:
    with children.starting():
        pass  # the guard is there from now on
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else None
    with pytest.raises(TaskExecutionError, match="no such program: 'no-such-program'"):
        Child(Executable("task.1", ["no-such-program"]), children).run()
    if before is not None:
        assert len(os.listdir("/proc/self/fd")) == before


async def test_one_ended_before_its_start_never_runs(
    tmp_path: Path, children: GuardedGroups
) -> None:
    child = Child(shell(f"touch {tmp_path}/ran"), children)
    child.end()
    with pytest.raises(asyncio.CancelledError):
        child.run()
    assert not (tmp_path / "ran").exists()


async def test_ending_it_ends_its_whole_group(fifo: Path, children: GuardedGroups) -> None:
    child = Child(shell(f"sleep 60 & echo $$ $! > {fifo}; wait"), children)
    running = asyncio.ensure_future(asyncio.to_thread(child.run))
    pids = [int(pid) for pid in (await line_of(fifo)).split()]
    child.end()
    assert (await running)["exit_code"] == -signal.SIGTERM
    assert children == set()
    assert wait_gone(*pids) == []


async def test_a_process_that_left_its_group_does_not_hold_up_the_end(
    fifo: Path, children: GuardedGroups
) -> None:
    stranger = (
        "import os, sys, time; os.setsid(); "
        f"open({str(fifo)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    )
    child = Child(shell(f'{sys.executable} -S -c "{stranger}" & wait'), children)
    running = asyncio.ensure_future(asyncio.to_thread(child.run))
    pid = int(await line_of(fifo))
    try:
        child.end()
        await asyncio.wait_for(asyncio.shield(running), 20)
    finally:
        os.kill(pid, signal.SIGKILL)
    assert wait_gone(pid) == []
