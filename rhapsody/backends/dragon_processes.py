"""Processes that Dragon places: started, waited for, killed. All of this blocks."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from rhapsody.backends.dragon_runtime import Host
from rhapsody.processes import child_environment

__all__ = ["ended", "for_each", "in_thread", "kill", "start"]

logger = logging.getLogger(__name__)

T = TypeVar("T")

AT_ONCE = 16
"""Processes started at a time: each is waited for until it is there, on its node."""


def in_thread(target: Callable[..., None], name: str, *args: Any) -> threading.Thread:
    """Start a thread that does not hold up the end of the program."""
    thread = threading.Thread(target=target, args=args, name=f"rhapsody-dragon-{name}", daemon=True)
    thread.start()
    return thread


def for_each(function: Callable[[T], None], items: Sequence[T]) -> None:
    """Call a function with each of several items, such as processes to start, many at a time."""
    with ThreadPoolExecutor(min(AT_ONCE, len(items)), "rhapsody-dragon-start") as threads:
        list(threads.map(function, items))


def start(host: Host, target: Callable[..., None], *args: Any) -> int:
    """Start a process on a host, in this program's directory; returns Dragon's number for it."""
    from dragon.infrastructure.policy import Policy
    from dragon.native.process import Process

    process = Process(
        target=target,
        args=args,
        cwd=os.getcwd(),
        env=child_environment(),
        policy=Policy(placement=Policy.Placement.HOST_NAME, host_name=host.name),
    )
    process.start()
    return int(process.puid)


def ended(puids: list[int], seconds: float | None = None) -> list[tuple[int, int | None]]:
    """Wait for one of several processes to end.

    Args:
        puids: Dragon's numbers of the processes.
        seconds: How long to wait; None for as long as it takes.

    Returns:
        Those that have ended, and their exit codes; None where Dragon lost sight of them.
    """
    from dragon.globalservices.process import multi_join

    try:
        done, _ = multi_join(puids, seconds)
    except Exception as error:
        logger.error("Dragon no longer watches its processes: %s", error)
        return [(puid, None) for puid in puids]
    return list(done or ())


def kill(puid: int) -> None:
    """Kill a process, if it has not ended by itself."""
    from dragon.globalservices.process import kill

    with contextlib.suppress(Exception):
        kill(puid, signal.SIGKILL, hide_stderr=True)
