"""Journals on a small disk, which is full at a random moment of the run."""

import logging
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from asyncflow_ext import WorkflowEngine
from rhapsody import ComputeTask, Session
from rhapsody.backends import ConcurrentExecutionBackend
from rhapsody.errors import JournalError

pytestmark = [
    pytest.mark.asyncflow,
    pytest.mark.skipif(sys.platform != "linux", reason="tmpfs is a file system of Linux"),
]

Mount = Callable[[int], Path]
ROOMY = 16 << 20
CONTINUES = "the run continues without its journal"


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Mount]:
    """Mounts a disk of a size in bytes, or changes the size of the mounted one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    options: list[str] = []

    def mount(size: int) -> Path:
        command = ["mount", "-t", "tmpfs", "-o", ",".join([*options, f"size={size}"])]
        made = subprocess.run(
            [*command, "tmpfs", str(folder)], check=False, capture_output=True, text=True
        )
        if made.returncode:
            pytest.skip(f"this user cannot mount a tmpfs: {made.stderr.strip()}")
        options[:] = ["remount"]
        return folder

    try:
        yield mount
    finally:
        if options:
            subprocess.run(["umount", str(folder)], check=True)


def noise(number: int) -> bytes:
    """Return bytes that are small, in the middle, or a file of their own."""
    return random.Random(number).randbytes((30, 9_000, 70_000, 1_200_000)[number % 4])


async def run(path: Path, required: bool = False) -> tuple[int, set[int]]:
    """Run a program of 24 tasks; return the size of their results, and which of them ran."""
    ran = set()
    async with WorkflowEngine.create(
        backend=ConcurrentExecutionBackend(max_workers=2),
        journal=path,
        journal_required=required,
    ) as flow:

        @flow.function_task
        async def make(number: int) -> bytes:
            ran.add(number)
            return noise(number)

        @flow.function_task
        async def measure(*parts: bytes) -> int:
            return sum(map(len, parts))

        return await measure(*(make(number) for number in range(24))), ran


EXPECTED = sum(len(noise(number)) for number in range(24))


@pytest.mark.parametrize("seed", range(4))
async def test_run_continues_on_a_full_disk(
    mount: Mount, seed: int, caplog: pytest.LogCaptureFixture
) -> None:
    size = random.Random(seed).randrange(128 << 10, 6 << 20) & ~4095
    path = mount(size) / "run.journal"
    assert await run(path) == (EXPECTED, set(range(24)))
    assert caplog.text.count(CONTINUES) == 1
    assert len([r for r in caplog.records if r.levelno >= logging.WARNING]) == 1
    mount(ROOMY)
    assert (await run(path))[0] == EXPECTED
    assert caplog.text.count(CONTINUES) == 1
    assert await run(path) == (EXPECTED, set())


async def test_run_with_a_required_journal_ends_on_a_full_disk(mount: Mount) -> None:
    path = mount(2 << 20) / "run.journal"
    with pytest.raises(JournalError, match=r"cannot be written because the disk is full"):
        await run(path, required=True)
    mount(ROOMY)
    result, ran = await run(path, required=True)
    assert result == EXPECTED
    assert 0 < len(ran) < 24


async def test_disk_that_is_full_from_the_start_is_refused(mount: Mount) -> None:
    folder = mount(16 << 10)
    (folder / "other").write_bytes(bytes(12 << 10))
    with pytest.raises(JournalError, match=r"disk is full|No space left"):
        await run(folder / "run.journal")


async def test_session_continues_on_a_full_disk(
    mount: Mount, caplog: pytest.LogCaptureFixture
) -> None:
    path = mount(1 << 20) / "run.journal"
    for _ in range(2):
        async with Session([ConcurrentExecutionBackend()], journal=path) as session:
            tasks = [ComputeTask(function=noise, args=(number,)) for number in range(24)]
            await session.submit_tasks(tasks)
            await session.wait_tasks(tasks)
        assert [len(task.return_value) for task in tasks] == [len(noise(n)) for n in range(24)]
        mount(ROOMY)
    assert caplog.text.count(CONTINUES) == 1
