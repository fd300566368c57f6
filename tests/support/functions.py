"""Functions for tasks, importable by worker processes."""

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


def pid(*_: Any) -> int:
    return os.getpid()


def leave(code: int) -> NoReturn:
    os._exit(code)


def kill_oneself() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def unpicklable() -> threading.Lock:
    return threading.Lock()


class Counter:
    """Callable in more than one way.

    Args:
        start: What it counts from.
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
    """Pickles with what it was made of."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"{reason} ({code})")
        self.code = code
        self.reason = reason

    def __reduce__(self) -> tuple[Any, ...]:
        return FieldError, (self.code, self.reason)


class StubbornError(Exception):
    """Pickles, and cannot be rebuilt."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"{reason} ({code})")


@dataclass(frozen=True)
class FrozenError(Exception):
    """Takes no attributes, and so cannot be rebuilt either."""

    what: str


class LockedError(Exception):
    """Does not even pickle."""

    def __init__(self) -> None:
        super().__init__("locked")
        self.lock = threading.Lock()


def fail(error: type[BaseException], *args: Any) -> NoReturn:
    raise error(*args)
