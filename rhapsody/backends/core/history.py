"""The history of one owner's tasks: counts by state, records of the latest, and failures."""

from __future__ import annotations

import threading
import time
from array import array
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from functools import partial
from math import isnan
from traceback import TracebackException
from typing import Any, NamedTuple, Protocol

from rhapsody.backends.protocol import Attempt, Task, TaskStates, task_name
from rhapsody.errors import has_own_text, message_of

__all__ = ["STATES", "Failure", "RecordedTask", "TaskHistory", "TaskRecord", "percentile"]

STATES = (
    TaskStates.PENDING,
    TaskStates.RUNNING,
    TaskStates.DONE,
    TaskStates.FAILED,
    TaskStates.CANCELED,
)
"""All states, in the order in which a task passes through them."""
RECORDS = 20_000
"""Maximum number of records, of the latest tasks; about 5 MB. Counts cover all tasks."""
CROWD = 256
"""Active tasks from which on throughput matters more than the latency of each."""
REASONS = 200
"""Maximum number of reasons for failures; further ones are counted together."""
REASON_CHARACTERS = 500
TRACEBACK_CHARACTERS = 20_000
"""Characters of a traceback; of a longer one the end is kept."""
NAMES = 1000
"""Maximum number of names of functions and executables that are counted one by one."""
OTHER_NAMES = "other names"


class TaskRecord(NamedTuple):
    """One task. Times are in seconds, by `time.monotonic`.

    Attributes:
        uid: The task's uid.
        name: The name of its function or executable, or "prompt".
        place: The node or model server that ran it; "" if unknown.
        state: The task's state.
        submitted: When the backend received it.
        started: When it began to run. None: it did not, or its backend does not report starts.
        ended: When it ended. None: it is still active.
        reason: Why it failed, in words; "" for any other end.
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


TEXTS, TIMES = 5, 3
"""How many fields of a record are texts, and how many are times."""


class _Records:
    """The latest records. Thread-safe.

    Records outlive their tasks. An object for each record, or for each time, would be scattered
    over the memory of the tasks, and keep it from being returned.

    Args:
        size: Maximum number of records.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._lock = threading.Lock()
        self._texts: deque[str] = deque(maxlen=size * TEXTS)
        self._times = array("d")
        self._oldest = 0  # the index of the oldest times, when all places are taken

    def add(self, record: Sequence[Any]) -> None:
        """Add a record, and drop the oldest one if there are too many."""
        uid, name, place, state, submitted, started, ended, reason = record
        times = submitted, NAN if started is None else started, NAN if ended is None else ended
        with self._lock:
            self._texts.extend((uid, name, place, state, reason))
            if len(self._times) < self._size * TIMES:
                self._times.extend(times)
                return
            first = self._oldest
            self._times[first], self._times[first + 1], self._times[first + 2] = times
            self._oldest = (first + TIMES) % len(self._times)

    def grow(self, size: int) -> None:
        """Keep at least this number of records from now on."""
        with self._lock:
            if size > self._size:
                self._size = size
                self._texts = deque(self._texts, maxlen=size * TEXTS)
                self._times = self._times[self._oldest :] + self._times[: self._oldest]
                self._oldest = 0

    def columns(self, latest: int | None) -> list[list[Any]]:
        """Return the latest records, or all, in their order: one list for each field."""
        with self._lock:
            texts, times, oldest = list(self._texts), self._times[:], self._oldest
        times = times[oldest:] + times[:oldest]
        if latest is not None:
            texts, times = texts[-latest * TEXTS :], times[-latest * TIMES :]
        uids, names, places, states, reasons = (texts[column::TEXTS] for column in range(TEXTS))
        seconds = ([_known(time) for time in times[column::TIMES]] for column in range(TIMES))
        return [uids, names, places, states, *seconds, reasons]


NAN = float("nan")


def _known(seconds: float) -> float | None:
    return None if isnan(seconds) else seconds


class RecordedTask(Protocol):
    """The attributes of a task that a history reads; see `Work`."""

    uid: str
    kind: str | None
    task: Task
    place: str
    state: str
    submitted: float
    started: float | None
    attempt: Attempt | None

    @property
    def history(self) -> TaskHistory:
        """The history that records this task."""


class Failure(NamedTuple):
    """A reason for failures, and how often it occurred.

    Attributes:
        reason: The exception's class and message.
        number: How many tasks failed for this reason.
        uid: The uid of the first of these tasks.
        raised: The exception of this task, without its frames. None: not known.
    """

    reason: str
    number: int
    uid: str
    raised: TracebackException | None = None

    @property
    def traceback(self) -> str:
        """The traceback of the first task, with its causes; "" if it is not known."""
        if self.raised is None:
            return ""
        text = "".join(self.raised.format())
        return text if len(text) <= TRACEBACK_CHARACTERS else f"... {text[-TRACEBACK_CHARACTERS:]}"


class ErrorText(NamedTuple):
    """The text of an exception, for which code of the user may be called.

    Attributes:
        message: Its message.
        raised: Returns it without its frames.
    """

    message: str
    raised: Callable[[], TracebackException | None]

    @classmethod
    def of(cls, error: BaseException) -> ErrorText:
        """Return the text; the user's code is not called any more after that."""
        if not has_own_text(error):
            return cls(message_of(error), partial(_without_frames, error))
        raised = _without_frames(error)
        return cls(message_of(error), lambda: raised)


class TaskHistory:
    """Counts the tasks of one owner by state, and keeps the latest records.

    Writers must hold a lock, so that one thread writes at a time. Reading needs no lock.

    Attributes:
        began: When the history was created, by `time.monotonic`.
        first_submitted: When the first task was submitted, likewise. None: there is no task.
    """

    def __init__(self) -> None:
        self.began = time.monotonic()
        self.first_submitted: float | None = None
        self._counts = dict.fromkeys(STATES, 0)
        self._ended = _Records(RECORDS)
        self._names: dict[str, dict[str, int]] = {}
        # The failed attempts of tasks that may be repeated, by task.
        self._attempts: dict[Hashable, tuple[Any, ...]] = {}
        self._failures: dict[str, Failure] = {}
        self._batches: deque[tuple[float, int]] = deque(maxlen=RECORDS)

    def count_submitted(self, number: int) -> None:
        """Count new tasks as pending."""
        if self.first_submitted is None:
            self.first_submitted = time.monotonic()
        self._counts[TaskStates.PENDING] += number

    def record_cancelled_pause(self, task: Hashable) -> None:
        """Count a task as CANCELED that was cancelled in the pause after a failed attempt.

        Args:
            task: Identifies the task; see `Attempt`.
        """
        record = self._attempts.get(task)
        if record is None:
            return
        self._take_back(task)
        failed = TaskRecord._make(record)
        self.add(failed._replace(state=TaskStates.CANCELED, ended=time.monotonic(), reason=""))

    def take_back(self, attempt: Attempt) -> None:
        """Count the failure of the attempt before this one no more: the task is repeated."""
        self._take_back(attempt.task)

    def _take_back(self, task: Hashable) -> None:
        record = self._attempts.pop(task, None)
        if record is None:
            return
        _, name, _, state, _, _, _, reason = record
        self._counts[state] -= 1
        self._counts_of(name)[state] -= 1
        failure = self._failures[reason]
        if failure.number > 1:
            self._failures[reason] = failure._replace(number=failure.number - 1)
        else:
            del self._failures[reason]

    def count_started(self) -> None:
        """Count one pending task as running."""
        self._counts[TaskStates.PENDING] -= 1
        self._counts[TaskStates.RUNNING] += 1

    def record_end(
        self,
        work: RecordedTask,
        state: str,
        error: BaseException | None,
        text: ErrorText | None = None,
    ) -> None:
        """Count a task's end and keep its record.

        Args:
            work: The task, still in its previous state.
            state: DONE, FAILED or CANCELED.
            error: The exception of a failed task.
            text: Its text. None: it is made here.
        """
        self._counts[work.state] -= 1
        self._counts[state] += 1
        reason = "" if state != TaskStates.FAILED else self._failed(work.uid, error, text)
        record = _values(work, state, time.monotonic(), reason)
        name = record[1]
        (self._names.get(name) or self._counts_of(name))[state] += 1
        attempt = work.attempt
        if attempt is None or attempt.is_last or state != TaskStates.FAILED:
            self._ended.add(record)
            return
        self._attempts[attempt.task] = record
        if len(self._attempts) > RECORDS:  # its owner has not repeated the oldest for long
            self._ended.add(self._attempts.pop(next(iter(self._attempts))))

    def add(self, record: TaskRecord) -> None:
        """Add a task from another source; of one that is still active only its state."""
        self.first_submitted = min(self.first_submitted or record.submitted, record.submitted)
        self._counts[record.state] += 1
        if record.ended is not None:
            self._counts_of(record.name)[record.state] += 1
            if record.state == TaskStates.FAILED:
                reason = self._count_failure(record.uid, record.reason or "no reason was given")
                record = record._replace(reason=reason)
            self._ended.add(record)

    def _failed(self, uid: str, error: BaseException | None, text: ErrorText | None) -> str:
        if error is None:
            return self._count_failure(uid, "no reason was given")
        text = text or ErrorText(message_of(error), partial(_without_frames, error))
        message = text.message.replace(str(uid) or "<uid>", "<uid>")[:REASON_CHARACTERS]
        return self._count_failure(uid, f"{type(error).__name__}: {message}", text.raised)

    def _counts_of(self, name: str) -> dict[str, int]:
        """Return the counts of a name, or of all further names together."""
        if name not in self._names and len(self._names) >= NAMES:
            name = OTHER_NAMES
        return self._names.setdefault(name, dict.fromkeys(TaskStates.terminal_states, 0))

    def _count_failure(
        self, uid: str, reason: str, raised: Callable[[], TracebackException | None] | None = None
    ) -> str:
        """Count a failure, and return the reason under which it is counted."""
        known = self._failures.get(reason)
        if known is None and len(self._failures) >= REASONS:
            reason = "other reasons"
            known = self._failures.get(reason)
        if known is None:
            self._failures[reason] = Failure(reason, 1, uid, raised() if raised else None)
        else:
            self._failures[reason] = known._replace(number=known.number + 1)
        return reason

    def keep(self, number: int) -> None:
        """Keep the records of more tasks from now on; may be called from any thread.

        Args:
            number: Maximum number of records.
        """
        self._ended.grow(number)

    def record_batch(self, size: int) -> None:
        """Keep the time and the size of a batch of prompts that was sent."""
        self._batches.append((time.monotonic(), size))

    @property
    def counts(self) -> dict[str, int]:
        """Number of tasks by state, without states that no task is in."""
        return {state: number for state, number in self._counts.items() if number}

    @property
    def ended_by_name(self) -> Mapping[str, Mapping[str, int]]:
        """Number of ended tasks by name and state."""
        return {name: dict(counts) for name, counts in self._names.copy().items()}

    @property
    def is_crowded(self) -> bool:
        """Whether so many tasks are active that a millisecond makes no difference to them."""
        counts = self._counts
        return counts[TaskStates.PENDING] + counts[TaskStates.RUNNING] >= CROWD

    @property
    def is_active(self) -> bool:
        """Whether a task is pending or running."""
        return bool(self._counts[TaskStates.PENDING] or self._counts[TaskStates.RUNNING])

    @property
    def number_ended(self) -> int:
        """Number of tasks that have ended."""
        return sum(self._counts[state] for state in TaskStates.terminal_states)

    def records(self, latest: int | None = None) -> list[TaskRecord]:
        """Return the records of the latest tasks that ended, in the order of their ends."""
        return list(map(TaskRecord._make, zip(*self.columns(latest), strict=True)))

    def columns(self, latest: int | None = None) -> list[list[Any]]:
        """Return the same as `records`, as one list for each field of a record."""
        columns = self._ended.columns(latest)
        for failed in self._attempts.copy().values():
            for column, value in zip(columns, failed, strict=True):
                column.append(value)
        return columns if latest is None else [column[-latest:] for column in columns]

    def active(self, works: Iterable[RecordedTask]) -> list[TaskRecord]:
        """Return records of active tasks, without tasks that another history records."""
        return [
            TaskRecord._make(_values(work, work.state, None, ""))
            for work in works
            if work.history is self
        ]

    def failures(self) -> list[Failure]:
        """Return the reasons for failures, the most frequent first."""
        return sorted(self._failures.copy().values(), key=lambda failure: -failure.number)

    def batches(self) -> list[tuple[float, int]]:
        """Return the times and sizes of the latest batches of prompts."""
        return list(self._batches.copy())

    def latency_seconds(self, latest: int | None = None) -> dict[str, float]:
        """Return statistics of the times from submission to end, in seconds.

        Returns:
            `count`, `mean`, `p50`, `p90`, `p99` and `max`; without tasks only `count`.
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


def _values(work: RecordedTask, state: str, ended: float | None, reason: str) -> tuple[Any, ...]:
    """Return the fields of a record as a plain tuple, which is faster to create."""
    name = task_name(work.task, work.kind)
    return work.uid, name, work.place, state, work.submitted, work.started, ended, reason


def _without_frames(error: BaseException) -> TracebackException | None:
    """Return what is needed to format a traceback later, without the objects in its frames."""
    try:
        return TracebackException.from_exception(error, lookup_lines=False, limit=-40)
    except BaseException:  # the attributes of the user's own exceptions may raise
        return None


def percentile(ordered: Sequence[float], percent: int) -> float:
    """Return a percentile by nearest rank: the least number that `percent` % do not exceed.

    Args:
        ordered: At least one number, in ascending order.
        percent: 1 to 100.
    """
    return ordered[-(-len(ordered) * percent // 100) - 1]
