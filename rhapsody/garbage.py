"""The garbage collector, and programs with many waiting tasks.

A full collection visits every object of the program and holds all threads meanwhile: with 300,000
waiting tasks for about a second. CPython starts one whenever the number of objects has grown by a
quarter, so a program that submits that many tasks stands still several times, although none of
their objects is garbage.

While more than `MANY` tasks are active, the objects that exist are therefore put aside with
`gc.freeze` when a full collection is about to start, and later collections visit only newer
objects. Thresholds, and whether the collector is enabled, are the program's own and never change.
`gc.collect()` visits all objects, as ever. A program that has called `gc.freeze` itself is left
alone.
"""

from __future__ import annotations

import gc
import time
import weakref
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

__all__ = ["FullCollections", "prepare_for", "watch_tasks"]

MANY = 10_000
"""Active tasks from which on full collections are put off; below, one takes under 50 ms."""

STEP = 4_096
"""If the number of active tasks has changed by this much, the newer objects are mostly theirs."""

REST_SECONDS = 10.0
"""How long after the last freeze all objects are collected again, if fewer tasks are active. The
program often still holds the tasks that have just ended, and uses their results."""

T = TypeVar("T")


class FullCollections:
    """Puts off full collections while many tasks are active.

    Args:
        clock: The time in seconds; it never goes back.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._owners: list[tuple[weakref.ref[Any], Callable[[Any], int]]] = []
        self._is_frozen = False
        self._frozen_at = 0.0
        self._active_then = 0

    def add(self, owner: T, count: Callable[[T], int]) -> None:
        """Consider the active tasks of an object, as long as it exists.

        Args:
            owner: The object, which is held weakly.
            count: Returns its number of active tasks; called in any thread.
        """
        self._owners.append((weakref.ref(owner, self._forget), count))

    def _forget(self, gone: weakref.ref[Any]) -> None:
        self._owners = [entry for entry in self._owners if entry[0] is not gone]

    def __call__(self, phase: str, info: Mapping[str, int]) -> None:
        """Act on the start of a full collection; the program's `gc.callbacks` call this."""
        if phase != "start" or info["generation"] != 2:
            return
        if not _is_automatic():
            self._thaw()
            return
        active = self._count_active()
        if active < MANY:
            if self._clock() - self._frozen_at > REST_SECONDS:
                self._thaw()
        elif self._is_frozen:
            if abs(active - self._active_then) >= STEP:
                self._freeze(active)
        elif not gc.get_freeze_count():
            self._freeze(active)

    def prepare_for(self, number: int) -> None:
        """Put the existing objects aside, if many tasks are active.

        Even a collection of the youngest objects visits every item of a list that was just made,
        and holds all threads for 30 ms if these are 300,000 tasks.

        Args:
            number: How many items the lists have that the caller has made.
        """
        if number < MANY or not (self._is_frozen or gc.get_freeze_count() == 0):
            return
        active = self._count_active()
        if active >= MANY:
            self._freeze(active)

    def _count_active(self) -> int:
        found = [(ref(), count) for ref, count in self._owners]
        return sum(count(owner) for owner, count in found if owner is not None)

    def _freeze(self, active: int) -> None:
        gc.freeze()
        self._is_frozen = True
        self._frozen_at = self._clock()
        self._active_then = active

    def _thaw(self) -> None:
        if self._is_frozen:
            self._is_frozen = False
            gc.unfreeze()


def _is_automatic() -> bool:
    """Return whether the counts of allocations started a collection, and not `gc.collect()`."""
    (young, _, old), (most_young, _, most_old) = gc.get_count(), gc.get_threshold()
    return young > most_young and old > most_old


_full_collections = FullCollections()


def watch_tasks(owner: T, count: Callable[[T], int]) -> None:
    """Put off full collections while an object has many active tasks; see `FullCollections.add`."""
    if _full_collections not in gc.callbacks:
        gc.callbacks.append(_full_collections)
    _full_collections.add(owner, count)


def prepare_for(number: int) -> None:
    """Put objects aside for an operation on many tasks; see `FullCollections.prepare_for`."""
    _full_collections.prepare_for(number)
