"""Interruption of a running call by a signal."""

from __future__ import annotations

import asyncio
import signal
from types import FrameType
from typing import Any

__all__ = ["INTERRUPT", "Interrupted", "SyncInterrupted", "interruptible_task"]

INTERRUPT = signal.SIGUSR1


class Interrupted(BaseException):
    """Raised by a signal handler in a call that is being cancelled."""


class SyncInterrupted(KeyboardInterrupt):
    """Raised by a signal handler in a sync function.

    An event loop that the function runs itself swallows other exceptions in its callbacks, but not
    a `KeyboardInterrupt`.
    """


def interruptible_task(
    loop: asyncio.AbstractEventLoop, frame: FrameType | None
) -> asyncio.Task[Any] | None:
    """Return the task of a loop that a signal handler may raise an exception in.

    Args:
        loop: The loop of the main thread.
        frame: The frame that the signal arrived in.

    Returns:
        None if no task runs, or if asyncio's own code runs: asyncio would log the exception and
        carry on.
    """
    task = asyncio.current_task(loop)
    return None if task is None or _is_asyncio_code(frame) else task


def _is_asyncio_code(frame: FrameType | None) -> bool:
    module = "" if frame is None else frame.f_globals.get("__name__", "")
    return module == "asyncio" or module.startswith("asyncio.")
