"""The warden: stands by a server on its node, and ends it when the program that wants it is gone.

`python -m rhapsody.inference.launchers.warden`, with RHAPSODY_WARDEN_HEAD naming a socket of the
launcher. Over that connection it is told what to start, by lines of JSON, and tells the process
id, the address, the log's last lines and the exit code. The end of the connection, whatever the
reason, is the end of the server with all its children.
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

from rhapsody.processes import GROUP, group_exists

__all__ = ["HEAD_VARIABLE", "KEY_VARIABLE", "main"]

HEAD_VARIABLE = "RHAPSODY_WARDEN_HEAD"
KEY_VARIABLE = "RHAPSODY_WARDEN_KEY"
TAIL_BYTES = 4000
TAIL_SECONDS = 2.0
END_SECONDS = 5.0


def main() -> int:
    """Start the server that the launcher names, and stand by it. Returns an exit status."""
    # A session's signals are for the program; this process hears of its end by the connection.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    connection = _connect(os.environ.pop(HEAD_VARIABLE))
    lines = connection.makefile("rwb")
    _tell(lines, {"key": os.environ.pop(KEY_VARIABLE)})
    order = json.loads(lines.readline() or b"null")
    if order is None:
        return 1
    return _Watch(connection, lines, order).run()


def _connect(head: str) -> socket.socket:
    if head.startswith("unix:"):
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(head.removeprefix("unix:"))
        return connection
    host, _, port = head.rpartition(":")
    connection = socket.create_connection((host.strip("[]"), int(port)), timeout=60)
    connection.settimeout(None)
    # A node that loses its power says nothing: the other side of a silent connection is asked.
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    return connection


def _tell(lines: BufferedRWPair, message: dict[str, Any]) -> None:
    lines.write(json.dumps(message).encode("ascii") + b"\n")
    lines.flush()


class _Watch:
    """One server, from its start to the end of its last process."""

    def __init__(
        self, connection: socket.socket, lines: BufferedRWPair, order: dict[str, Any]
    ) -> None:
        self._connection = connection
        self._lines = lines
        self._telling = threading.Lock()
        self._ending = threading.Event()
        self._log: Any = (
            open(order["log"], "a+b") if order["log"] else tempfile.TemporaryFile()  # noqa: SIM115
        )
        self._log_is_here = order["log"] is None
        address, arguments = self._address(order["socket"])
        # The server reads an end of file from this pipe when the warden is gone, however.
        reading, self._leash = os.pipe()
        environment = {
            **{k: v for k, v in os.environ.items() if k not in order["without"]},
            **order["environment"],
            "RHAPSODY_PARENT_FD": str(reading),
        }
        self._server = subprocess.Popen(
            [*order["command"], *arguments],
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            env=environment,
            pass_fds=(reading,),
            **GROUP,
        )
        os.close(reading)
        self._say({"pid": self._server.pid, "address": address})

    def _address(self, path: str | None) -> tuple[str, list[str]]:
        if path is not None:
            return f"unix:{path}", ["--uds", path]
        # The address that the launcher is reached from is one that it reaches, too.
        host = self._connection.getsockname()[0]
        with socket.socket(self._connection.family) as probe:
            probe.bind((host, 0))
            port = probe.getsockname()[1]
        shown = f"[{host}]" if ":" in host else host
        return f"http://{shown}:{port}", ["--host", host, "--port", str(port)]

    def run(self) -> int:
        for target in (self._listen, self._send_tails):
            threading.Thread(target=target, daemon=True).start()
        code = self._server.wait()
        self._ending.set()
        self._end_group()
        with contextlib.suppress(OSError):
            self._say({"tail": self._tail()})
            self._say({"exit": code})
        return 0

    def _end_group(self) -> None:
        """End all of the server's processes; they get a moment to remove their shared memory."""
        self._signal(signal.SIGTERM)
        end = time.monotonic() + END_SECONDS
        while group_exists(self._server.pid) and time.monotonic() < end:
            time.sleep(0.02)
        self._signal(signal.SIGKILL)

    def _say(self, message: dict[str, Any]) -> None:
        with self._telling:
            _tell(self._lines, message)

    def _listen(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            for line in self._lines:
                grace = json.loads(line)["end"]
                self._signal(signal.SIGTERM)
                timer = threading.Timer(grace, self._signal, (signal.SIGKILL,))
                timer.daemon = True
                timer.start()
        self._end_group()

    def _signal(self, number: int) -> None:
        with contextlib.suppress(OSError):
            os.killpg(self._server.pid, number)

    def _send_tails(self) -> None:
        sent = ""
        while self._log_is_here and not self._ending.wait(TAIL_SECONDS):
            if (tail := self._tail()) != sent:
                sent = tail
                with contextlib.suppress(OSError):
                    self._say({"tail": tail})

    def _tail(self) -> str:
        size = os.fstat(self._log.fileno()).st_size
        data = os.pread(self._log.fileno(), TAIL_BYTES, max(0, size - TAIL_BYTES))
        return data.decode("utf-8", errors="replace").strip()


if __name__ == "__main__":
    sys.exit(main())
