"""The program's Dragon queue: agents of other nodes write it, and a thread reads it.

A process that is killed while it uses the queue leaves it locked: nobody can read or write it any
more, and Dragon does not say so. Then the program needs another queue.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import queue
from collections.abc import Callable
from typing import Any

from rhapsody.backends.dragon import processes
from rhapsody.waiting import done_within

__all__ = ["ProgramQueue"]

logger = logging.getLogger(__name__)

RELEASE_SECONDS = 1.0
"""How long the release of the queue may take. It never returns if the queue is locked."""

PROBE_SECONDS = 5.0
"""How long an entry may take from the program to itself. It needs milliseconds, even on busy
cores."""

ENTRIES_AT_ONCE = 64
"""Maximum number of queue entries handed over in one go."""

CAPACITY = 4096
"""Capacity of the queue in entries; agents wait while it is full."""

END, PROBE = b"", b"probe"


class _Receiver:
    """A thread that reads one queue.

    Args:
        queue: The queue.
        on_entries: Called in the thread with the entries.
        on_probe: Called in the thread when it reads a probe.

    Attributes:
        reads: The number of reads so far.
        waits: Whether the thread reads the queue. Otherwise it handles entries.
    """

    def __init__(
        self, queue: Any, on_entries: Callable[[list[Any]], None], on_probe: Callable[[], None]
    ) -> None:
        self.queue = queue
        self.reads = 0
        self.waits = False
        self._on_entries = on_entries
        self._on_probe = on_probe
        self.thread = processes.in_thread(self._receive, "in")

    def _receive(self) -> None:
        while True:
            self.waits = True
            entries = [self.queue.get()]
            self.reads += 1
            with contextlib.suppress(queue.Empty):  # also this blocks if the queue is locked
                while len(entries) < ENTRIES_AT_ONCE:
                    entries.append(self.queue.get_nowait())
                    self.reads += 1
            self.waits = False
            if END in entries:
                return
            if PROBE in entries:
                self._on_probe()
            entries = [entry for entry in entries if entry != PROBE]
            if entries:
                self._on_entries(entries)
            del entries


class ProgramQueue:
    """The queue that the program reads. It may be replaced.

    Args:
        name: The backend's name, for the log.
        on_entries: Called with the entries, in the thread that reads them.
    """

    def __init__(self, name: str, on_entries: Callable[[list[Any]], None]) -> None:
        self._name = name
        self._on_entries = on_entries
        self._loop = asyncio.get_running_loop()
        self._receiver: _Receiver | None = None
        self._probed = asyncio.Event()

    @property
    def current(self) -> Any:
        """The queue for agents that are started now; None: it was not opened."""
        return self._receiver.queue if self._receiver is not None else None

    async def open(self) -> None:
        """Make a queue, in place of the one before, and read it."""
        from dragon.native.queue import Queue

        made = await asyncio.to_thread(Queue, maxsize=CAPACITY, block_size=1024)
        self._receiver = _Receiver(made, self._on_entries, self._on_probe)

    def _on_probe(self) -> None:
        self._loop.call_soon_threadsafe(self._probed.set)

    async def is_locked(self) -> bool:
        """Return whether a killed process left the queue locked: nothing passes through it."""
        receiver = self._receiver
        assert receiver is not None
        self._probed.clear()
        processes.in_thread(receiver.queue.put, "probe", PROBE)
        while True:
            # A thread that handles entries may take long: it unpickles objects of the user.
            waits, reads = receiver.waits, receiver.reads
            if await done_within(self._probed.wait(), PROBE_SECONDS):
                return False
            if waits and receiver.waits and receiver.reads == reads:
                return True

    async def close(self) -> None:
        """Release the queue, after all agents have ended."""
        if self._receiver is None:
            return
        releasing = processes.in_thread(self._release, "close", self._receiver)
        await asyncio.to_thread(releasing.join, RELEASE_SECONDS)
        if releasing.is_alive():
            logger.error(
                "backend '%s': a killed agent left the backend's queue locked; its memory is not "
                "released",
                self._name,
            )

    def _release(self, receiver: _Receiver) -> None:
        receiver.queue.put(END)
        receiver.thread.join()
        receiver.queue.destroy()
