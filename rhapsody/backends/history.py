"""What became of one owner's tasks at a backend: when, where and why, in bounded memory."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from rhapsody.api.errors import message_of
from rhapsody.backends.protocol import TaskStates, task_name

if TYPE_CHECKING:
    from rhapsody.backends.work import Work

__all__ = ["STATES", "Failure", "TaskHistory", "TaskRecord", "percentile"]

STATES = (
    TaskStates.PENDING,
    TaskStates.RUNNING,
    TaskStates.DONE,
    TaskStates.FAILED,
    TaskStates.CANCELED,
)
"""In the order in which tasks pass them."""
RECORDS = 20_000
"""Tasks whose times are kept, the latest to end; about 5 MB. Counts are of all tasks."""
REASONS = 200
"""Different reasons of failures that are told apart."""
REASON_CHARACTERS = 500


class TaskRecord(NamedTuple):
    """One task. Times are `time.monotonic`'s, in seconds.

    Attributes:
        uid: The task's uid.
        name: What it ran: the function's or executable's name, "prompt".
        place: Where it ran, if that is known: a node, a model server. Else "".
        state: Its state.
        submitted: When the backend got it.
        started: When it began to run; None where it did not, or that was not told.
        ended: When it ended; None where it has not.
        reason: What it failed with, in words; else "".
    """

    uid: str
    name: str
    place: str
    state: str
    submitted: float
    started: float | None
    ended: float | None
    reason: str

    @property
    def latency(self) -> float | None:
        """Seconds from submission to end."""
        return None if self.ended is None else self.ended - self.submitted

    @property
    def waiting(self) -> float | None:
        """Seconds from submission to start."""
        return None if self.started is None else self.started - self.submitted

    @property
    def running(self) -> float | None:
        """Seconds from start to end."""
        if self.started is None or self.ended is None:
            return None
        return self.ended - self.started


FIELDS = len(TaskRecord._fields)


class Failure(NamedTuple):
    """One reason that tasks failed for, and how often.

    Attributes:
        reason: The exception's class and message.
        number: Tasks that failed with it.
        uid: The first of them.
    """

    reason: str
    number: int
    uid: str


class TaskHistory:
    """Counts the tasks of one owner by state, and keeps the latest records.

    Whoever reports states sees to it that one thread does so at a time; reading needs no care.
    """

    def __init__(self) -> None:
        self.began = time.monotonic()
        self._counts = dict.fromkeys(STATES, 0)
        # The fields of all records in one row: an object for each record would have the garbage
        # collector run more often, which costs more than all else here.
        self._ended: deque[Any] = deque(maxlen=RECORDS * FIELDS)
        self._failures: dict[str, Failure] = {}
        self._batches: deque[tuple[float, int]] = deque(maxlen=RECORDS)

    # -- written by the backend -------------------------------------------------------------------

    def submitted(self, number: int) -> None:
        """Count new tasks."""
        self._counts[TaskStates.PENDING] += number

    def started(self) -> None:
        """Count a task as running that was pending."""
        self._counts[TaskStates.PENDING] -= 1
        self._counts[TaskStates.RUNNING] += 1

    def ended(self, work: Work, state: str, error: BaseException | None) -> None:
        """Keep a task's end.

        Args:
            work: The task, in the state before.
            state: DONE, FAILED or CANCELED.
            error: What it failed with.
        """
        self._counts[work.state] -= 1
        self._counts[state] += 1
        reason = "" if state != TaskStates.FAILED else self._failed(work.uid, error)
        self._ended.extend(_values(work, state, time.monotonic(), reason))

    def _failed(self, uid: str, error: BaseException | None) -> str:
        reason = "no reason was given"
        if error is not None:
            message = message_of(error).replace(str(uid) or "<uid>", "<uid>")[:REASON_CHARACTERS]
            reason = f"{type(error).__name__}: {message}"
        known = self._failures.get(reason)
        if known is None and len(self._failures) >= REASONS:
            reason = "other reasons"
            known = self._failures.get(reason)
        number, first = (known.number, known.uid) if known is not None else (0, uid)
        self._failures[reason] = Failure(reason, number + 1, first)
        return reason

    def batch(self, size: int) -> None:
        """Keep the size of a batch of prompts that left."""
        self._batches.append((time.monotonic(), size))

    # -- read by reports --------------------------------------------------------------------------

    @property
    def counts(self) -> dict[str, int]:
        """Tasks by state, without the states that no task is in."""
        return {state: number for state, number in self._counts.items() if number}

    @property
    def number_ended(self) -> int:
        """Tasks that have ended."""
        return sum(self._counts[state] for state in TaskStates.terminal_states)

    def records(self, latest: int | None = None) -> list[TaskRecord]:
        """Return the records of the latest tasks that ended, in the order of their ends."""
        fields = list(self._ended.copy())  # at one go, whatever the other threads do
        if latest is not None:
            fields = fields[-latest * FIELDS :]
        columns = (fields[column::FIELDS] for column in range(FIELDS))
        return [TaskRecord(*record) for record in zip(*columns, strict=True)]

    def active(self, works: Iterable[Work]) -> list[TaskRecord]:
        """Return records of tasks that have not ended, of those that are noted here."""
        return [
            TaskRecord._make(_values(work, work.state, None, ""))
            for work in works
            if work.attachment.history is self
        ]

    def failures(self) -> list[Failure]:
        """Return why tasks failed, the most frequent reason first."""
        return sorted(self._failures.copy().values(), key=lambda failure: -failure.number)

    def batches(self) -> list[tuple[float, int]]:
        """Return when the latest batches of prompts left, and their sizes."""
        return list(self._batches.copy())

    def latency_seconds(self, latest: int | None = None) -> dict[str, float]:
        """Return figures of the times from submission to end, in seconds.

        Returns:
            `count`, `mean`, `p50`, `p90`, `p99` and `max`; of no tasks only `count`.
        """
        found = [record.latency for record in self.records(latest)]
        latencies = sorted(latency for latency in found if latency is not None)
        if not latencies:
            return {"count": 0}
        return {
            "count": len(latencies),
            "mean": sum(latencies) / len(latencies),
            "p50": percentile(latencies, 50),
            "p90": percentile(latencies, 90),
            "p99": percentile(latencies, 99),
            "max": latencies[-1],
        }


def _values(work: Work, state: str, ended: float | None, reason: str) -> tuple[Any, ...]:
    """Return a record as a plain tuple, which takes less time to make."""
    name = task_name(work.task, work.kind)
    return work.uid, name, work.place, state, work.submitted, work.started, ended, reason


def percentile(ordered: Sequence[float], percent: int) -> float:
    """Return a percentile by nearest rank: the least that `percent` % do not exceed.

    Args:
        ordered: At least one number, in ascending order.
        percent: 1 to 100.
    """
    return ordered[-(-len(ordered) * percent // 100) - 1]
