"""Keys of calls: the same call of the same code has the same key in every run of a program.

A key covers the kind of the call, its code, its arguments, and which one of equal calls it is, in
the order of the program. An argument that is the result of another call counts by the key of that
call and not by its value, so large results are never hashed, and a call whose code changed changes
the keys of all calls that follow from it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rhapsody.errors import describe_error
from rhapsody.journal.code import argument_hasher
from rhapsody.journal.values import PLAIN, UnstableValueError, ValueHasher, blake

__all__ = ["NEW", "Call", "JournaledFunction", "Occurrences", "call_key", "describe_unstable"]

logger = logging.getLogger(__name__)

NEW = "it is new"
"""Why a call runs that the journal knows nothing of."""


class JournaledFunction:
    """A function whose calls are journaled.

    Attributes:
        name: Its name.
        prefix: What the keys of its calls begin with: the kind and the hash of its code. Empty:
            its calls are not journaled.
        number: The number of its code in the file.
        why: Why its calls run in this run, if nothing more specific is known.
        warned: A warning about a call was logged; each function has one.
    """

    __slots__ = ("name", "number", "prefix", "warned", "why")

    def __init__(self, name: str, prefix: bytes, number: int, why: str) -> None:
        self.name = name
        self.prefix = prefix
        self.number = number
        self.why = why
        self.warned = False

    def warn(self, message: str) -> None:
        """Log a warning about the function or a call of it, unless one was logged."""
        if not self.warned:
            self.warned = True
            logger.warning(message)


class Call:
    """One call of a journaled function.

    Attributes:
        key: Its key.
        base: The key that all equal calls share.
        function: The function.
        cache: Equal calls share its result.
        began: When it started, by `time.monotonic`; 0.0: it does not run.
        why: Why it runs.
        data: The pickled result fields, once they are pickled.
        recalled: Its result was taken from the journal.
        make_base: Makes `base` again, to find out whether large arguments have changed. None: they
            are small, or the call has ended.
        version: The version of the model's weights that belongs to the key. None: it has none.
    """

    __slots__ = (
        "base",
        "began",
        "cache",
        "data",
        "function",
        "key",
        "make_base",
        "recalled",
        "version",
        "why",
    )

    def __init__(
        self,
        key: bytes,
        base: bytes,
        function: JournaledFunction,
        cache: bool,
        make_base: Callable[[], bytes] | None = None,
    ) -> None:
        self.key = key
        self.base = base
        self.function = function
        self.cache = cache
        self.began = 0.0
        self.why = function.why
        self.data: bytes | None = None
        self.recalled = False
        self.make_base = make_base
        self.version: str | None = None


def call_key(
    code: bytes,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    encode_future: Any = None,
) -> bytes:
    """Return the key of a call, the same for equal calls.

    Args:
        code: The kind and the hash of the code.
        args: Positional arguments; for other calls than functions, what describes them.
        kwargs: Keyword arguments.
        encode_future: Returns bytes for a future among the arguments.

    Raises:
        UnstableValueError: An argument has no stable hash; the message names it.
    """
    if not args and not kwargs:
        return blake(code)
    if all(type(value) in PLAIN for value in args) and all(
        type(value) in PLAIN for value in kwargs.values()
    ):
        text = repr((*args, sorted(kwargs.items()))) if kwargs else repr(args)
        return blake(code + text.encode("utf-8", "surrogatepass"))
    hasher = argument_hasher(encode_future)
    encoded = [_encode(hasher, f"argument {n}", value) for n, value in enumerate(args, start=1)]
    for name in sorted(kwargs):
        encoded += [name.encode(), _encode(hasher, f"argument '{name}'", kwargs[name])]
    return blake(code + b"|".join(encoded))


def _encode(hasher: ValueHasher, name: str, value: Any) -> bytes:
    try:
        return hasher.encode(value)
    except UnstableValueError as error:
        raise UnstableValueError(f"{name} is or contains {error}") from error
    except Exception as error:  # of a method of the user's object
        text = f"{name} is or contains an object that cannot be read ({describe_error(error)})"
        raise UnstableValueError(text) from error


class Occurrences:
    """Numbers equal calls in the order of the program."""

    def __init__(self) -> None:
        self._seen: dict[bytes, int] = {}

    def next_key(self, key: bytes) -> bytes:
        """Return the key of the next occurrence of a call; of the first it is the key itself."""
        number = self._seen.get(key, 0)
        self._seen[key] = number + 1
        return key if number == 0 else blake(key + number.to_bytes(8, "big"))


def describe_unstable(name: str, error: Exception) -> str:
    """Return the warning about a call that is not journaled."""
    return (
        f"calls of '{name}' run in every run and are not journaled, because {error}, which has no "
        "stable hash; pass plain data, or silence this with journal=False"
    )
