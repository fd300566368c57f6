"""Failures of calls on a worker, in a form that Dask can send."""

from __future__ import annotations

import contextlib
import pickle
from traceback import format_tb
from types import TracebackType
from typing import Any

import cloudpickle
from dask import config
from tblib import pickling_support

from rhapsody.backends.workers.pickling import dump_error
from rhapsody.errors import as_exception, describe_error

__all__ = ["FailedExecutable", "FailedFunction", "dump_failure"]

MAX_TEXT = 1000
"""Characters of an exception's text that Dask gets if it cannot send the exception itself."""

TRACEBACK_FRAMES = 16, 48
"""Number of outer and inner frames of a traceback that are sent. Dask pickles a traceback
recursively; one of 400 frames exceeds the recursion limit there, and the task never ends."""

MAX_CAUSES = 10
"""Number of causes and contexts of an exception that are sent, for the same reason."""


class FailedExecutable(Exception):
    """An executable's exit code is not 0; carries all its result fields.

    Raised rather than returned, so that Dask counts the task as failed and honours `retries`.
    """

    def __init__(self, fields: dict[str, Any]) -> None:
        super().__init__(fields)
        self.fields = fields

    def __str__(self) -> str:
        return str(self.fields["exception"])

    def __repr__(self) -> str:  # Dask logs and sends it; the fields have the whole output
        return f"FailedExecutable({str(self)!r})"


class FailedFunction(Exception):
    """A function raised an exception that Dask cannot send; carries its pickled outcome.

    Args:
        outcome: The exception, pickled by `pickling.dump_error`.
        text: Describes the exception, for Dask's log and dashboard.
    """

    def __init__(self, outcome: bytes, text: str) -> None:
        super().__init__(text)
        self.outcome = outcome

    def __reduce__(self) -> tuple[Any, ...]:
        return FailedFunction, (self.outcome, str(self))


def dump_failure(uid: str, error: BaseException) -> bytes:
    """Pickle an exception if Dask can send it, and otherwise a `FailedFunction`.

    Dask keeps what a call raises until a garbage collection. What is unpickled does not refer to
    the arguments of the call, which may be large.
    """
    with contextlib.suppress(BaseException):  # the user's own exceptions may raise, and even exit
        exception = as_exception(error, uid)
        _limit_depth(exception)
        text = str(exception) + repr(exception)  # Dask sends both
        (text + "".join(format_tb(exception.__traceback__))).encode()
        # Dask shortens longer texts, and makes another exception of them.
        if len(text) <= config.get("distributed.admin.max-error-length"):
            pickling_support.install(exception)  # as Dask does: pickles have tracebacks and causes
            pickled: bytes = cloudpickle.dumps(exception)
            pickle.loads(pickled)
            return pickled
    text = describe_error(error).encode(errors="backslashreplace").decode()
    return pickle.dumps(FailedFunction(dump_error(uid, error), text[:MAX_TEXT]))


def _limit_depth(error: BaseException) -> None:
    """Shorten the traceback of an exception and of its causes, and their chain."""
    level: list[BaseException] = [error]
    for depth in range(MAX_CAUSES + 1):
        following: list[BaseException] = []
        for link in level:
            _shorten(link.__traceback__)
            if depth == MAX_CAUSES:
                for name in ("__cause__", "__context__"):
                    BaseException.__setattr__(link, name, None)  # also of a frozen dataclass
            else:
                members = getattr(link, "exceptions", ())  # of an ExceptionGroup
                members = members if isinstance(members, tuple) else ()
                found = (link.__cause__, link.__context__, *members)
                following += [e for e in found if isinstance(e, BaseException)]
        level = list({id(link): link for link in following}.values())


def _shorten(traceback: TracebackType | None) -> None:
    frames = []
    while traceback is not None:
        frames.append(traceback)
        traceback = traceback.tb_next
    outer, inner = TRACEBACK_FRAMES
    if len(frames) > outer + inner:
        frames[outer - 1].tb_next = frames[-inner]
