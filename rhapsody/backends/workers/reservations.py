"""Reservations: CPUs of the shared workers that other tasks use instead of them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from rhapsody.backends.core.work import Work

__all__ = ["Reservations"]


class Reservations:
    """The CPUs that are reserved for tasks beside the shared workers. Used on one loop.

    A worker that has calls uses one CPU. Tasks get their CPUs in the order in which they asked.
    While one waits, workers get no further calls, so that enough of them become free.

    Args:
        cpus: Number of CPUs.
    """

    def __init__(self, cpus: int) -> None:
        self._free = cpus
        self._waiting: deque[tuple[Work, int, Callable[[], None]]] = deque()
        self._reserved: dict[Work, int] = {}

    def __bool__(self) -> bool:
        """Whether CPUs are reserved or waited for."""
        return bool(self._waiting or self._reserved)

    @property
    def any_waits(self) -> bool:
        """Whether a task waits for its CPUs."""
        return bool(self._waiting)

    def add(self, work: Work, cpus: int, start: Callable[[], None]) -> None:
        """Add a task that waits.

        Args:
            work: The task.
            cpus: Number of CPUs; together with those in use it does not exceed that of all.
            start: Starts the task; returned by `next`.
        """
        self._waiting.append((work, cpus, start))

    def next(self, busy: int) -> Callable[[], None] | None:
        """Reserve the CPUs of the task that is next.

        Args:
            busy: Number of workers that have calls.

        Returns:
            What starts the task. None: no task waits, or too few CPUs are free.
        """
        if not self._waiting or self._waiting[0][1] > self._free - busy:
            return None
        work, cpus, start = self._waiting.popleft()
        self._reserved[work] = cpus
        self._free -= cpus
        return start

    def drop(self, work: Work) -> bool:
        """Remove a task that waits; return False if it does not wait."""
        before = len(self._waiting)
        self._waiting = deque(entry for entry in self._waiting if entry[0] is not work)
        return len(self._waiting) < before

    def end(self, work: Work) -> bool:
        """Free the CPUs of a task; return False if it has none."""
        cpus = self._reserved.pop(work, 0)
        self._free += cpus
        return cpus > 0

    def allow_another(self, busy: int) -> bool:
        """Return whether one more worker may be given calls, beside those that have some."""
        return not self._waiting and busy < self._free
