"""Keys of calls: the same call of the same code has the same key in every run of a program.

A key covers the kind of the call, its code, its arguments, and which one of equal calls it is, in
the order of the program. An argument that is the result of another call counts by the key of that
call and not by its value, so large results are never hashed, and a call whose code changed changes
the keys of all calls that follow from it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rhapsody.errors import describe_error
from rhapsody.journal.code import argument_hasher
from rhapsody.journal.values import PLAIN, UnstableValueError, ValueHasher, blake

__all__ = ["Occurrences", "call_key", "describe_unstable"]


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
