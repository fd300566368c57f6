"""The tasks that wait for a worker."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby

from rhapsody.backends.core.aged_queue import AgedQueue, Arrivals
from rhapsody.backends.core.work import Work
from rhapsody.backends.workers.worker_state import CONCURRENT, EXCLUSIVE

__all__ = ["TaskQueues"]


class TaskQueues:
    """The waiting tasks, a queue for each mode. A removed task leaves its queue lazily."""

    def __init__(self) -> None:
        arrivals = Arrivals()
        self._queues: dict[str, AgedQueue[Work]] = {
            EXCLUSIVE: AgedQueue(arrivals),
            CONCURRENT: AgedQueue(arrivals),
        }
        self._modes: dict[Work, str] = {}

    def __len__(self) -> int:
        return len(self._modes)

    def add(self, works: Iterable[tuple[Work, str]]) -> None:
        """Add new tasks, each with its mode."""
        for (mode, priority), group in groupby(works, _mode_and_priority):
            added = [work for work, _ in group]
            self._modes.update(dict.fromkeys(added, mode))
            if priority:
                for work in added:
                    self._queues[mode].add(work, priority)
            else:
                self._queues[mode].extend(added)

    def put_back(self, works: Sequence[tuple[Work, str]]) -> None:
        """Put tasks that a worker had before all others, in the given order."""
        for work, mode in reversed(works):
            self._queues[mode].put_back(work)
            self._modes[work] = mode

    def remove(self, work: Work) -> bool:
        """Remove a task; return False if it does not wait."""
        return self._modes.pop(work, None) is not None

    def clear(self) -> list[Work]:
        """Remove and return all tasks."""
        works = list(self._modes)
        self._modes.clear()
        return works

    def next_mode(self) -> str | None:
        """Return the mode of the task that is next; None if no task waits."""
        fronts = [(q.key, mode) for mode, q in self._queues.items() if self._has_front(q)]
        return min(fronts)[1] if fronts else None

    def length(self, mode: str) -> int:
        """Return the length of a queue, removed tasks behind its front included."""
        return len(self._queues[mode])

    def take(self, mode: str, count: int) -> list[Work]:
        """Remove and return the first tasks of a queue, at most `count`."""
        queue = self._queues[mode]
        works: list[Work] = []
        while len(works) < count and self._has_front(queue):
            work = queue.pop()
            del self._modes[work]
            works.append(work)
        return works

    def _has_front(self, queue: AgedQueue[Work]) -> bool:
        """Drop removed tasks from the front; return whether a task is left."""
        while len(queue) and queue.first() not in self._modes:
            queue.pop()
        return len(queue) > 0


def _mode_and_priority(entry: tuple[Work, str]) -> tuple[str, int]:
    work, mode = entry
    return mode, work.priority
