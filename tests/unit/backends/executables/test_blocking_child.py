import asyncio
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rhapsody.backends.executables.blocking_child import BlockingChild, Interruption
from rhapsody.backends.executables.executable import Executable
from rhapsody.backends.executables.guard import GuardedGroups
from rhapsody.errors import TaskExecutionError
from tests.support.processes import wait_gone
from tests.support.waiting import LIMIT_S
from tests.unit.backends.executables.conftest import Fifo


@pytest.fixture(params=["pidfd", "polling"], autouse=True)
def exit_notification(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(pid: int) -> int:
        raise OSError("no such system call")

    if request.param == "polling":
        monkeypatch.setattr(os, "pidfd_open", refuse, raising=False)
    elif not hasattr(os, "pidfd_open"):
        pytest.skip("only Linux has pidfd")


@pytest.fixture
def interruption() -> Iterator[Interruption]:
    with Interruption() as interruption:
        yield interruption


def shell(script: str, **options: Any) -> Executable:
    return Executable("task.1", ["/bin/sh", "-c", script], **options)


def test_communicate_returns_output_larger_than_a_pipe(children: GuardedGroups) -> None:
    script = "yes out | head -c 300000; yes err | head -c 300000 >&2"
    fields = shell(script).run_blocking(children)
    assert (len(fields["stdout"]), len(fields["stderr"])) == (300_000, 300_000)
    assert fields["exit_code"] == 0
    assert "exception" not in fields


def test_communicate_waits_for_exit_after_pipes_closed() -> None:
    process = subprocess.Popen(
        ["/bin/sh", "-c", "exec >&- 2>&-; sleep 0.1; exit 3"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    child = BlockingChild(process)
    assert child.communicate() == [b"", b""]
    assert child.exit_code == 3


def test_failure_keeps_exit_code_and_output(children: GuardedGroups) -> None:
    fields = shell("echo out; echo err >&2; exit 3").run_blocking(children)
    assert (fields["stdout"], fields["stderr"], fields["exit_code"]) == ("out\n", "err\n", 3)
    assert isinstance(fields["exception"], TaskExecutionError)
    assert not children


def test_captured_output_is_in_files(tmp_path: Path, children: GuardedGroups) -> None:
    fields = shell("echo out; echo err >&2", capture_dir=str(tmp_path)).run_blocking(children)
    assert fields["stdout"] == str(tmp_path / "task.1.stdout")
    assert (tmp_path / "task.1.stdout").read_text() == "out\n"
    assert (tmp_path / "task.1.stderr").read_text() == "err\n"


def test_executable_waits_for_free_descriptors(
    monkeypatch: pytest.MonkeyPatch, children: GuardedGroups
) -> None:
    assert shell("exit 0").run_blocking(children)["exit_code"] == 0  # starts the guard
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    waits = []

    def free_descriptors(seconds: float) -> None:
        waits.append(seconds)
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)

    monkeypatch.setattr(time, "sleep", free_descriptors)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
    try:
        fields = shell("echo out").run_blocking(children)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert fields["stdout"] == "out\n"
    assert len(waits) == 1


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="reads /proc")
@pytest.mark.parametrize("program", ["true", "no-such-program"])
def test_no_descriptor_stays_open(program: str, children: GuardedGroups) -> None:
    def run() -> None:
        with Interruption() as interruption:
            Executable("task.1", [program]).run_blocking(children, interruption=interruption)

    with children.starting():
        pass  # starts the guard
    before = len(os.listdir("/proc/self/fd"))
    if program == "true":
        run()
    else:
        with pytest.raises(TaskExecutionError, match="no such program: 'no-such-program'"):
            run()
    assert len(os.listdir("/proc/self/fd")) == before


def test_exception_after_start_ends_group(children: GuardedGroups) -> None:
    def fail() -> None:
        pids.extend(children)
        raise KeyboardInterrupt

    pids: list[int] = []
    with pytest.raises(KeyboardInterrupt):
        shell("sleep 60 & wait").run_blocking(children, fail)
    assert children == set()
    assert wait_gone(*pids) == []


def test_interruption_before_start_prevents_start(
    tmp_path: Path, children: GuardedGroups, interruption: Interruption
) -> None:
    interruption.set()
    with pytest.raises(asyncio.CancelledError):
        shell(f"touch {tmp_path}/ran").run_blocking(children, interruption=interruption)
    assert not (tmp_path / "ran").exists()


def test_interruption_during_start_ends_group(
    children: GuardedGroups, interruption: Interruption
) -> None:
    with pytest.raises(asyncio.CancelledError):
        shell("sleep 60").run_blocking(children, interruption.set, interruption)
    assert children == set()


async def test_interruption_reports_output_so_far(
    fifo: Fifo, children: GuardedGroups, interruption: Interruption
) -> None:
    fields: dict[str, Any] = {}
    executable = shell(f"echo half; echo err >&2; echo 1 > {fifo}; exec sleep 60")
    running = asyncio.ensure_future(
        asyncio.to_thread(executable.run_blocking, children, None, interruption, fields.update)
    )
    await fifo.numbers()
    interruption.set()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert (fields["stdout"], fields["stderr"]) == ("half\n", "err\n")
    assert fields["exit_code"] == -signal.SIGTERM


@pytest.mark.parametrize("captured", [False, True])
async def test_interruption_ends_whole_group(
    captured: bool,
    fifo: Fifo,
    tmp_path: Path,
    children: GuardedGroups,
    interruption: Interruption,
) -> None:
    executable = shell(
        f"sleep 60 & echo $$ $! > {fifo}; wait", capture_dir=str(tmp_path) if captured else None
    )
    running = asyncio.ensure_future(
        asyncio.to_thread(executable.run_blocking, children, None, interruption)
    )
    pids = await fifo.numbers()
    interruption.set()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert children == set()
    assert wait_gone(*pids) == []


async def test_process_outside_the_group_does_not_delay_the_end(
    fifo: Fifo, children: GuardedGroups, interruption: Interruption
) -> None:
    daemon = (
        "import os, time; os.setsid(); "
        f"open({str(fifo)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    )
    executable = shell(f'{sys.executable} -S -c "{daemon}" & wait')
    running = asyncio.ensure_future(
        asyncio.to_thread(executable.run_blocking, children, None, interruption)
    )
    (pid,) = await fifo.numbers()
    try:
        interruption.set()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(asyncio.shield(running), LIMIT_S)
    finally:
        os.kill(pid, signal.SIGKILL)
    assert wait_gone(pid) == []


def test_interruption_after_close_has_no_effect() -> None:
    interruption = Interruption()
    interruption.close()
    interruption.close()
    threading.Thread(target=interruption.set).start()
