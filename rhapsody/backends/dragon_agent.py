"""The agent of a host: between the head's Dragon queues and the hub of the workers there.

Dragon's queues live in shared memory under locks, and a process that dies while it holds one stops
everybody for good. So no process that runs users' code has to do with them. The head's own host
needs no agent: the hub is in the head.
"""

from __future__ import annotations

import asyncio
import os
import pickle
import select
import signal
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rhapsody.backends.dragon_hub import Address, Bundle, Hub

__all__ = ["serve"]


def serve(address: Address, host: str, outbox: Any, head_pid: int, head_host: int) -> None:
    """Be the agent of a host; returns when the head says so.

    Args:
        address: Where to listen.
        host: The host's name.
        outbox: The head's queue.
        head_pid: The head's process id.
        head_host: Dragon's id of the head's host.
    """
    from dragon.utils import host_id

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is for the head
    watched = [os.getppid(), *([head_pid] if host_id() == head_host else [])]
    threading.Thread(target=_end_with, args=(watched,), daemon=True).start()
    asyncio.run(_serve(address, host, outbox))


async def _serve(address: Address, host: str, outbox: Any) -> None:
    from dragon.native.queue import Queue

    def tell(bundles: list[Bundle]) -> None:
        outbox.put(pickle.dumps(bundles, protocol=5))

    def receive() -> None:
        while (message := inbox.get()) != b"":
            hub.deliver(*pickle.loads(message))
        loop.call_soon_threadsafe(stopped.set)

    loop, stopped = asyncio.get_running_loop(), asyncio.Event()
    hub = Hub(host, address, tell)
    inbox = Queue(maxsize=1024, block_size=1024)
    threading.Thread(target=receive, name="rhapsody-inbox", daemon=True).start()
    outbox.put(pickle.dumps((host, inbox), protocol=5))
    await stopped.wait()
    hub.close()


def _end_with(pids: Sequence[int]) -> None:
    _outlive(pids)
    os._exit(1)


def _outlive(pids: Sequence[int]) -> None:
    """Return when one of these processes has ended."""
    poll = select.poll()
    try:
        for pid in pids:
            poll.register(os.pidfd_open(pid), select.POLLIN)
    except ProcessLookupError:
        return
    except (AttributeError, OSError):  # before Linux 5.3
        while all(Path(f"/proc/{pid}").exists() for pid in pids):
            time.sleep(1)
    else:
        poll.poll()
