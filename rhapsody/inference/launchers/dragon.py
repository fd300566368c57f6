"""Starts a replica's server on a node of a Dragon allocation, with its own GPUs."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import secrets
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rhapsody.global_services import mend_requests
from rhapsody.inference.launchers.supervisor import ADDRESS_VARIABLE, KEY_VARIABLE
from rhapsody.inference.replicas.placement import Place
from rhapsody.inference.replicas.server_log import excerpt_of_file
from rhapsody.processes import SECRET_VARIABLES, child_environment
from rhapsody.waiting import done_within

__all__ = ["DragonLauncher", "NodeProcess"]

logger = logging.getLogger(__name__)

START_SECONDS = 60.0
"""Longest time for the node supervisor to start and to connect."""
STOP_SECONDS = 7.0
"""Time after the grace period in which a server and all its children must have exited."""
MAX_LINE_BYTES = 1024 * 1024


class DragonLauncher:
    """Starts servers on one node of the allocation.

    Args:
        place: The node and the GPUs.
        remote: Whether to reach the node over the network; None: unless this program runs on it.
    """

    def __init__(self, place: Place, remote: bool | None = None) -> None:
        self._place = place
        self._remote = remote
        mend_requests()

    async def launch(
        self, command: Sequence[str], environment: Mapping[str, str], log: Path, socket: Path
    ) -> NodeProcess:
        """Start a server.

        Dragon starts a node supervisor there, which connects to this program and starts the server
        as its child. So secrets travel over our own connection only, and the server stops when the
        connection ends.

        Args:
            command: Program and arguments, without the address.
            environment: Variables added to those of Dragon's processes on the node.
            log: File for its output, if this program runs on the node.
            socket: Unix socket to listen on, if this program runs on the node.

        Raises:
            OSError: The server cannot be started.
        """
        head_name, head_address = await asyncio.to_thread(_head_node)
        remote = head_name != self._place.node.name if self._remote is None else self._remote
        connection = await self._start_supervisor(
            head_address if remote else None, socket.with_suffix(".head")
        )
        return await NodeProcess.start(
            connection,
            {
                "command": list(command),
                "environment": dict(environment),
                "without": sorted(SECRET_VARIABLES),
                "log": None if remote else str(log),
                "socket": None if remote else str(socket),
            },
            None if remote else log,
        )

    async def _start_supervisor(self, host: str | None, path: Path) -> _Connection:
        """Start the node supervisor and return its connection.

        Args:
            host: Address to wait for the connection at; None: at the Unix socket.
            path: The Unix socket.
        """
        key = secrets.token_urlsafe(32)
        connections: asyncio.Queue[_Connection] = asyncio.Queue()

        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            line = await reader.readline()
            with contextlib.suppress(ValueError, TypeError, KeyError):
                if secrets.compare_digest(json.loads(line)["key"], key):
                    connections.put_nowait((reader, writer))
                    return
            writer.close()

        if host is not None:
            server = await asyncio.start_server(accept, host, 0, limit=MAX_LINE_BYTES)
            address = "{}:{}".format(*server.sockets[0].getsockname()[:2])
        else:
            server = await asyncio.start_unix_server(accept, str(path), limit=MAX_LINE_BYTES)
            address = f"unix:{path}"
        try:
            process = await asyncio.to_thread(
                self._start_process, {ADDRESS_VARIABLE: address, KEY_VARIABLE: key}
            )
            exited = _exit_code_of(process)
            connected = asyncio.ensure_future(connections.get())
            try:
                await asyncio.wait(
                    [exited, connected], timeout=START_SECONDS, return_when="FIRST_COMPLETED"
                )
            finally:
                connected.cancel()
            if not connected.done() or connected.cancelled():
                with contextlib.suppress(Exception):
                    await asyncio.to_thread(process.kill)
                raise OSError(
                    f"the supervisor on node '{self._place.node.name}' did not connect within "
                    f"{START_SECONDS:g} s"
                    if not exited.done()
                    else f"the supervisor on node '{self._place.node.name}' exited with code "
                    f"{exited.result()} before it could start the server"
                )
            return connected.result()
        finally:
            server.close()
            if host is None:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path)

    def _start_process(self, environment: Mapping[str, str]) -> Any:
        from dragon.infrastructure.policy import Policy
        from dragon.native.process import Popen, Process

        process = Process(
            target=sys.executable,
            args=["-m", "rhapsody.inference.launchers.supervisor"],
            # Dragon derives the variable of the GPUs from the policy and from the value that it
            # was itself started with. Ours is for nodes on which Dragon finds no GPUs.
            env={**child_environment(), **self._place.environment, **environment},
            cwd=os.getcwd(),
            stdin=Popen.DEVNULL,
            stdout=Popen.DEVNULL,
            stderr=Popen.DEVNULL,
            policy=Policy(
                placement=Policy.Placement.HOST_NAME,
                host_name=self._place.node.name,
                gpu_affinity=list(self._place.gpus),
            ),
        )
        with _starting:
            process.start()
        return process


_starting = threading.Lock()
"""All starts share one channel to Dragon's services, so one process starts at a time."""

_Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


def _head_node() -> tuple[str, str]:
    """Return the name and the IP address of this program's own node."""
    from dragon.native.machine import current

    node = current()
    address = node.ip if isinstance(node.ip, str) else node.ip[0]
    return node.hostname, str(address).partition(":")[0]


def _exit_code_of(process: Any) -> asyncio.Future[Any]:
    """Join a Dragon process in its own thread: `join` is the only way to wait for it."""
    loop = asyncio.get_running_loop()
    exited = loop.create_future()

    def set_result(code: Any) -> None:
        if not exited.done():
            exited.set_result(code)

    def join() -> None:
        code = None
        with contextlib.suppress(Exception):
            process.join()
            code = process.returncode
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(set_result, code)

    threading.Thread(target=join, name="rhapsody-dragon-join", daemon=True).start()
    return exited


class NodeProcess:
    """A server on a node, observed through its node supervisor."""

    def __init__(self, connection: _Connection, pid: int, address: str, log: Path | None) -> None:
        self.pid = pid
        self.address = address
        self.stopped = False
        """Whether `stop` has returned. The process id may belong to another process then."""
        self._reader, self._writer = connection
        self._log = log
        self._tail = ""
        loop = asyncio.get_running_loop()
        self._exit: asyncio.Future[int] = loop.create_future()
        self._reading = loop.create_task(self._read())

    @classmethod
    async def start(
        cls, connection: _Connection, request: Mapping[str, Any], log: Path | None
    ) -> NodeProcess:
        """Ask a node supervisor to start a server, and wait until the server has started.

        Args:
            connection: The connection to the supervisor.
            request: What to start, see `rhapsody.inference.launchers.supervisor`.
            log: The server's log, if it is on this machine.

        Raises:
            OSError: The server cannot be started.
        """
        reader, writer = connection
        _write(writer, request)
        started = json.loads(await reader.readline() or b"null")
        if started is None:
            writer.close()
            raise OSError(f"{request['command'][0]} could not be started on its node")
        return cls(connection, started["pid"], started["address"], log)

    async def _read(self) -> None:
        code = -9  # if the connection ends without a code, the supervisor or its node is gone
        try:
            while line := await self._reader.readline():
                message = json.loads(line)
                self._tail = message.get("tail", self._tail)
                code = message.get("exit", code)
        except (OSError, ValueError) as error:
            logger.warning("the connection to the supervisor of a model server failed: %s", error)
        finally:
            if not self._exit.done():
                self._exit.set_result(code)

    @property
    def pids(self) -> tuple[int, ...]:
        """The one process id."""
        return (self.pid,)

    async def wait(self) -> int:
        """Wait until it exits and return its exit code, -N after signal N."""
        return await asyncio.shield(self._exit)

    async def note_shared_memory(self) -> None:
        """Do nothing: the supervisor removes the shared memory of its server."""

    async def stop(self, grace: float = 3.0) -> None:
        """Stop it and its children: SIGTERM, then SIGKILL after `grace` seconds. Idempotent."""
        if self.stopped:
            return
        with contextlib.suppress(OSError):
            if not self._exit.done():
                _write(self._writer, {"stop": grace})
                await done_within(asyncio.shield(self._exit), grace + STOP_SECONDS)
        self.stopped = True
        self._writer.close()
        self._reading.cancel()
        await asyncio.wait([self._reading])

    def kill(self) -> None:
        """Kill it and its children at once, by closing the connection to the supervisor."""
        if not self.stopped:
            connection = self._writer.get_extra_info("socket")
            with contextlib.suppress(OSError):
                connection.shutdown(2)

    def log_tail(self) -> str:
        """Return the last lines of its output, after the first error if that stands before them."""
        return excerpt_of_file(self._log) if self._log is not None else self._tail


def _write(writer: asyncio.StreamWriter, message: Mapping[str, Any]) -> None:
    writer.write(json.dumps(message).encode("ascii") + b"\n")
