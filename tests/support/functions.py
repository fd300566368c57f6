"""Functions for tasks; worker processes import them."""

import asyncio
import os
import signal
import threading
from dataclasses import dataclass
from typing import Any, NoReturn


def add(left: int, right: int = 1) -> int:
    return left + right


async def add_async(left: int, right: int = 1) -> int:
    await asyncio.sleep(0)
    return left + right


_meetings: list[asyncio.Future[None]] = []


async def meet() -> None:
    """Wait for another call of this function in the same process."""
    if _meetings:
        _meetings.pop().set_result(None)
    else:
        _meetings.append(asyncio.get_running_loop().create_future())
        await _meetings[-1]


def pid(*_: Any) -> int:
    return os.getpid()


def leave(code: int) -> NoReturn:
    os._exit(code)


def kill_itself() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def unpicklable() -> threading.Lock:
    return threading.Lock()


class Counter:
    """An object with several kinds of callables.

    Args:
        start: Initial value.
    """

    def __init__(self, start: int) -> None:
        self.start = start

    def __call__(self, step: int) -> int:
        return self.start + step

    def add(self, step: int) -> int:
        return self.start + step

    @classmethod
    def from_zero(cls, step: int) -> int:
        return cls(0).add(step)

    @staticmethod
    def double(step: int) -> int:
        return 2 * step


class FieldError(Exception):
    """Can be pickled with its fields."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"{reason} ({code})")
        self.code = code
        self.reason = reason

    def __reduce__(self) -> tuple[Any, ...]:
        return FieldError, (self.code, self.reason)


class StubbornError(Exception):
    """Its constructor has other arguments than its `args`."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"{reason} ({code})")


@dataclass(frozen=True)
class FrozenError(Exception):
    """Does not allow new attributes, and so cannot be unpickled."""

    what: str


@dataclass(frozen=True)
class FrozenEmptyError(Exception):
    """Does not allow new attributes, and can be pickled."""


class LockedError(Exception):
    """Cannot be pickled."""

    def __init__(self) -> None:
        super().__init__("locked")
        self.lock = threading.Lock()


def fail(error: type[BaseException], *args: Any) -> NoReturn:
    raise error(*args)
