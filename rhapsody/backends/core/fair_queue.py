"""The fair queue: tasks that wait for resources, by priority and by the time that they waited."""

from __future__ import annotations

import time
from bisect import bisect_left, insort
from collections.abc import Callable, Collection, Iterable
from typing import Generic, TypeVar

from rhapsody.backends.core.accounts import PLAIN, Account, Grant, Request
from rhapsody.backends.core.aged_queue import AgedQueue, Arrivals, Key

__all__ = ["FairQueue"]

T = TypeVar("T")

OVERTAKES_PER_CPU = 2
"""How many tasks for each CPU may overtake a task that does not fit, before its resources are held:
the time in which each CPU runs about two tasks."""

MOST_CONSIDERED = 64
"""How many different requests are tried for a start; the others have come later."""


class _Group(Generic[T]):
    """The waiting tasks with the same request."""

    __slots__ = ("overtakes", "position", "request", "tasks")

    def __init__(self, request: Request, arrivals: Arrivals) -> None:
        self.request = request
        self.tasks: AgedQueue[T] = AgedQueue(arrivals)
        self.overtakes = 0
        self.position: tuple[Key, int, _Group[T]] | None = None


class FairQueue(Generic[T]):
    """Tasks that wait for the resources of an account. Not thread-safe.

    The next task is the one that has waited longest, where each step of priority counts like
    `AGING_SECONDS` of waiting. If it does not fit, smaller tasks may overtake it, at most
    `OVERTAKES_PER_CPU` for each CPU of the account. Then its resources are held: later tasks use
    only what it leaves free, until it starts. So no task waits for ever, if every task ends.

    Args:
        account: The resources.
        is_gone: Returns whether a task needs no start any more, because it was cancelled.
        clock: The time in seconds; it never goes back.
    """

    def __init__(
        self,
        account: Account,
        is_gone: Callable[[T], bool],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._account = account
        self._is_gone = is_gone
        self._arrivals = Arrivals(clock)
        self._plain: _Group[T] = _Group(PLAIN, self._arrivals)
        self._groups: dict[Request, _Group[T]] = {}
        self._order: list[tuple[Key, int, _Group[T]]] = []
        self._held: _Group[T] | None = None
        self._most_overtakes = max(1, OVERTAKES_PER_CPU * account.cpus)
        self._positions = 0
        self._size = 0

    def __len__(self) -> int:
        """Number of waiting tasks; cancelled ones may be among them."""
        return self._size

    def add_plain(self, items: Collection[T]) -> None:
        """Add tasks of priority 0 that ask for nothing but one CPU."""
        self._plain.tasks.extend(items)
        self._size += len(items)

    def add(self, item: T, request: Request, priority: int = 0) -> None:
        """Add a task whose request the account can meet when it is idle."""
        self._size += 1
        if request == PLAIN:
            self._plain.tasks.add(item, priority)
            return
        group = self._groups.get(request)
        if group is None:
            group = self._groups[request] = _Group(request, self._arrivals)
        group.tasks.add(item, priority)
        if group.position is None or group.tasks.key != group.position[0]:
            self._reorder(group)

    def take(self) -> tuple[T, Grant] | None:
        """Remove the next task that can start, and charge its resources to the account."""
        if not self._groups and self._held is None:
            has_plain = self._drop_cancelled(self._plain)
            grant = self._account.take(PLAIN) if has_plain else None
            return None if grant is None else (self._pop(self._plain), grant)
        return self._take_held() or self._take_next()

    def clear(self) -> list[T]:
        """Remove all tasks, and return those that are not cancelled."""
        items = []
        for group in sorted(
            (self._plain, *self._groups.values()), key=lambda group: group.tasks.key or (0.0, 0)
        ):
            items += [item for item in group.tasks.clear() if not self._is_gone(item)]
        self._groups.clear()
        self._account.none_waits()
        self._order.clear()
        self._drop_hold()
        self._size = 0
        return items

    def _take_held(self) -> tuple[T, Grant] | None:
        """Start the task that resources are held for, if they are free."""
        group = self._held
        if group is None:
            return None
        if not self._drop_cancelled(group):
            self._drop_hold()
            return None
        grant = self._account.take(group.request, holder=True)
        if grant is None:
            return None
        self._drop_hold()
        return self._pop(group), grant

    def _take_next(self) -> tuple[T, Grant] | None:
        overtaken: list[_Group[T]] = []
        for group in self._next_groups():
            grant = self._account.take(group.request)
            if grant is not None:
                self._count_overtakes(overtaken)
                return self._pop(group), grant
            overtaken.append(group)
        return None

    def _count_overtakes(self, groups: Iterable[_Group[T]]) -> None:
        for group in groups:
            group.overtakes += 1
            if group.overtakes >= self._most_overtakes and self._held is None:
                self._held = group
                self._account.hold(group.request)

    def _next_groups(self) -> list[_Group[T]]:
        """Return the first groups, in the order of their first tasks."""
        found: list[_Group[T]] = []
        plain = self._plain.tasks.key if self._drop_cancelled(self._plain) else None
        index = 0
        while index < len(self._order) and len(found) < MOST_CONSIDERED:
            key, _, group = self._order[index]
            if self._is_gone(group.tasks.first()):
                self._drop_cancelled(group)  # which puts it behind this index, or nowhere
                continue
            if plain is not None and plain < key:
                found.append(self._plain)
                plain = None
            found.append(group)
            index += 1
        if plain is not None:
            found.append(self._plain)
        return found

    def _drop_cancelled(self, group: _Group[T]) -> bool:
        """Drop cancelled tasks from the front of a group; return whether a task is left."""
        tasks, before = group.tasks, self._size
        while len(tasks) and self._is_gone(tasks.first()):
            tasks.pop()
            self._size -= 1
        if self._size < before and group is not self._plain:
            self._reorder(group)
        return len(tasks) > 0

    def _pop(self, group: _Group[T]) -> T:
        item = group.tasks.pop()
        group.overtakes = 0
        self._size -= 1
        if group is not self._plain:
            self._reorder(group)
        return item

    def _reorder(self, group: _Group[T]) -> None:
        """Put a group at the place of its first task, after that has changed."""
        if group.position is not None:
            del self._order[bisect_left(self._order, group.position)]
            group.position = None
        key = group.tasks.key
        if key is None:
            self._groups.pop(group.request, None)
            if not self._groups:
                self._account.none_waits()
        else:
            self._positions += 1
            group.position = (key, self._positions, group)
            insort(self._order, group.position)

    def _drop_hold(self) -> None:
        self._held = None
        self._account.drop_hold()
