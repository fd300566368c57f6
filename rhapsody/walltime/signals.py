"""Signal handlers of engines and sessions, installed while these are open and then restored."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import threading
import weakref
from types import FrameType
from typing import Any, Protocol

__all__ = ["add_owner", "remove_owner"]

logger = logging.getLogger(__name__)


class HandlesSignals(Protocol):
    """An engine, or the walltime guard of a session, which acts on signals."""

    @property
    def loop(self) -> asyncio.AbstractEventLoop | None:
        """The owner's loop; None: it has not been used yet."""

    def on_signal(self, sig: signal.Signals) -> None:
        """Act on a signal; called on the owner's loop."""


class _Handlers:
    """The signal handlers of this process, which notify owners, and the handlers they replaced.

    They are not handlers of a loop: a loop has no public way to tell which handler it had, and the
    main thread may run one loop after another. The loop's own handlers of the same signals are
    called too. A signal that the process ignores, as SIGHUP under `nohup`, stays ignored.
    """

    def __init__(self) -> None:
        self.owners: weakref.WeakKeyDictionary[HandlesSignals, set[signal.Signals]] = (
            weakref.WeakKeyDictionary()
        )
        self.pid = os.getpid()
        self._replaced: dict[signal.Signals, Any] = {}

    def add(self, owner: HandlesSignals, sig: signal.Signals) -> None:
        """Notify an owner of a signal from now on."""
        self.owners.setdefault(owner, set()).add(sig)
        if sig not in self._replaced and signal.getsignal(sig) != signal.SIG_IGN:
            self._replaced[sig] = signal.signal(sig, self._on_signal)

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        sig = signal.Signals(number)
        # A loop that does not run might never notify its owners. In a forked child none runs.
        loops = {
            owner.loop
            for owner, sigs in list(self.owners.items())
            if sig in sigs and owner.loop is not None and owner.loop.is_running()
        }
        if os.getpid() != self.pid:
            loops.clear()
        if not loops:
            self._repeat(sig)
        for loop in loops:
            loop.call_soon_threadsafe(self._notify, loop, sig)

    def _notify(self, loop: asyncio.AbstractEventLoop, sig: signal.Signals) -> None:
        owners = [
            owner for owner, sigs in list(self.owners.items()) if owner.loop is loop and sig in sigs
        ]
        for owner in owners:
            owner.on_signal(sig)
        if not owners:  # all were garbage-collected without a shutdown
            self._repeat(sig)

    def _repeat(self, sig: signal.Signals) -> None:
        """Leave a signal to the previous handler, also if a later handler called ours."""
        if os.getpid() != self.pid or not self.is_needed():
            _restore(self)
        previous = self._replaced.get(sig, signal.SIG_IGN)
        if callable(previous):
            previous(sig, None)
        elif previous != signal.SIG_IGN:
            signal.signal(sig, signal.SIG_DFL)
            os.kill(os.getpid(), sig)

    def is_needed(self) -> bool:
        """Return whether an owner can still run; one whose loop is closed cannot."""
        loops = [owner.loop for owner in list(self.owners)]
        return not all(loop is not None and loop.is_closed() for loop in loops)

    def restore(self) -> None:
        """Restore the previous handlers, unless other code has replaced ours meanwhile."""
        for sig, replaced in self._replaced.items():
            if signal.getsignal(sig) == self._on_signal:
                # None: a handler that Python code did not install, and cannot install again.
                signal.signal(sig, signal.SIG_DFL if replaced is None else replaced)


_handlers: _Handlers | None = None


def add_owner(owner: HandlesSignals, *sigs: signal.Signals) -> None:
    """Call `owner.on_signal(sig)` for each of some signals from now on.

    Only the main thread receives signals. An owner in another thread is not notified, and the
    program has to shut it down.

    Args:
        owner: An open engine or session.
        *sigs: The signals.
    """
    global _handlers
    if threading.current_thread() is not threading.main_thread():
        logger.debug("%r is not in the main thread and handles no signals", owner)
        return
    if _handlers is None or _handlers.pid != os.getpid():
        _handlers = _Handlers()
    for sig in sigs:
        _handlers.add(owner, sig)


def remove_owner(owner: HandlesSignals) -> None:
    """Stop notifying an owner; after the last one, restore the previous handlers."""
    if _handlers is None or owner not in _handlers.owners:
        return
    _handlers.owners.pop(owner, None)
    if not _handlers.is_needed():
        _restore(_handlers)


def _restore(handlers: _Handlers) -> None:
    global _handlers
    if threading.current_thread() is threading.main_thread():
        handlers.restore()
    if _handlers is handlers:
        _handlers = None
