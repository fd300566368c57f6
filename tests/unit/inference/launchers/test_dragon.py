"""A server on a node, reported on by a real node supervisor on this machine.

The launcher itself needs a Dragon runtime: see tests/integration/inference.
"""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from rhapsody.inference.launchers.dragon import NodeProcess
from rhapsody.inference.launchers.supervisor import ADDRESS_VARIABLE, KEY_VARIABLE
from tests.support.processes import wait_gone
from tests.support.replicas import short_directory
from tests.support.waiting import until

Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]

SLEEP = [sys.executable, "-c", "import time; print('asleep', flush=True); time.sleep(60)"]
IGNORE_TERM = [
    *(sys.executable, "-c"),
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
    "print('deaf', flush=True); time.sleep(60)",
]


@pytest.fixture
async def connection() -> AsyncIterator[Connection]:
    """The connection of a node supervisor that has been started and waits for its request."""
    connections: asyncio.Queue[Connection] = asyncio.Queue()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()  # the key
        await connections.put((reader, writer))

    with short_directory() as folder:
        address = folder / "head.sock"
        server = await asyncio.start_unix_server(accept, str(address))
        supervisor = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "rhapsody.inference.launchers.supervisor"),
            env={**os.environ, ADDRESS_VARIABLE: f"unix:{address}", KEY_VARIABLE: "key"},
            stderr=asyncio.subprocess.DEVNULL,
        )
        _, writer = connected = await asyncio.wait_for(connections.get(), 20)
        yield connected
        writer.close()
        await asyncio.wait_for(supervisor.wait(), 20)
        server.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
        await server.wait_closed()


async def start(connection: Connection, command: list[str], log: Path | None = None) -> NodeProcess:
    request: dict[str, Any] = {
        "command": command,
        "environment": {},
        "without": [],
        "log": str(log) if log is not None else None,
        "socket": "/tmp/socket",
    }
    return await asyncio.wait_for(NodeProcess.start(connection, request, log), 20)


async def test_started_server_has_pid_and_address(connection: Connection) -> None:
    process = await start(connection, SLEEP)
    os.kill(process.pid, 0)
    assert process.address == "unix:/tmp/socket"
    await process.stop()


async def test_wait_returns_the_exit_code_and_the_log_is_complete(connection: Connection) -> None:
    process = await start(connection, [sys.executable, "-c", "print('bye'); raise SystemExit(3)"])
    assert await asyncio.wait_for(process.wait(), 20) == 3
    assert process.log_tail() == "bye"
    await process.stop()


async def test_log_on_this_machine_is_read_from_its_file(
    connection: Connection, tmp_path: Path
) -> None:
    process = await start(connection, SLEEP, tmp_path / "log")
    await until(lambda: process.log_tail() == "asleep")
    await process.stop()


async def test_missing_program_raises_os_error(connection: Connection) -> None:
    with pytest.raises(OSError, match="/no/such/program could not be started"):
        await start(connection, ["/no/such/program"])


async def test_stop_terminates_the_server_once(connection: Connection) -> None:
    process = await start(connection, SLEEP)
    await process.stop()
    assert process.stopped
    assert await process.wait() == -signal.SIGTERM
    assert wait_gone(process.pid) == []
    await process.stop()


async def test_stop_kills_server_ignoring_sigterm(connection: Connection, tmp_path: Path) -> None:
    process = await start(connection, IGNORE_TERM, tmp_path / "log")
    await until(lambda: process.log_tail() == "deaf")
    await process.stop(grace=0.1)
    assert await process.wait() == -signal.SIGKILL


async def test_kill_ends_the_server(connection: Connection) -> None:
    process = await start(connection, SLEEP)
    process.kill()
    assert await asyncio.to_thread(wait_gone, process.pid) == []
    await process.stop()


async def test_lost_connection_counts_as_killed(connection: Connection) -> None:
    process = await start(connection, SLEEP)
    process.kill()
    assert await asyncio.wait_for(process.wait(), 20) == -signal.SIGKILL
    await process.stop()
