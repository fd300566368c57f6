"""A child process on a loop: what it writes, and its end, with and without Linux's pidfd."""

import asyncio
import os
import subprocess
import sys
from typing import Any

import pytest

from rhapsody.backends.child import Child

PATIENCE = 20


@pytest.fixture(params=["pidfd", "thread"], autouse=True)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(pid: int) -> int:
        raise OSError("no such system call")

    if request.param == "thread":
        monkeypatch.setattr(os, "pidfd_open", refuse, raising=False)
    elif not hasattr(os, "pidfd_open"):
        pytest.skip("pidfd is Linux's")


def started(script: str, output: Any = subprocess.PIPE) -> Child:
    command = ["/bin/sh", "-c", script]
    return Child(subprocess.Popen(command, stdout=output, stderr=output))


async def test_both_pipes_and_the_exit_code_come_back() -> None:
    child = started("echo out; echo err >&2; exit 3")
    assert await child.communicate() == [b"out\n", b"err\n"]
    assert child.exit_code == 3


async def test_a_signal_is_a_negative_exit_code() -> None:
    child = started("kill -KILL $$")
    await child.communicate()
    assert child.exit_code == -9


async def test_without_pipes_its_end_is_waited_for() -> None:
    child = started("exit 3", subprocess.DEVNULL)
    assert await child.communicate() == []
    assert child.exit_code == 3


async def test_much_from_many_at_once_comes_back_whole() -> None:
    children = [started("head -c 300000 /dev/zero; head -c 5 /dev/zero >&2") for _ in range(8)]
    outputs = await asyncio.gather(*(child.communicate() for child in children))
    assert [[len(written) for written in output] for output in outputs] == [[300_000, 5]] * 8


async def test_what_its_children_write_after_its_end_is_waited_for() -> None:
    child = started("(sleep 0.2; echo late) & exit 0")
    await child.exited.wait()
    assert (await child.communicate())[0] == b"late\n"


async def test_closed_pipes_are_not_waited_for() -> None:
    child = started("sleep 60 & echo $!")
    await child.exited.wait()
    child.close_pipes()
    (pid, _) = await asyncio.wait_for(child.communicate(), PATIENCE)
    os.kill(int(pid), 9)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
async def test_nothing_of_it_stays_open() -> None:
    await started("true").communicate()  # what is opened once is open now
    before = len(os.listdir("/proc/self/fd"))
    await asyncio.gather(*(started("echo x").communicate() for _ in range(10)))
    assert len(os.listdir("/proc/self/fd")) == before
