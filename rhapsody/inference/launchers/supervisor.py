"""The node supervisor: starts a server on its node and stops it when the program is gone.

Run as `python -m rhapsody.inference.launchers.supervisor`, with RHAPSODY_SUPERVISOR_ADDRESS set to
the address of the launcher. Over that connection, as lines of JSON, it receives the command to run
and reports the process id, the address, the last lines of the log and the exit code. When the
connection ends, for whatever reason, it stops the server with all its children.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from io import BufferedRWPair
from typing import Any

from rhapsody.inference.launchers.relay import Relay
from rhapsody.inference.protocol.process import PARENT_VARIABLE
from rhapsody.inference.protocol.shared_memory import remove_segments, segments_of
from rhapsody.inference.replicas.launcher import CLEANUP_SECONDS, POLL_SECONDS
from rhapsody.inference.replicas.server_log import excerpt_of
from rhapsody.processes import GROUP, group_exists, signal_group

__all__ = ["ADDRESS_VARIABLE", "KEY_VARIABLE", "main"]

ADDRESS_VARIABLE = "RHAPSODY_SUPERVISOR_ADDRESS"
KEY_VARIABLE = "RHAPSODY_SUPERVISOR_KEY"
LOG_TAIL_INTERVAL = 2.0
"""Seconds between reports of the log's last lines."""


def main() -> int:
    """Run the server that the launcher asks for, until it exits. Returns an exit status."""
    # Ctrl-C is for the program; this process learns of the program's end by the connection.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    connection = _connect(os.environ.pop(ADDRESS_VARIABLE))
    lines = connection.makefile("rwb")
    _write(lines, {"key": os.environ.pop(KEY_VARIABLE)})
    request = json.loads(lines.readline() or b"null")
    if request is None:
        return 1
    return _Supervisor(connection, lines, request).run()


def _connect(address: str) -> socket.socket:
    if address.startswith("unix:"):
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(address.removeprefix("unix:"))
        return connection
    host, _, port = address.rpartition(":")
    connection = socket.create_connection((host.strip("[]"), int(port)), timeout=60)
    connection.settimeout(None)
    # A node that loses power closes no connection; keepalive probes detect that it is gone.
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    return connection


def _write(lines: BufferedRWPair, message: dict[str, Any]) -> None:
    lines.write(json.dumps(message).encode("ascii") + b"\n")
    lines.flush()


class _Supervisor:
    """Starts one server and reports on it until its last process has exited."""

    def __init__(
        self, connection: socket.socket, lines: BufferedRWPair, request: dict[str, Any]
    ) -> None:
        self._connection = connection
        self._lines = lines
        self._send_lock = threading.Lock()
        self._exited = threading.Event()
        self._log: Any = (
            open(request["log"], "a+b")  # noqa: SIM115
            if request["log"]
            else tempfile.TemporaryFile()  # noqa: SIM115
        )
        self._sends_log = request["log"] is None
        self._relay: Relay | None = None
        path, address = request["socket"], f"unix:{request['socket']}"
        if path is None:
            # The launcher can reach the local address of its own connection.
            self._relay = Relay(connection.family, connection.getsockname()[0])
            path, address = str(self._relay.path), self._relay.url
        # The server reads end-of-file from this pipe when the supervisor is gone.
        reading, self._parent_pipe = os.pipe()
        environment = {
            **{k: v for k, v in os.environ.items() if k not in request["without"]},
            **request["environment"],
            PARENT_VARIABLE: str(reading),
        }
        self._server = subprocess.Popen(
            [*request["command"], "--uds", path],
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            env=environment,
            pass_fds=(reading,),
            **GROUP,
        )
        os.close(reading)
        self._send({"pid": self._server.pid, "address": address})

    def run(self) -> int:
        for target in (self._receive, self._send_log_tails):
            threading.Thread(target=target, daemon=True).start()
        code = self._server.wait()
        self._exited.set()
        self._stop_group()
        if self._relay is not None:
            self._relay.close()
        with contextlib.suppress(OSError):
            self._send({"tail": self._log_tail()})
            self._send({"exit": code})
        return 0

    def _stop_group(self) -> None:
        """Stop all of the server's processes; they have time to remove their shared memory."""
        segments = segments_of(self._server.pid)
        signal_group(self._server.pid, signal.SIGTERM)
        deadline = time.monotonic() + CLEANUP_SECONDS
        while group_exists(self._server.pid) and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
        signal_group(self._server.pid, signal.SIGKILL)
        remove_segments(segments)

    def _send(self, message: dict[str, Any]) -> None:
        with self._send_lock:
            _write(self._lines, message)

    def _receive(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            for line in self._lines:
                grace = json.loads(line)["stop"]
                signal_group(self._server.pid, signal.SIGTERM)
                timer = threading.Timer(grace, signal_group, (self._server.pid, signal.SIGKILL))
                timer.daemon = True
                timer.start()
        self._stop_group()

    def _send_log_tails(self) -> None:
        sent = ""
        while self._sends_log and not self._exited.wait(LOG_TAIL_INTERVAL):
            if (tail := self._log_tail()) != sent:
                sent = tail
                with contextlib.suppress(OSError):
                    self._send({"tail": tail})

    def _log_tail(self) -> str:
        return excerpt_of(self._log.fileno())


if __name__ == "__main__":
    sys.exit(main())
