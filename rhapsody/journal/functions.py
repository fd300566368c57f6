"""Functions in the journal of a program: their code, and its changes since earlier runs."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

from rhapsody.journal.code import code_of, describe_change
from rhapsody.journal.identity import identity_of
from rhapsody.journal.key import NEW, JournaledFunction, describe_unstable
from rhapsody.journal.store import CodeRow
from rhapsody.journal.values import UnstableValueError, blake

__all__ = ["JournaledFunctions"]

logger = logging.getLogger(__name__)


class JournaledFunctions:
    """The functions of this run, each with the number of its code in the file.

    Args:
        codes: The codes in the file.
        add_code: Writes a new one.
    """

    def __init__(self, codes: list[CodeRow], add_code: Callable[[CodeRow], None]) -> None:
        self._codes = codes
        self._add_code = add_code
        self._next_number = max((code.number for code in codes), default=0) + 1
        self._known: dict[tuple[str, str, bytes], JournaledFunction] = {}

    def get(
        self, name: str, kind: str, function: Any, version: str | None = None
    ) -> JournaledFunction:
        """Return the entry of a function; see `Journal.function`."""
        if version is not None:
            parts = {"version": version}
            try:
                identity = b"" if function is None else identity_of(function)
            except UnstableValueError as error:
                return self._unstable(name, kind, error)
            digest = blake(b"\0".join((name.encode(), identity, version.encode())))
        elif function is None:
            digest, parts = blake(kind.encode()), {}
        else:
            digest, parts = code_of(function)
        known = self._known.get((name, kind, digest))
        if known is None:
            code = CodeRow(0, name, kind, digest, parts, _origin(function))
            known = self._known[name, kind, digest] = self._new(code)
        return known

    def _unstable(self, name: str, kind: str, error: UnstableValueError) -> JournaledFunction:
        """Return the entry of a function whose calls are not journaled; warn of it once."""
        known = self._known.get((name, kind, b""))
        if known is None:
            known = self._known[name, kind, b""] = JournaledFunction(name, b"", 0, NEW)
            known.warn(describe_unstable(name, error))
        return known

    def _new(self, code: CodeRow) -> JournaledFunction:
        number, older, why, name = 0, 0, NEW, code.name
        for known in self._codes:
            if known[1:4] == code[1:4]:  # name, kind and digest
                number = known.number
                if known.results:
                    why = "its arguments are new"
            elif known.results and (known[1:3], known.origin) == (code[1:3], code.origin):
                older += known.results
                change = describe_change(known.parts, code.parts)
        if older and why == NEW:
            why = f"its code changed: {change}"
            logger.warning(
                "%d result%s of %s() %s of older code and will run again: %s",
                older,
                "" if older == 1 else "s",
                name,
                "is" if older == 1 else "are",
                change,
            )
        if not number:
            number, self._next_number = self._next_number, self._next_number + 1
        code = code._replace(number=number)
        self._codes.append(code)
        self._add_code(code)
        return JournaledFunction(name, code.kind.encode() + b"\0" + code.digest, number, why)


def _origin(function: Any) -> str:
    """Return where a function is defined, but not in which file; "" if it has no name."""
    while isinstance(function, partial):
        function = function.func
    qualified = getattr(function, "__qualname__", "")
    return f"{function.__module__}.{qualified}" if qualified else ""
