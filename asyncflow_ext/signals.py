"""SIGHUP, SIGINT and SIGTERM, taken while an engine lives and given back after the last one."""

from __future__ import annotations

import asyncio
import logging
import os
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
        self._before = {sig: (signal.getsignal(sig), self._of_loop(sig)) for sig in SIGNALS}
        for sig in SIGNALS:
            loop.add_signal_handler(sig, self._tell, sig)
        self._ours = {sig: signal.getsignal(sig) for sig in SIGNALS}

    def _of_loop(self, sig: signal.Signals) -> Any:
        # asyncio has no public way to ask which handler a loop has for a signal.
        return getattr(self.loop, "_signal_handlers", {}).get(sig)

    def _tell(self, sig: signal.Signals) -> None:
        engines = list(self.engines)
        for engine in engines:
            engine.on_signal(sig)
        if not engines:  # all were dropped without a shutdown: the signal is somebody else's
            _forget(self)
            os.kill(os.getpid(), sig)

    def give_back(self) -> None:
        if self.loop.is_closed():  # which took its handlers away itself
            return
        for sig in SIGNALS:
            now = self._of_loop(sig)
            if now is None or now._callback != self._tell:
                continue  # somebody has put a handler in the place of ours
            last, (before, of_loop) = signal.getsignal(sig), self._before[sig]
            self.loop.remove_signal_handler(sig)
            if last is not self._ours[sig]:
                signal.signal(sig, last)
            elif of_loop is not None:
                self.loop.add_signal_handler(sig, of_loop._callback, *of_loop._args)
            elif before is not None:
                signal.signal(sig, before)


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
    if _taken is None or engine not in _taken.engines:
        return
    _taken.engines.discard(engine)
    if not _taken.engines:
        _forget(_taken)


def _forget(taken: _Taken) -> None:
    global _taken
    taken.give_back()
    if _taken is taken:
        _taken = None
