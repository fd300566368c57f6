"""Logging for scripts: the library itself only ever logs to `logging.getLogger(__name__)`."""

from __future__ import annotations

import logging
from typing import TextIO

__all__ = ["enable_logging"]

FORMAT = "%(asctime)s %(levelname)-7s %(name)s: %(message)s"

_handler: logging.Handler | None = None


def enable_logging(
    level: int | str = logging.INFO,
    format_string: str | None = None,
    stream: TextIO | None = None,
    force: bool = True,
) -> None:
    """Show Rhapsody's log on a stream. Call it again to change how.

    Other libraries' loggers are left as they are.

    Args:
        level: Least level shown, such as `logging.DEBUG` or "DEBUG".
        format_string: In the style of `logging.Formatter`; None is Rhapsody's own.
        stream: Where to; None is standard error.
        force: Replace the handler of an earlier call; otherwise that one stays.
    """
    global _handler
    log = logging.getLogger("rhapsody")
    if _handler is not None:
        if not force:
            return
        log.removeHandler(_handler)
    _handler = logging.StreamHandler(stream)
    _handler.setFormatter(logging.Formatter(format_string or FORMAT))
    log.addHandler(_handler)
    log.setLevel(level)
    log.propagate = False
