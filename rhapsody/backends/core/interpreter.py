"""The end of the interpreter: nothing can be started after it has begun."""

from __future__ import annotations

import threading

from rhapsody.errors import RhapsodyError

__all__ = ["note_end", "refuse_at_end"]

_has_begun = False


def note_end() -> None:
    """Note that the interpreter has begun to end: backends are shut down and must not start."""
    global _has_begun
    _has_begun = True


def refuse_at_end() -> None:
    """Refuse to start anything after the end of the main thread.

    Raises:
        RhapsodyError: The main thread has ended. Executors refuse work from then on, and Python 3.12
            and later start no thread.
    """
    if _has_begun or not threading.main_thread().is_alive():
        raise RhapsodyError(
            "the main thread of this program has ended, and Python starts no threads after that; "
            "let the main thread wait for this one, for example by its method join()"
        )
