"""Logging for scripts; the library itself only logs to `logging.getLogger(__name__)`."""

from __future__ import annotations

import logging
from typing import TextIO

from rhapsody.errors import printable

__all__ = ["enable_logging"]

FORMAT = "%(asctime)s %(levelname)-7s %(name)s: %(message)s"


class _PrintableFormatter(logging.Formatter):
    """Removes control sequences: records quote the output and the errors of tasks."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


_handler: logging.Handler | None = None


def enable_logging(
    level: int | str = logging.INFO,
    format_string: str | None = None,
    stream: TextIO | None = None,
    force: bool = True,
) -> None:
    """Write Rhapsody's log records to a stream; a later call replaces an earlier one.

    Other libraries' loggers are not changed.

    Args:
        level: The lowest level to write, such as `logging.DEBUG` or "DEBUG".
        format_string: The format for `logging.Formatter`; None: Rhapsody's own format.
        stream: The stream; None: standard error.
        force: Replace the handler of an earlier call; if False, that handler stays.
    """
    global _handler
    log = logging.getLogger("rhapsody")
    if _handler is not None:
        if not force:
            return
        log.removeHandler(_handler)
    _handler = logging.StreamHandler(stream)
    _handler.setFormatter(_PrintableFormatter(format_string or FORMAT))
    log.addHandler(_handler)
    log.setLevel(level)
    log.propagate = False
