"""Processes that Dragon places: their start, exit codes and end. All functions block."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from rhapsody.allocation import Node
from rhapsody.processes import child_environment

__all__ = ["exit_codes", "for_each", "in_thread", "kill", "start", "wait_for_any"]

logger = logging.getLogger(__name__)

T = TypeVar("T")

CONCURRENT_STARTS = 16
"""Maximum number of processes started at a time; each start waits for its process."""


def in_thread(target: Callable[..., None], name: str, *args: Any) -> threading.Thread:
    """Start a daemon thread, which does not delay the end of the program."""
    thread = threading.Thread(target=target, args=args, name=f"rhapsody-dragon-{name}", daemon=True)
    thread.start()
    return thread


def for_each(function: Callable[[T], None], items: Sequence[T]) -> None:
    """Call a function with each item, for example to start a process, many at a time."""
    threads = min(CONCURRENT_STARTS, len(items))
    with ThreadPoolExecutor(threads, "rhapsody-dragon-start") as executor:
        list(executor.map(function, items))


def start(node: Node, target: Callable[..., None], *args: Any) -> int:
    """Start a process on a node, in this program's working directory; return its Dragon puid."""
    from dragon.infrastructure.policy import Policy
    from dragon.native.process import Process

    process = Process(
        target=target,
        args=args,
        cwd=os.getcwd(),
        env=child_environment(),
        policy=Policy(placement=Policy.Placement.HOST_NAME, host_name=node.name),
    )
    process.start()
    return int(process.puid)


def wait_for_any(puids: list[int], seconds: float | None = None) -> list[tuple[int, int | None]]:
    """Wait until at least one of several processes has ended.

    Args:
        puids: The processes' Dragon puids.
        seconds: Longest wait; None for no limit.

    Returns:
        The puids and exit codes of the processes that have ended. If Dragon can no longer watch
        them: all puids, with None as exit code.
    """
    try:
        return list(_join(puids, seconds))
    except Exception as error:
        logger.error("Dragon can no longer watch processes of this backend: %s", error)
        return [(puid, None) for puid in puids]


def exit_codes(puids: Sequence[int]) -> dict[int, int]:
    """Wait until all of several processes have ended; return their exit codes by puid."""
    codes: dict[int, int] = {}
    while left := [puid for puid in puids if puid not in codes]:
        codes.update(_join(left, None))
    return codes


def _join(puids: list[int], seconds: float | None) -> list[tuple[int, int]]:
    from dragon.globalservices.process import multi_join

    ended, _ = multi_join(puids, seconds)
    return ended or []


def kill(puid: int) -> None:
    """Kill a process, unless it has ended."""
    from dragon.globalservices.process import kill

    with contextlib.suppress(Exception):
        kill(puid, signal.SIGKILL, hide_stderr=True)
