"""What the pool and the jobs of a Dragon backend need of others: those who act, and who is told."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

from rhapsody.backends.dragon_seat import Seat
from rhapsody.backends.work import Work

if TYPE_CHECKING:
    from rhapsody.backends.dragon_worker import Setup

__all__ = ["Crew", "JobCrew", "Reports"]


class Reports(Protocol):
    """What the pool tells about tasks; each is told exactly one end."""

    def running(self, work: Work, place: str) -> None:
        """A task has begun, at a host, or as one of the jobs."""

    def done(self, work: Work, fields: dict[str, Any]) -> None:
        """A task has ended, with its result fields."""

    def failed(self, work: Work, error: BaseException) -> None:
        """A task has failed."""

    def cancelled(self, work: Work) -> None:
        """A task was stopped, or never begun, after `Pool.cancel`."""


class Crew(Protocol):
    """What starts and ends workers and speaks to them; never blocks."""

    def number(self) -> int:
        """Return a number for a new worker."""

    def start(self, seats: Sequence[Seat]) -> None:
        """Start workers."""

    def send(self, seat: Seat, calls: Sequence[tuple[Work, int]]) -> None:
        """Send calls (task, token) to a worker."""

    def tell(self, seat: Seat, *message: Any) -> None:
        """Send any other message to a worker."""

    def ping(self, seat: Seat) -> None:
        """Have a worker's loop say that it is not blocked."""

    def kill(self, seat: Seat) -> None:
        """Kill a worker."""

    def see_off(self, seat: Seat) -> None:
        """Have the pool told of the end of a worker's process, which has said its last."""


class JobCrew(Protocol):
    """What speaks to ranks; never blocks."""

    def number(self) -> int:
        """Return a number for a new worker; from any thread."""

    def setup(self, number: int) -> Setup:
        """Return what a new worker has to know."""

    def post_alone(self, host: str, number: int, work: Work, rank: int) -> None:
        """Send a rank its one call; raises where the call cannot be sent."""

    def post(self, host: str, number: int, *message: Any) -> None:
        """Send any other message to a worker."""
