"""The warden, told by this process what to start: it answers, and ends what it guards."""

import asyncio
import json
import os
import signal
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

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


class Head:
    """The launcher's end of a warden's connection."""

    def __init__(self) -> None:
        self.calls: asyncio.Queue[Any] = asyncio.Queue()

    async def called(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self.calls.put((reader, writer))

    async def begin(self, **order: Any) -> dict[str, Any]:
        self.reader, self.writer = await asyncio.wait_for(self.calls.get(), 20)
        assert json.loads(await self.reader.readline()) == {"key": "key"}
        self.tell({"environment": {}, "without": [], "log": None, "socket": "socket", **order})
        return await self.hear()

    def tell(self, message: Any) -> None:
        self.writer.write(json.dumps(message).encode() + b"\n")

    async def hear(self) -> dict[str, Any]:
        heard: dict[str, Any] = json.loads(await asyncio.wait_for(self.reader.readline(), 20))
        return heard

    async def hear_of(self, kind: str) -> Any:
        while kind not in (message := await self.hear()):
            pass
        return message[kind]


@pytest.fixture
async def head() -> AsyncIterator[Head]:
    head = Head()
    with tempfile.TemporaryDirectory(prefix="rhapsody-") as folder:
        path = f"{folder}/head.sock"
        server = await asyncio.start_unix_server(head.called, path)
        warden = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "rhapsody.inference.launchers.warden"),
            env={
                **os.environ,
                "RHAPSODY_WARDEN_HEAD": f"unix:{path}",
                "RHAPSODY_WARDEN_KEY": "key",
            },
        )
        yield head
        head.writer.close()
        await asyncio.wait_for(warden.wait(), 20)
        server.close()
        await server.wait_closed()


async def test_it_tells_where_the_server_is(head: Head, tmp_path: Path) -> None:
    socket, log = tmp_path / "s", tmp_path / "log"
    started = await head.begin(command=SLEEPER, socket=str(socket), log=str(log))
    assert started["address"] == f"unix:{socket}"
    os.kill(started["pid"], 0)
    await until(lambda: log.exists() and log.read_text())
    assert json.loads(log.read_text()) == ["--uds", str(socket)]
    head.tell({"end": 1})
    assert await head.hear_of("exit") == -signal.SIGTERM


async def test_a_server_without_a_socket_gets_a_port(tmp_path: Path) -> None:
    head = Head()
    server = await asyncio.start_server(head.called, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    warden = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "rhapsody.inference.launchers.warden"),
        env={
            **os.environ,
            "RHAPSODY_WARDEN_HEAD": f"127.0.0.1:{port}",
            "RHAPSODY_WARDEN_KEY": "key",
        },
    )
    started = await head.begin(command=SLEEPER, socket=None)
    assert started["address"].startswith("http://127.0.0.1:")
    head.writer.close()
    await asyncio.wait_for(warden.wait(), 20)
    assert wait_gone(started["pid"]) == []
    server.close()
    await server.wait_closed()


async def test_the_exit_brings_the_last_lines_of_the_log(head: Head) -> None:
    await head.begin(command=[sys.executable, "-c", "print('last words'); raise SystemExit(3)"])
    assert await head.hear_of("tail") == "last words"
    assert await head.hear_of("exit") == 3


async def test_secrets_reach_the_server_and_not_its_command(head: Head) -> None:
    script = "import os; print(os.environ['SECRET'], 'LEFT_OUT' in os.environ)"
    await head.begin(
        command=[sys.executable, "-c", script],
        environment={"SECRET": "for the server"},
        without=["LEFT_OUT"],
    )
    assert await head.hear_of("tail") == "for the server False"


async def test_the_end_of_the_connection_ends_the_whole_group(head: Head, tmp_path: Path) -> None:
    log = tmp_path / "log"
    started = await head.begin(command=[sys.executable, "-c", PARENT], log=str(log))
    await until(log.read_text)
    child = int(log.read_text())
    head.writer.close()
    assert await asyncio.to_thread(wait_gone, started["pid"], child) == []
