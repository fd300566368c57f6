"""Signal handlers: who is notified, and what is restored."""

import asyncio
import os
import signal

from rhapsody.walltime.signals import add_owner, remove_owner


class Owner:
    """Records signals."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.signals: asyncio.Queue[signal.Signals] = asyncio.Queue()

    def on_signal(self, sig: signal.Signals) -> None:
        self.signals.put_nowait(sig)


async def test_owner_is_notified_of_its_signals_only() -> None:
    before = {sig: signal.getsignal(sig) for sig in (signal.SIGUSR1, signal.SIGUSR2)}
    first, second = Owner(), Owner()
    add_owner(first, signal.SIGUSR1)
    add_owner(second, signal.SIGUSR1, signal.SIGUSR2)
    os.kill(os.getpid(), signal.SIGUSR2)
    assert await second.signals.get() == signal.SIGUSR2
    os.kill(os.getpid(), signal.SIGUSR1)
    assert await first.signals.get() == await second.signals.get() == signal.SIGUSR1
    assert first.signals.empty()
    remove_owner(first)
    assert signal.getsignal(signal.SIGUSR1) != before[signal.SIGUSR1]
    remove_owner(second)
    remove_owner(second)
    assert {sig: signal.getsignal(sig) for sig in before} == before


async def test_signals_of_one_owner_may_be_added_later() -> None:
    before = signal.getsignal(signal.SIGUSR2)
    owner = Owner()
    add_owner(owner, signal.SIGUSR1)
    assert signal.getsignal(signal.SIGUSR2) is before
    add_owner(owner, signal.SIGUSR2)
    os.kill(os.getpid(), signal.SIGUSR2)
    assert await owner.signals.get() == signal.SIGUSR2
    remove_owner(owner)
    assert signal.getsignal(signal.SIGUSR2) is before


async def test_signal_goes_to_the_previous_handler_if_no_owner_runs() -> None:
    received = []
    previous = signal.signal(signal.SIGUSR1, lambda sig, frame: received.append(sig))
    try:
        owner = Owner()
        owner.loop = asyncio.new_event_loop()
        add_owner(owner, signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGUSR1)
        await asyncio.sleep(0)
        assert received == [signal.SIGUSR1]
        remove_owner(owner)
        owner.loop.close()
    finally:
        signal.signal(signal.SIGUSR1, previous)
