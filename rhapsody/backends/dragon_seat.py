"""A worker as the head sees it: what it has in hand, and how much more it may be given."""

from __future__ import annotations

from rhapsody.backends.dragon_runtime import Host
from rhapsody.backends.work import Work

__all__ = ["CONCURRENT", "EXCLUSIVE", "WINDOW", "Seat"]

EXCLUSIVE, CONCURRENT = "exclusive", "concurrent"
"""The two ways of running: sync functions and executables one by one, async functions together.

A worker does only one of the two at a time."""

WINDOW = 64
"""Most calls in the hands of a worker that runs them one by one."""

TOGETHER = 32
"""Calls that make a message worth sending."""

AHEAD_SECONDS = 0.03
"""Work that such a worker has in hand, so that it need not wait for the next message."""

ONE_AHEAD_SECONDS = 0.1
"""Calls shorter than this have one more waiting in the worker."""


class Seat:
    """One worker.

    Args:
        number: Its number within the backend.
        host: Where it runs.
        together: Most async functions that it may have in hand.

    Attributes:
        puid: Dragon's number for its process; 0 until started.
        pid: Its process id on its host; 0 until it is ready.
        held: The task of each call in its hands, by token.
        begun: Tokens of those that are known to have begun.
        lane: Which way of running it is in, while it holds anything.
        stalled: Whether it gave back what it had not begun, and is still at what it had.
        retiring: Whether it is to end, and gets nothing more.
        progress: When it last ended a call, on the loop's clock.
        ponged: When its loop last showed that it is not blocked, on the head's clock.
        is_gone: Whether its last note has come.
        has_ended: Whether its process has.
        exit_code: How that ended; None where it is not known, or could not be started.
    """

    def __init__(self, number: int, host: Host, together: int) -> None:
        self.number = number
        self.host = host
        self.puid = 0
        self.pid = 0
        self.held: dict[int, Work] = {}
        self.begun: set[int] = set()
        self.lane = EXCLUSIVE
        self.stalled = False
        self.retiring = False
        self.progress = 0.0
        self.ponged = 0.0
        self.is_gone = False
        self.has_ended = False
        self.exit_code: int | None = None
        self._together = together
        self._window = 1
        self._mean: float | None = None
        self._token = 0

    @property
    def was_heard(self) -> bool:
        """Whether it has said a word, or can say none any more."""
        return self.pid != 0 or self.has_ended

    @property
    def is_ready(self) -> bool:
        """Whether it can be given calls."""
        return self.pid != 0 and not (self.retiring or self.is_gone or self.has_ended)

    def room(self, lane: str) -> int:
        """Return how many calls it may be given now; none where there will soon be room for more.

        So messages are of some size.
        """
        if lane == CONCURRENT:
            return self._together - len(self.held)
        room = self._window - len(self.held)
        return 0 if self.held and room < min(self._window, TOGETHER) // 2 else room

    @property
    def surplus(self) -> int:
        """How many of its calls have not begun, for all that is known."""
        return len(self.held) - (len(self.begun) if self.lane == CONCURRENT else 1)

    def take(self, work: Work) -> int:
        """Put a task into its hands; returns the call's token."""
        self._token += 1
        self.held[self._token] = work
        return self._token

    def drop(self, token: int) -> Work | None:
        """Take a call out of its hands; None where it is not there."""
        self.begun.discard(token)
        return self.held.pop(token, None)

    def learn(self, calls: int, seconds: float) -> None:
        """Adapt the window to how long calls take.

        Args:
            calls: How many have ended.
            seconds: How long they took together.
        """
        mean = seconds / calls
        self._mean = mean if self._mean is None else 0.5 * (self._mean + mean)
        window = int(AHEAD_SECONDS / max(self._mean, 1e-6))
        if self._mean < ONE_AHEAD_SECONDS:
            window = max(window, 2)
        self._window = max(1, min(window, 2 * self._window, WINDOW))

    def stall(self) -> None:
        """Note that it is busy with something long."""
        self.stalled = True
        self._window = 1
