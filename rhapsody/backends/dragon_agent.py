"""The agent of one host: between the head's Dragon queues and the sockets of the workers there.

Dragon's queues live in shared memory under locks, and a process that dies while it holds one stops
everybody for good. So no process that runs users' code has to do with them: workers speak to their
host's agent through a Unix socket, where what was written is kept whatever becomes of the writer.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import pickle
import select
import shutil
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rhapsody.backends import dragon_wire as wire
from rhapsody.processes import SOCKET_DIRECTORY_BYTES

__all__ = ["Address", "serve"]

LINGER_SECONDS = 0.005
"""How long a call may run before the head is told that it has begun."""

READ_BYTES = 1 << 20
"""Most bytes taken from a socket at a time."""


@dataclass(frozen=True)
class Address:
    """Where the agents of one backend listen; on each host a place of its own.

    Attributes:
        name: Unique name of the backend's run.
    """

    name: str

    @property
    def directory(self) -> Path:
        """A directory of this host's, whose path is short enough for a socket in it.

        Hosts may have their temporary directories in common.
        """
        from dragon.utils import host_id

        name = f"{self.name}-{host_id():x}"
        folder = tempfile.gettempdir()
        if len(os.fsencode(folder)) > SOCKET_DIRECTORY_BYTES - len(name):
            folder = "/tmp"
        return Path(folder, name)

    @property
    def socket(self) -> str:
        """The socket that workers of this host connect to."""
        return str(self.directory / "agent")


class _Link:
    """One worker's connection: read on the loop, written to from any thread."""

    def __init__(self, agent: _Agent, connection: socket.socket) -> None:
        self._agent = agent
        self._socket = connection
        self._frames = wire.Frames()
        self._number: int | None = None
        self._begun: dict[int, None] = {}
        self._lock = threading.Lock()
        self._unsent = bytearray()
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(connection, self._read)
        self.notes: list[wire.Note] = []

    def _read(self) -> None:
        try:
            data = self._socket.recv(READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        for note in self._frames.feed(data):
            token, word = note[:2]
            if word == wire.BEGUN:
                self._begun[token] = None
                continue
            if word == wire.HELLO:
                self._number = token
                self._agent.links[token] = self
                here = pickle.loads(note[3]), self._agent.host
                note = (token, word, 0.0, pickle.dumps(here))
            self._begun.pop(token, None)
            self.notes.append(note)
        if not data:
            self._close()
        if self.notes:
            self._agent.flush_soon()
        if self._begun:
            self._agent.linger()

    def _close(self) -> None:
        self._loop.remove_reader(self._socket)
        with self._lock:
            self._loop.remove_writer(self._socket)
            self._socket.close()
        if self._number is not None:
            self.tell_begun()
            self.notes.append((0, wire.GONE, 0.0, b""))

    def tell_begun(self) -> None:
        """Have the head told of calls that run since a while."""
        self.notes += [(token, wire.BEGUN, 0.0, b"") for token in self._begun]
        self._begun.clear()

    def take(self) -> tuple[int, list[wire.Note]] | None:
        """Return the notes that the head has not got yet, and the worker's number."""
        if self._number is None or not self.notes:
            return None
        notes, self.notes = self.notes, []
        return self._number, notes

    def write(self, message: bytes) -> None:
        """Send a message, what the worker does not take at once a little later."""
        with self._lock:
            if self._socket.fileno() < 0:
                return
            if not self._unsent:
                message = message[self._send(message) :]
                if message:
                    self._loop.call_soon_threadsafe(self._write_on)
            self._unsent += message

    def _send(self, data: bytes | bytearray) -> int:
        try:
            return self._socket.send(data)
        except BlockingIOError:
            return 0
        except OSError:  # it has gone, which reading tells as well
            return len(data)

    def _write_on(self) -> None:
        with self._lock:
            if self._socket.fileno() < 0:
                return
            del self._unsent[: self._send(self._unsent)]
            if self._unsent:
                self._loop.add_writer(self._socket, self._write_on)
            else:
                self._loop.remove_writer(self._socket)


class _Agent:
    def __init__(self, host: str, outbox: Any) -> None:
        self.host = host
        self.links: dict[int, _Link] = {}
        self._outbox = outbox
        self._loop = asyncio.get_running_loop()
        self._flushing = False
        self._lingering: asyncio.TimerHandle | None = None

    def flush_soon(self) -> None:
        # Once for all that comes in one pass of the loop.
        if not self._flushing:
            self._flushing = True
            self._loop.call_soon(self._flush)

    def linger(self) -> None:
        if self._lingering is None:
            self._lingering = self._loop.call_later(LINGER_SECONDS, self._tell_begun)

    def _tell_begun(self) -> None:
        self._lingering = None
        for link in self.links.values():
            link.tell_begun()
        self._flush()

    def _flush(self) -> None:
        self._flushing = False
        bundles = [bundle for link in self.links.values() if (bundle := link.take())]
        for number, notes in bundles:
            if notes[-1][1] == wire.GONE:
                del self.links[number]
        if bundles:
            self._outbox.put(pickle.dumps(bundles, protocol=5))

    def deliver(self, number: int, message: bytes) -> None:
        link = self.links.get(number)
        if link is not None:
            link.write(wire.frame(message))


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
    shutil.rmtree(address.directory, ignore_errors=True)  # a killed predecessor's
    address.directory.mkdir(mode=0o700)
    watched = [os.getppid(), *([head_pid] if host_id() == head_host else [])]
    threading.Thread(target=_end_with, args=(watched, address), daemon=True).start()
    try:
        asyncio.run(_serve(address, host, outbox))
    finally:
        shutil.rmtree(address.directory, ignore_errors=True)


async def _serve(address: Address, host: str, outbox: Any) -> None:
    from dragon.native.queue import Queue

    loop = asyncio.get_running_loop()
    agent, stopped = _Agent(host, outbox), asyncio.Event()
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(address.socket)
    listener.listen(1024)
    listener.setblocking(False)
    inbox = Queue(maxsize=1024, block_size=1024)

    def accept() -> None:
        with contextlib.suppress(BlockingIOError):
            connection, _ = listener.accept()
            connection.setblocking(False)
            _Link(agent, connection)

    def receive() -> None:
        while (message := inbox.get()) != b"":
            agent.deliver(*pickle.loads(message))
        loop.call_soon_threadsafe(stopped.set)

    loop.add_reader(listener, accept)

    threading.Thread(target=receive, name="rhapsody-inbox", daemon=True).start()
    outbox.put(pickle.dumps((host, os.getpid(), inbox), protocol=5))
    await stopped.wait()
    loop.remove_reader(listener)
    listener.close()


def _end_with(pids: Sequence[int], address: Address) -> None:
    _outlive(pids)
    shutil.rmtree(address.directory, ignore_errors=True)
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
