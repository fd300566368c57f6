"""Embedded servers as real processes, on a port or on a Unix socket."""

import asyncio
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest

MODULE = "rhapsody.inference.embedded"
MODEL = "tiny"
KEY = "a-secret-of-this-test"


@dataclass
class Server:
    """A running server, and how to talk to it."""

    process: subprocess.Popen[str]
    address: str
    uds: Path | None
    key: str | None

    @property
    def url(self) -> str:
        return "http://embedded" if self.uds else self.address

    @property
    def headers(self) -> dict[str, str]:
        return {"X-Rhapsody-Key": self.key} if self.key else {}

    def client(self, **options: Any) -> aiohttp.ClientSession:
        connector = aiohttp.UnixConnector(path=str(self.uds)) if self.uds else None
        timeout = aiohttp.ClientTimeout(total=20)
        options = {"headers": self.headers, "timeout": timeout, **options}
        return aiohttp.ClientSession(base_url=self.url, connector=connector, **options)


class Servers:
    """Starts servers and ends them all."""

    def __init__(self) -> None:
        self._started: list[subprocess.Popen[str]] = []

    def spawn(
        self, *arguments: str, environment: dict[str, str] | None = None, pass_fds: tuple = ()
    ) -> "subprocess.Popen[str]":
        process = subprocess.Popen(
            [sys.executable, "-W", "error", "-m", MODULE, "--model", MODEL, *arguments],
            env={**os.environ, **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            pass_fds=pass_fds,
        )
        self._started.append(process)
        return process

    def start(
        self,
        *arguments: str,
        uds: Path | None = None,
        key: str | None = None,
        environment: dict[str, str] | None = None,
        pass_fds: tuple = (),
    ) -> Server:
        where = ["--uds", str(uds)] if uds else ["--port", "0"]
        environment = dict(environment or {})
        if key:
            environment["RHAPSODY_REPLICA_KEY"] = key
        process = self.spawn(*where, *arguments, environment=environment, pass_fds=pass_fds)
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise AssertionError(process.communicate(timeout=10)[1])
        return Server(process, json.loads(line)["listening"], uds, key)

    def close(self) -> None:
        for process in self._started:
            process.kill()
            process.communicate(timeout=10)


@pytest.fixture
def servers() -> Iterator[Servers]:
    started = Servers()
    yield started
    started.close()


@pytest.fixture
def socket_path() -> Iterator[Path]:
    # Not tmp_path: the path of a Unix socket is limited to 107 bytes.
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder) / "replica.sock"


@pytest.fixture(scope="module", params=["port", "uds"])
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """One server for all tests of a module, once on a port and once on a Unix socket."""
    started = Servers()
    with tempfile.TemporaryDirectory() as folder:
        uds = Path(folder) / "replica.sock" if request.param == "uds" else None
        yield started.start("--max-model-len", "256", uds=uds, key=KEY)
        started.close()


@pytest.fixture
async def client(server: Server) -> AsyncIterator[aiohttp.ClientSession]:
    async with server.client() as session:
        yield session


async def batch(client: aiohttp.ClientSession, *prompts: dict[str, Any]) -> list[dict[str, Any]]:
    """Send a batch and return its lines."""
    async with client.post("/rhapsody/batch", json={"prompts": prompts}) as response:
        assert response.status == 200, await response.text()
        assert response.content_type == "application/x-ndjson"
        return [json.loads(line) async for line in response.content]


async def gauge(client: aiohttp.ClientSession, name: str) -> float:
    """Read one number from /metrics."""
    async with client.get("/metrics") as response:
        lines = (await response.text()).splitlines()
    values = {line.split()[0]: float(line.split()[1]) for line in lines if line[:1] != "#"}
    return values[f"rhapsody_embedded_{name}"]


async def until_gauge(client: aiohttp.ClientSession, name: str, value: float) -> None:
    """Wait until /metrics says so."""

    async def wait() -> None:
        while await gauge(client, name) != value:
            pass  # every look is a request of its own: the loop runs

    await asyncio.wait_for(wait(), 10)


@pytest.fixture
def helpers() -> Any:
    """The functions above: test modules cannot import from a conftest."""

    class Helpers:
        pass

    found = Helpers()
    found.__dict__.update(batch=batch, gauge=gauge, until_gauge=until_gauge)
    return found
