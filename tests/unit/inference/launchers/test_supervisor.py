"""The node supervisor as a process, with this process as its launcher."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest

from tests.support.processes import wait_gone
from tests.support.waiting import until

SLEEPER = [
    *(sys.executable, "-c"),
    "import json, sys, time; print(json.dumps(sys.argv[1:]), flush=True); time.sleep(60)",
]
PARENT = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print(child.pid, flush=True)
time.sleep(60)
"""


class Launcher:
    """The launcher's side of a supervisor's connection."""

    def __init__(self) -> None:
        self.connections: asyncio.Queue[Any] = asyncio.Queue()

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self.connections.put((reader, writer))

    async def start(self, **request: Any) -> dict[str, Any]:
        self.reader, self.writer = await asyncio.wait_for(self.connections.get(), 20)
        assert json.loads(await self.reader.readline()) == {"key": "key"}
        self.send({"environment": {}, "without": [], "log": None, "socket": "socket", **request})
        return await self.receive()

    def send(self, message: Any) -> None:
        self.writer.write(json.dumps(message).encode() + b"\n")

    async def receive(self) -> dict[str, Any]:
        message: dict[str, Any] = json.loads(await asyncio.wait_for(self.reader.readline(), 20))
        return message

    async def receive_field(self, kind: str) -> Any:
        while kind not in (message := await self.receive()):
            pass
        return message[kind]


@contextlib.asynccontextmanager
async def supervisor(
    launcher: Launcher, server: asyncio.Server, address: str
) -> AsyncIterator[Launcher]:
    """A supervisor that connects to a launcher's server."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "rhapsody.inference.launchers.supervisor"),
        env={
            **os.environ,
            "RHAPSODY_SUPERVISOR_ADDRESS": address,
            "RHAPSODY_SUPERVISOR_KEY": "key",
        },
    )
    yield launcher
    launcher.writer.close()
    await asyncio.wait_for(process.wait(), 20)
    server.close()
    await server.wait_closed()


@pytest.fixture
async def launcher() -> AsyncIterator[Launcher]:
    launcher = Launcher()
    with tempfile.TemporaryDirectory(prefix="rhapsody-") as folder:
        path = f"{folder}/head.sock"
        server = await asyncio.start_unix_server(launcher.accept, path)
        async with supervisor(launcher, server, f"unix:{path}"):
            yield launcher


async def test_server_listens_on_the_given_socket(launcher: Launcher, tmp_path: Path) -> None:
    path, log = tmp_path / "s", tmp_path / "log"
    started = await launcher.start(command=SLEEPER, socket=str(path), log=str(log))
    assert started["address"] == f"unix:{path}"
    os.kill(started["pid"], 0)
    await until(lambda: log.exists() and log.read_text())
    assert json.loads(log.read_text()) == ["--uds", str(path)]
    launcher.send({"stop": 1})
    assert await launcher.receive_field("exit") == -signal.SIGTERM


@contextlib.asynccontextmanager
async def remote_launcher() -> AsyncIterator[Launcher]:
    """A launcher that the supervisor reaches over the network."""
    launcher = Launcher()
    server = await asyncio.start_server(launcher.accept, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with supervisor(launcher, server, f"127.0.0.1:{port}"):
        yield launcher


async def test_port_cannot_be_taken_before_the_server_listens() -> None:
    async with remote_launcher() as launcher:
        started = await launcher.start(command=SLEEPER, socket=None)
        host, _, port = started["address"].removeprefix("http://").partition(":")
        for option in (socket.SO_REUSEADDR, socket.SO_REUSEPORT):
            with socket.socket() as thief:
                thief.setsockopt(socket.SOL_SOCKET, option, 1)
                with pytest.raises(OSError, match="in use"):
                    thief.bind((host, int(port)))
    assert wait_gone(started["pid"]) == []


async def test_port_of_a_remote_server_leads_to_its_socket() -> None:
    server = [sys.executable, "-m", "rhapsody.inference.embedded", "--model", "tiny"]
    async with remote_launcher() as launcher:
        started = await launcher.start(
            command=server, socket=None, environment={"RHAPSODY_REPLICA_KEY": "secret"}
        )

        async def status(**headers: str) -> int:
            try:
                async with (
                    aiohttp.ClientSession(started["address"]) as http,
                    http.get("/health", headers=headers) as response,
                ):
                    return response.status
            except aiohttp.ClientError:  # the server does not listen yet
                return 0

        await until(status)
        assert await status() == 401
        assert await status(**{"X-Rhapsody-Key": "secret"}) == 200
        socket_path = psutil.Process(started["pid"]).cmdline()[-1]
    assert not Path(socket_path).parent.exists()


async def test_exit_is_reported_with_last_log_lines(launcher: Launcher) -> None:
    await launcher.start(command=[sys.executable, "-c", "print('last lines'); raise SystemExit(3)"])
    assert await launcher.receive_field("tail") == "last lines"
    assert await launcher.receive_field("exit") == 3


async def test_environment_reaches_the_server(launcher: Launcher) -> None:
    script = "import os; print(os.environ['SECRET'], 'LEFT_OUT' in os.environ)"
    await launcher.start(
        command=[sys.executable, "-c", script],
        environment={"SECRET": "for the server"},
        without=["LEFT_OUT"],
    )
    assert await launcher.receive_field("tail") == "for the server False"


async def test_lost_connection_ends_the_process_group(launcher: Launcher, tmp_path: Path) -> None:
    log = tmp_path / "log"
    started = await launcher.start(command=[sys.executable, "-c", PARENT], log=str(log))
    await until(log.read_text)
    child = int(log.read_text())
    launcher.writer.close()
    assert await asyncio.to_thread(wait_gone, started["pid"], child) == []
