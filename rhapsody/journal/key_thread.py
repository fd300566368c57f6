"""The thread that makes the keys of large arguments, in the order of the program."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

__all__ = ["KeyThread"]

T = TypeVar("T")
U = TypeVar("U")

READERS = 8
"""Files are read in parallel, since a parallel file system is slow for one reader."""


class KeyThread:
    """Makes keys one after the other, so that equal calls are numbered in the order of the program.

    The threads start at the first use.
    """

    def __init__(self) -> None:
        self._keys = ThreadPoolExecutor(1, thread_name_prefix="rhapsody-journal-keys")
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="rhapsody-journal-files")

    async def run(self, read: Callable[[], T], make: Callable[[T], U]) -> U:
        """Read in parallel to others, and then make a key after those of all earlier calls.

        Args:
            read: Reads the files that belong to the key.
            make: Makes the key, with what was read.

        Raises:
            Exception: One of both failed.
        """
        found = self._readers.submit(read)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._keys, lambda: make(found.result()))

    def stop(self) -> None:
        """Drop what has not begun, and wait for the rest. Idempotent."""
        for pool in (self._readers, self._keys):  # in this order: a key waits for its files
            pool.shutdown(cancel_futures=True)
