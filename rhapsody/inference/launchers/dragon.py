"""Starts a replica's server on a node of a Dragon allocation, with GPUs of its own."""

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

from rhapsody.api.errors import ConfigurationError, MissingExtraError
from rhapsody.inference.launchers.local import tail_of
from rhapsody.inference.launchers.warden import HEAD_VARIABLE, KEY_VARIABLE
from rhapsody.inference.placement import Host, Place
from rhapsody.processes import SECRET_VARIABLES
from rhapsody.waiting import done_within

__all__ = ["DragonLauncher", "allocation", "is_under_dragon", "require_runtime"]

logger = logging.getLogger(__name__)

START_SECONDS = 60.0
"""Longest time for the process on the node to come up and call back."""
END_SECONDS = 7.0
"""How much longer than its grace a server may take to end, with all its children."""
LONGEST_LINE = 1024 * 1024


def is_under_dragon() -> bool:
    """Say whether the `dragon` command started this program."""
    return "DRAGON_MY_PUID" in os.environ


def require_runtime() -> None:
    """Refuse to go on where there is no Dragon runtime.

    Raises:
        MissingExtraError: Dragon is not installed.
        ConfigurationError: The `dragon` command did not start this program.
    """
    try:
        import dragon  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("launcher='dragon'", "dragonhpc", "vllm-dragon") from error
    if not is_under_dragon():
        raise ConfigurationError(
            "launcher='dragon' places servers on the nodes of a Dragon allocation, and the dragon "
            "command did not start this program; start it with: dragon my_script.py, or pass "
            "launcher='local' to start the servers on this machine"
        )


def allocation() -> list[Host]:
    """Describe the nodes of the allocation that this program runs in."""
    from dragon.native.machine import Node, System

    return [
        Host(
            node.hostname,
            tuple(node.gpus or ()),
            (node.gpu_env_str if node.gpus else None) or "CUDA_VISIBLE_DEVICES",
        )
        for node in map(Node, System().nodes)
    ]


class DragonLauncher:
    """Starts servers at one place of the allocation.

    Args:
        place: The node and the GPUs.
        far: Reach the node over the network; None does so unless it is this program's own.
    """

    def __init__(self, place: Place, far: bool | None = None) -> None:
        self._place = place
        self._far = far

    async def launch(
        self, command: Sequence[str], environment: Mapping[str, str], log: Path, socket: Path
    ) -> NodeProcess:
        """Start a server.

        A warden is started there by Dragon and calls back; the server is its child. So secrets go
        over a connection of our own, and the connection's end is the server's.

        Args:
            command: Program and arguments, but for the address.
            environment: Variables on top of those of Dragon's processes on the node.
            log: File for its output, where the node is this program's own.
            socket: Unix socket to listen on, where the node is this program's own.

        Raises:
            OSError: It cannot be started.
        """
        host, address = await asyncio.to_thread(self._where)
        far = host != self._place.host.name if self._far is None else self._far
        key = secrets.token_urlsafe(32)
        calls: asyncio.Queue[_Call] = asyncio.Queue()

        async def called(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            line = await reader.readline()
            with contextlib.suppress(ValueError, TypeError, KeyError):
                if secrets.compare_digest(json.loads(line)["key"], key):
                    calls.put_nowait((reader, writer))
                    return
            writer.close()

        if far:
            server = await asyncio.start_server(called, address, 0, limit=LONGEST_LINE)
            where = "{}:{}".format(*server.sockets[0].getsockname()[:2])
        else:
            path = socket.with_suffix(".head")
            server = await asyncio.start_unix_server(called, str(path), limit=LONGEST_LINE)
            where = f"unix:{path}"
        try:
            process = await asyncio.to_thread(
                self._start, {HEAD_VARIABLE: where, KEY_VARIABLE: key}
            )
            ended = _watch_end(process)
            calling = asyncio.ensure_future(calls.get())
            try:
                await asyncio.wait(
                    [ended, calling], timeout=START_SECONDS, return_when="FIRST_COMPLETED"
                )
            finally:
                calling.cancel()
            if not calling.done() or calling.cancelled():
                with contextlib.suppress(Exception):
                    await asyncio.to_thread(process.kill)
                raise OSError(
                    f"node '{self._place.host.name}' did not call back within {START_SECONDS:g} s"
                    if not ended.done()
                    else f"the process on node '{self._place.host.name}' ended with code "
                    f"{ended.result()} before it could start the server"
                )
        finally:
            server.close()
            if not far:
                path.unlink(missing_ok=True)
        return await NodeProcess.begin(
            calling.result(),
            {
                "command": list(command),
                "environment": dict(environment),
                "without": sorted(SECRET_VARIABLES),
                "log": None if far else str(log),
                "socket": None if far else str(socket),
            },
            None if far else log,
        )

    def _where(self) -> tuple[str, str]:
        """The name and the address of this program's own node."""
        from dragon.native.machine import current

        node = current()
        address = node.ip if isinstance(node.ip, str) else node.ip[0]
        return node.hostname, str(address).partition(":")[0]

    def _start(self, environment: Mapping[str, str]) -> Any:
        from dragon.infrastructure.policy import Policy
        from dragon.native.process import Popen, Process

        process = Process(
            target=sys.executable,
            args=["-m", "rhapsody.inference.launchers.warden"],
            # Dragon sets the variable of the GPUs from the policy as well, through the mask that
            # it was itself started with; this one is for nodes where it finds none.
            env={**_inherited(), **self._place.environment, **environment},
            cwd=os.getcwd(),
            stdin=Popen.DEVNULL,
            stdout=Popen.DEVNULL,
            stderr=Popen.DEVNULL,
            policy=Policy(
                placement=Policy.Placement.HOST_NAME,
                host_name=self._place.host.name,
                gpu_affinity=list(self._place.gpus),
            ),
        )
        with _starting:
            process.start()
        return process


_starting = threading.Lock()
"""One start at a time: they go over one channel to Dragon's services."""

_Call = tuple[asyncio.StreamReader, asyncio.StreamWriter]


def _inherited() -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if k not in SECRET_VARIABLES}


def _watch_end(process: Any) -> asyncio.Future[Any]:
    """Reap a process of Dragon's in a thread of its own: its join has no other way to wait."""
    loop = asyncio.get_running_loop()
    ended = loop.create_future()

    def set_result(code: Any) -> None:
        if not ended.done():
            ended.set_result(code)

    def join() -> None:
        code = None
        with contextlib.suppress(Exception):
            process.join()
            code = process.returncode
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(set_result, code)

    threading.Thread(target=join, name="rhapsody-dragon-join", daemon=True).start()
    return ended


class NodeProcess:
    """A server on a node, as its warden tells of it."""

    def __init__(self, call: _Call, log: Path | None) -> None:
        self.pid = 0
        self.address = ""
        self.ended = False
        self._reader, self._writer = call
        self._log = log
        self._tail = ""
        self._exit: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._reading: asyncio.Task[None] | None = None

    @classmethod
    async def begin(cls, call: _Call, order: Mapping[str, Any], log: Path | None) -> NodeProcess:
        """Tell a warden what to start, and wait until it has.

        Raises:
            OSError: It could not.
        """
        process = cls(call, log)
        process._tell(order)
        started = json.loads(await process._reader.readline() or b"null")
        if started is None:
            process._writer.close()
            raise OSError(f"{order['command'][0]} could not be started there")
        process.pid, process.address = started["pid"], started["address"]
        process._reading = asyncio.get_running_loop().create_task(process._read())
        return process

    def _tell(self, message: Mapping[str, Any]) -> None:
        self._writer.write(json.dumps(message).encode("ascii") + b"\n")

    async def _read(self) -> None:
        code = -9  # the warden, or its node, is gone
        try:
            while line := await self._reader.readline():
                message = json.loads(line)
                self._tail = message.get("tail", self._tail)
                code = message.get("exit", code)
        except (OSError, ValueError) as error:
            logger.warning("the connection to the warden of a server was lost: %s", error)
        finally:
            if not self._exit.done():
                self._exit.set_result(code)

    async def wait(self) -> int:
        """Wait for its end and return its exit code, -N where signal N ended it."""
        return await asyncio.shield(self._exit)

    async def end(self, grace: float = 3.0) -> None:
        """End it and its children: SIGTERM, then SIGKILL after `grace` seconds. Idempotent."""
        if self.ended:
            return
        with contextlib.suppress(OSError):
            if not self._exit.done():
                self._tell({"end": grace})
                await done_within(asyncio.shield(self._exit), grace + END_SECONDS)
        self.ended = True
        self._writer.close()
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.wait([self._reading])

    def kill(self) -> None:
        """End all of it at once, by the end of the connection."""
        if not self.ended:
            connection = self._writer.get_extra_info("socket")
            with contextlib.suppress(OSError):
                connection.shutdown(2)

    def log_tail(self) -> str:
        """Return the last lines of its output."""
        return tail_of(self._log) if self._log is not None else self._tail
