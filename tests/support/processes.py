"""Processes that a test started, directly or not, and that have to end."""

import time

import psutil


def wait_gone(*pids: int, timeout: float = 20.0) -> list[int]:
    """Wait until processes have ended; return those that have not in time."""
    deadline = time.monotonic() + timeout
    while (left := [pid for pid in pids if _runs(pid)]) and time.monotonic() < deadline:
        time.sleep(0.01)
    return left


def _runs(pid: int) -> bool:
    try:
        # One that nobody has waited for yet has ended all the same.
        return psutil.Process(pid).status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    except psutil.NoSuchProcess:
        return False
