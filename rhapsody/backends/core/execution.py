"""The execution of a task, as its owner sees it after the end: when, where, and at what cost."""

from __future__ import annotations

import functools
import os
import socket
import threading
import time
from datetime import datetime, timezone
from typing import NamedTuple

__all__ = ["PEAK_MEMORY", "Execution", "Location", "this_host", "this_thread"]

PEAK_MEMORY = "peak_memory_bytes"
"""A result field of executables, which `Execution` gets and the task does not."""


class Location(NamedTuple):
    """Where a task runs.

    Attributes:
        host: Name of the machine. None: not known.
        pid: Process id on this machine: of an executable's own process, else of the process that
            runs the function. None: not known.
        worker: Name of the thread, worker or model server. None: not known.
    """

    host: str | None = None
    pid: int | None = None
    worker: str | None = None


NOWHERE = Location()


class Execution(NamedTuple):
    """When and where a task was executed; `task.execution` after its end.

    Attributes:
        submitted_at: When the backend received its last attempt, in seconds since 1970 (UTC).
        started_at: When it began to run, likewise. None: it did not, or its backend cannot tell.
        ended_at: When it ended, likewise.
        host: Name of the machine that ran it. None: not known.
        pid: Process id on this machine: of an executable's own process, else of the process that
            ran the function. None: not known.
        worker: Name of the thread, worker or model server that ran it. None: not known.
        attempts: Number of attempts, the last one included.
        peak_memory_bytes: Most resident memory that its last attempt used: of an executable the
            largest of its processes, else of the worker process that ran it. None: not known.
    """

    submitted_at: float
    started_at: float | None
    ended_at: float
    host: str | None
    pid: int | None
    worker: str | None
    attempts: int
    peak_memory_bytes: int | None = None

    @property
    def submitted(self) -> datetime:
        """When the backend received its last attempt, in UTC."""
        return _utc(self.submitted_at)

    @property
    def started(self) -> datetime | None:
        """When it began to run, in UTC; None if that is not known."""
        return None if self.started_at is None else _utc(self.started_at)

    @property
    def ended(self) -> datetime:
        """When it ended, in UTC."""
        return _utc(self.ended_at)

    @property
    def waiting_seconds(self) -> float | None:
        """Seconds from submission to start; None if the start is not known."""
        return None if self.started_at is None else self.started_at - self.submitted_at

    @property
    def running_seconds(self) -> float | None:
        """Seconds from start to end; None if the start is not known."""
        return None if self.started_at is None else self.ended_at - self.started_at

    @classmethod
    def ending_now(
        cls,
        submitted: float,
        started: float | None,
        location: Location | None,
        attempts: int,
        peak_memory_bytes: int | None = None,
    ) -> Execution:
        """Return the execution of a task that ends now.

        Args:
            submitted: When it was submitted, by `time.monotonic`.
            started: When it started, likewise. None: not known.
            location: Where it ran. None: not known.
            attempts: Number of attempts.
            peak_memory_bytes: Most resident memory that it used. None: not known.
        """
        ended = time.time()
        offset = ended - time.monotonic()
        return cls(
            submitted + offset,
            None if started is None else started + offset,
            ended,
            *(location or NOWHERE),
            attempts,
            peak_memory_bytes,
        )


def _utc(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, timezone.utc)


@functools.cache
def this_host() -> str:
    """Return the name of this machine."""
    return socket.gethostname()


_of_thread = threading.local()


def this_thread() -> Location:
    """Return the location of the code in this thread; the same object for all its tasks."""
    location: Location | None = getattr(_of_thread, "location", None)
    if location is None or location.pid != os.getpid():
        name = threading.current_thread().name
        location = _of_thread.location = Location(this_host(), os.getpid(), name)
    return location
