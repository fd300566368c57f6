"""A worker as the scheduler sees it: its calls, how many more it may be given, and its control."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from rhapsody.allocation import Node
from rhapsody.backends.core.execution import Location
from rhapsody.backends.core.work import Work

__all__ = ["CONCURRENT", "EXCLUSIVE", "WINDOW", "OwnCall", "WorkerControl", "WorkerState"]

EXCLUSIVE, CONCURRENT = "exclusive", "concurrent"
"""The modes of a worker: sync functions and executables one at a time, or async functions
concurrently. A worker has one mode at a time."""

WINDOW = 64
"""Maximum number of calls that a worker in exclusive mode holds."""

WORTHWHILE_CALLS = 32
"""Half of this, or of a smaller window, is the least number of calls sent to a busy worker."""

PREFETCH_SECONDS = 0.03
"""Seconds of work that a worker in exclusive mode prefetches, so that it need not wait for
messages."""

ONE_AHEAD_SECONDS = 0.1
"""A worker prefetches at least one call if calls take less than this."""


class OwnCall(NamedTuple):
    """A call that has a worker of its own.

    Attributes:
        work: Its task.
        mode: The mode that it runs in.
        environment: Variables that its worker has in addition.
        on_end: Called when its last worker has ended.
    """

    work: Work
    mode: str
    environment: Mapping[str, str]
    on_end: Callable[[], None]


class WorkerState:
    """One worker.

    Args:
        number: Its number within the backend.
        node: The node it runs on.
        async_limit: Maximum number of async functions that it may hold.
        own: The only call that it will get; None: it gets any calls.

    Attributes:
        handle: Number by which its `WorkerControl` knows its process; 0 until it is started.
        pid: Its process id on its node; 0 until it is ready.
        location: Where its tasks run.
        calls: The task of each call that it holds, by call id.
        running: Ids of the calls that are known to run.
        mode: CONCURRENT or EXCLUSIVE; meaningful only while it holds calls.
        stalled: Whether it was asked to give back its waiting calls and has ended none since.
        retiring: Whether it gets no more calls and is to end.
        stopping: Whether it was told to end.
        last_progress: When a call last ended, by the loop's clock.
        last_pong: When its event loop last answered a ping, by the loop's clock.
        is_disconnected: Whether its last message has arrived.
        has_exited: Whether its process has ended.
        exit_code: Exit code of its process; None if unknown, or if it could not be started.
        start_error: What it wrote to standard error before it was ready, or why it could not be
            started, if known.
    """

    def __init__(
        self, number: int, node: Node, async_limit: int, own: OwnCall | None = None
    ) -> None:
        self.number = number
        self.node = node
        self.own = own
        self.handle = 0
        self.pid = 0
        self.location = Location(node.name, None, f"worker {number}")
        self.calls: dict[int, Work] = {}
        self.running: set[int] = set()
        self.mode = EXCLUSIVE
        self.stalled = False
        self.retiring = False
        self.stopping = False
        self.last_progress = 0.0
        self.last_pong = 0.0
        self.is_disconnected = False
        self.has_exited = False
        self.exit_code: int | None = None
        self.start_error = ""
        self._async_limit = async_limit
        self._window = 1
        self._mean_seconds: float | None = None
        self._last_call_id = 0

    @property
    def has_reported(self) -> bool:
        """Whether it has sent its first message, or has ended without one."""
        return self.pid != 0 or self.has_exited

    @property
    def is_ready(self) -> bool:
        """Whether it can be given calls."""
        return self.pid != 0 and not (self.retiring or self.is_disconnected or self.has_exited)

    @property
    def exit_description(self) -> str:
        """How its process ended, for errors and the log."""
        code = self.exit_code
        if code is None:
            return "was lost with the agent of its node" if self.pid else "could not be started"
        if code < 0:
            with contextlib.suppress(ValueError):
                return f"was ended by {signal.Signals(-code).name}"
        return f"ended with exit code {code}"

    def free_slots(self, mode: str) -> int:
        """Return how many calls it may be given now.

        Returns 0 if the number is small and will soon be larger, so that messages have some size.
        """
        if mode == CONCURRENT:
            return self._async_limit - len(self.calls)
        free = self._window - len(self.calls)
        return 0 if self.calls and free < min(self._window, WORTHWHILE_CALLS) // 2 else free

    @property
    def waiting_calls(self) -> int:
        """How many of its calls do not run yet, as far as is known."""
        return len(self.calls) - (len(self.running) if self.mode == CONCURRENT else 1)

    def add_call(self, work: Work) -> int:
        """Add a call; return its id."""
        self._last_call_id += 1
        self.calls[self._last_call_id] = work
        return self._last_call_id

    def remove_call(self, call_id: int) -> Work | None:
        """Remove a call and return its task; None if it has no such call."""
        self.running.discard(call_id)
        return self.calls.pop(call_id, None)

    def adapt_window(self, calls: int, seconds: float) -> None:
        """Adapt the number of calls that it may hold to how long they take.

        Args:
            calls: Number of calls that ended.
            seconds: How long they took together.
        """
        mean = seconds / calls
        self._mean_seconds = (
            mean if self._mean_seconds is None else 0.5 * (self._mean_seconds + mean)
        )
        window = int(PREFETCH_SECONDS / max(self._mean_seconds, 1e-6))
        if self._mean_seconds < ONE_AHEAD_SECONDS:
            window = max(window, 2)
        self._window = max(1, min(window, 2 * self._window, WINDOW))

    def mark_stalled(self) -> None:
        """Note that it is busy with a long call: its next window is one call."""
        self.stalled = True
        self._window = 1


class WorkerControl(Protocol):
    """Starts and ends workers and sends messages to them. No method blocks."""

    def new_number(self) -> int:
        """Return the number of a new worker."""

    def start_workers(self, workers: Sequence[WorkerState]) -> None:
        """Start workers."""

    def send_calls(self, worker: WorkerState, calls: Sequence[tuple[Work, int]]) -> None:
        """Send calls, pairs of a task and a call id, to a worker."""

    def send(self, worker: WorkerState, *message: Any) -> None:
        """Send any other message to a worker."""

    def kill(self, worker: WorkerState) -> None:
        """Kill a worker."""

    def on_dropped(self, worker: WorkerState, segments: list[tuple[str, bool]]) -> None:
        """Note that a worker uses segments of large data no longer; see `DataStore.drop`."""

    def on_end(self, worker: WorkerState) -> None:
        """Note that a worker has ended, and its last message was handled."""

    def reap(self, worker: WorkerState) -> None:
        """Report the worker's exit to the scheduler, after its last message."""
