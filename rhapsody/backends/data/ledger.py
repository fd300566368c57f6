"""The ledger of segments: who uses which, and the end of those that nobody uses."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable

__all__ = ["PROGRAM", "Ledger"]

PROGRAM = 0
"""The number of the program among the processes; workers have higher ones."""


class Ledger:
    """Counts the users of each segment. Used on one loop.

    A user is a process, the program or a worker, once for each value that it holds; or a call that
    will use its arguments, in whichever process.

    Args:
        on_unused: Called with the name of a segment that nobody uses any more, and with whether it
            may be written again.
    """

    def __init__(self, on_unused: Callable[[str, bool], None]) -> None:
        self._on_unused = on_unused
        self._users: dict[str, Counter[int]] = {}
        self._fixed: set[str] = set()
        self._processes = {PROGRAM}

    @property
    def segments(self) -> set[str]:
        """The names of the segments in use."""
        return set(self._users)

    def admit(self, process: int) -> None:
        """Count a new process from now on."""
        self._processes.add(process)

    def is_admitted(self, process: int) -> bool:
        """Return whether a process is counted: it was admitted and not forgotten."""
        return process in self._processes

    def hold(self, segment: str, process: int) -> None:
        """Count a use of a segment; a process that has ended uses nothing."""
        users = self._users.setdefault(segment, Counter())
        if process in self._processes:
            users[process] += 1
        self._end_if_unused(segment)

    def drop(self, segment: str, process: int, reusable: bool = True) -> None:
        """End a use of a segment.

        Args:
            segment: The segment's name.
            process: The user.
            reusable: Whether it may be written again when nobody uses it.
        """
        users = self._users.get(segment)
        if users is None or not users[process]:
            return
        if not reusable:
            self._fixed.add(segment)
        users[process] -= 1
        if not users[process]:
            del users[process]
        self._end_if_unused(segment)

    def forget(self, process: int) -> None:
        """End all uses by a process that has ended.

        A child that it forked may still see its segments, so they are not written again.
        """
        self._end_uses(process, tuple(self._users), reusable=False)

    def release(self, call: int, segments: Iterable[str], reusable: bool = True) -> None:
        """End all uses by a call, which has ended.

        Args:
            call: The call.
            segments: What it used.
            reusable: Whether they may be written again when nobody uses them.
        """
        self._end_uses(call, segments, reusable)

    def _end_uses(self, user: int, segments: Iterable[str], reusable: bool) -> None:
        self._processes.discard(user)
        for segment in segments:
            users = self._users.get(segment)
            if users is not None and users.pop(user, 0):
                if not reusable:
                    self._fixed.add(segment)
                self._end_if_unused(segment)

    def _end_if_unused(self, segment: str) -> None:
        if not self._users[segment]:
            del self._users[segment]
            reusable = segment not in self._fixed
            self._fixed.discard(segment)
            self._on_unused(segment, reusable)
