"""A FIFO by which child processes send their process ids to a test."""

import asyncio
import os
from pathlib import Path

import pytest

from tests.support.waiting import LIMIT_S


class Fifo:
    """A FIFO that a child process writes to.

    Args:
        path: Where to create it.
    """

    def __init__(self, path: Path) -> None:
        os.mkfifo(path)
        self.path = path

    def __str__(self) -> str:
        return str(self.path)

    async def numbers(self) -> list[int]:
        """Wait for the line that a child writes, and return the numbers in it."""
        line = await asyncio.wait_for(asyncio.to_thread(self.path.read_text), LIMIT_S)
        return [int(word) for word in line.split()]


@pytest.fixture
def fifo(tmp_path: Path) -> Fifo:
    return Fifo(tmp_path / "fifo")
