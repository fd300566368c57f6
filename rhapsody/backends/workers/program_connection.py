"""A worker's connection to the program, or to the agent of its node."""

from __future__ import annotations

import contextlib
import os
import pickle
import socket
import struct
import threading
import time
from typing import Any

from rhapsody.backends.workers.connections import is_of_this_user
from rhapsody.backends.workers.messages import READY, encode_worker_message
from rhapsody.processes import end_forked_child

__all__ = ["ProgramConnection", "connect"]

CONNECT_SECONDS = 10.0
"""Longest wait for the socket to be listened on."""

RETRY_SECONDS = 0.05


class ProgramConnection:
    """A worker's connection to the `Connections` of its node.

    Args:
        number: The worker's number.
        connection: The connected socket.

    Attributes:
        is_copy: Whether this is the closed copy in a forked child of the worker.
    """

    def __init__(self, number: int, connection: socket.socket) -> None:
        self._socket = connection
        self.is_copy = False
        self._input = self._socket.makefile("rb", buffering=1 << 20)
        self._lock = threading.Lock()
        self._unsent = bytearray()
        self.write(number, READY, 0.0, pickle.dumps(os.getpid()))
        self.flush()

    def close_in_child(self) -> None:
        """Close the copy in a forked child; it would hide the end of its parent."""
        self.is_copy = True
        with contextlib.suppress(OSError):
            os.close(self._socket.detach())

    def read(self) -> Any:
        """Wait for the next message and return it; None if the connection is closed."""
        try:
            (length,) = struct.unpack("<Q", self._input.read(8))
            return pickle.loads(self._input.read(length))
        except (OSError, ValueError, EOFError, struct.error, pickle.UnpicklingError):
            return None

    def write(self, call_id: int, kind: int, seconds: float = 0.0, payload: bytes = b"") -> None:
        """Add a message to those sent by the next flush."""
        with self._lock:
            self._unsent += encode_worker_message(call_id, kind, seconds, payload)

    def flush(self) -> None:
        """Send the messages written since the last flush, unless the program has ended.

        An exception that a signal handler raises does not cut a message short. In a forked child
        this ends the process: the child has returned from the task that forked it.
        """
        if self.is_copy:
            end_forked_child(None)
        with self._lock:
            data, self._unsent = self._unsent, bytearray()
            # If the program has ended, `read` says so, and the reading thread cleans up.
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                self._socket.sendall(data)


def connect(address: str) -> socket.socket:
    """Return a socket that is connected to the `Connections` of this node.

    Args:
        address: Unix socket to connect to.

    Raises:
        OSError: The socket is not listened on.
        PermissionError: A process of another user listens on it.
    """
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    deadline = time.monotonic() + CONNECT_SECONDS
    try:
        while True:
            try:
                connection.connect(address)
                break
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(RETRY_SECONDS)
        if not is_of_this_user(connection):
            raise PermissionError("a process of another user listens on the backend's socket")
    except BaseException:
        connection.close()
        raise
    return connection
