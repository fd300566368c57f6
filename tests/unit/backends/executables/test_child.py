import asyncio
import os
import subprocess
import sys
from typing import Any

import pytest

from rhapsody.backends.executables.child import Child
from rhapsody.processes import GROUP
from tests.support.waiting import LIMIT_S


@pytest.fixture(params=["pidfd", "thread"], autouse=True)
def exit_notification(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(pid: int) -> int:
        raise OSError("no such system call")

    if request.param == "thread":
        monkeypatch.setattr(os, "pidfd_open", refuse, raising=False)
    elif not hasattr(os, "pidfd_open"):
        pytest.skip("only Linux has pidfd")


def started(script: str, output: Any = subprocess.PIPE) -> Child:
    command = ["/bin/sh", "-c", script]
    return Child(subprocess.Popen(command, stdout=output, stderr=output, **GROUP))


async def test_communicate_returns_output_of_both_pipes() -> None:
    child = started("echo out; echo err >&2; exit 3")
    assert await child.communicate() == [b"out\n", b"err\n"]
    assert child.exit_code == 3


async def test_exit_code_is_negative_after_a_signal() -> None:
    child = started("kill -KILL $$")
    await child.communicate()
    assert child.exit_code == -9


async def test_communicate_without_pipes_waits_for_exit() -> None:
    child = started("exit 3", subprocess.DEVNULL)
    assert await child.communicate() == []
    assert child.exit_code == 3


async def test_output_of_concurrent_children_is_complete() -> None:
    children = [started("head -c 300000 /dev/zero; head -c 5 /dev/zero >&2") for _ in range(8)]
    outputs = await asyncio.gather(*(child.communicate() for child in children))
    assert [[len(written) for written in output] for output in outputs] == [[300_000, 5]] * 8


async def test_communicate_waits_for_output_of_grandchildren() -> None:
    child = started("(sleep 0.2; echo late) & exit 0")
    await child.exited.wait()
    assert (await child.communicate())[0] == b"late\n"


async def test_close_pipes_ends_communicate() -> None:
    child = started("sleep 60 & echo $!")
    await child.exited.wait()
    child.close_pipes()
    (pid, _) = await asyncio.wait_for(child.communicate(), LIMIT_S)
    os.kill(int(pid), 9)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
async def test_no_descriptor_stays_open() -> None:
    await started("true").communicate()  # opens what stays open for the whole process
    before = len(os.listdir("/proc/self/fd"))
    await asyncio.gather(*(started("echo x").communicate() for _ in range(10)))
    assert len(os.listdir("/proc/self/fd")) == before


async def test_end_closes_pipes_and_waits_for_exit() -> None:
    child = started("echo out; sleep 60")
    await child.end()
    assert child.exited.is_set()
    assert child.exit_code == -15
    assert len(await child.communicate()) == 2
