"""Processes that a test started, directly or indirectly, and that must end."""

import contextlib
from collections.abc import Iterable

import psutil

from tests.support.waiting import LIMIT_S, until_blocking


def is_alive(pid: int) -> bool:
    """Return whether a process runs; a zombie does not."""
    try:
        status: str = psutil.Process(pid).status()
    except psutil.NoSuchProcess:
        return False
    return status not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)


def all_ended(pids: Iterable[int]) -> bool:
    """Return whether none of some processes runs."""
    return not any(map(is_alive, pids))


def wait_gone(*pids: int, timeout: float = LIMIT_S) -> list[int]:
    """Wait until processes have ended; return those still alive after `timeout` seconds."""
    with contextlib.suppress(AssertionError):
        until_blocking(lambda: all_ended(pids), timeout)
    return list(filter(is_alive, pids))
