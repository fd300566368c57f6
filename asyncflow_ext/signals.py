"""SIGHUP, SIGINT and SIGTERM, taken while an engine lives and given back after the last one."""

from __future__ import annotations

import asyncio
import logging
import signal
import threading
import weakref
from typing import Any

__all__ = ["give_back", "take"]

logger = logging.getLogger(__name__)

SIGNALS = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)


class _Taken:
    """The signals of one loop: whose handlers were there before, and which engines are told."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.engines: weakref.WeakSet[Any] = weakref.WeakSet()
        self._before = {sig: signal.getsignal(sig) for sig in SIGNALS}
        for sig in SIGNALS:
            loop.add_signal_handler(sig, self._tell, sig)

    def _tell(self, sig: signal.Signals) -> None:
        for engine in list(self.engines):
            engine.on_signal(sig)

    def give_back(self) -> None:
        if self.loop.is_closed():  # which took its handlers away itself
            return
        for sig in SIGNALS:
            self.loop.remove_signal_handler(sig)
            if self._before[sig] is not None:
                signal.signal(sig, self._before[sig])


_taken: _Taken | None = None


def take(engine: Any) -> None:
    """Have `engine.on_signal(sig)` called for each signal, from now on.

    Only the main thread gets signals: elsewhere the program has to see to the shutdown itself.

    Args:
        engine: A new engine, on its running loop.
    """
    global _taken
    if threading.current_thread() is not threading.main_thread():
        logger.debug("not the main thread: the engine takes no signals")
        return
    loop = asyncio.get_running_loop()
    if _taken is None or _taken.loop is not loop:
        _taken = _Taken(loop)
    _taken.engines.add(engine)


def give_back(engine: Any) -> None:
    """Leave signals to whoever had them before, once no other engine lives."""
    global _taken
    if _taken is None or engine not in _taken.engines:
        return
    _taken.engines.discard(engine)
    if not _taken.engines:
        _taken.give_back()
        _taken = None
