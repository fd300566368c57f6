"""The agent of a node: passes messages between the program's Dragon queues and the node's workers.

Dragon's queues live in shared memory under locks. A process that is killed while it holds such a
lock blocks all others for good, so a process that runs user code never uses a queue. The head node
needs no agent: its workers connect to the program itself.
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

from rhapsody.backends.dragon.worker_process import node_address
from rhapsody.backends.workers.connections import Connections
from rhapsody.backends.workers.messages import MessageBatch, WorkerMessage

__all__ = ["serve"]


def serve(run: str, node: str, outbox: Any, program_pid: int, head_id: int) -> None:
    """Run the agent of a node in this process; returns when the program ends it.

    Args:
        run: The unique name of the backend's run.
        node: The node's name.
        outbox: The queue that the program reads.
        program_pid: The program's process id.
        head_id: Dragon's id of the head node.
    """
    from dragon.utils import host_id

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is for the program
    watched = [os.getppid(), *([program_pid] if host_id() == head_id else [])]
    threading.Thread(target=_exit_with, args=(watched,), daemon=True).start()
    asyncio.run(_serve(node, node_address(run), outbox))


async def _serve(node: str, address: str, outbox: Any) -> None:
    from dragon.native.queue import Queue

    def on_messages(number: int, messages: list[WorkerMessage]) -> None:
        if not batches:  # one put for all messages of a pass of the loop
            loop.call_soon(put_batches)
        batches.append((number, messages))

    def put_batches() -> None:
        outbox.put(pickle.dumps(batches, protocol=5))
        batches.clear()

    def receive() -> None:
        while (message := inbox.get()) != b"":
            connections.send(*pickle.loads(message))
        loop.call_soon_threadsafe(ended.set)

    loop, ended = asyncio.get_running_loop(), asyncio.Event()
    batches: list[MessageBatch] = []
    connections = Connections(node, address, on_messages)
    inbox = Queue(maxsize=1024, block_size=1024)
    threading.Thread(target=receive, name="rhapsody-inbox", daemon=True).start()
    outbox.put(pickle.dumps((node, inbox), protocol=5))
    await ended.wait()
    connections.close()


def _exit_with(pids: Sequence[int]) -> None:
    _wait_for_any(pids)
    os._exit(1)


def _wait_for_any(pids: Sequence[int]) -> None:
    """Wait until one of several processes has ended."""
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
