"""Embedded model servers as real processes, on a port or on a Unix socket."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from rhapsody.inference.protocol.process import KEY_HEADER, KEY_VARIABLE
from tests.support.waiting import until

MODULE = "rhapsody.inference.embedded"
MODEL = "tiny"
KEY = "a-secret-of-this-test"


@dataclass
class Server:
    """A running server, and how to talk to it."""

    process: "subprocess.Popen[str]"
    address: str
    uds: Path | None
    key: str | None

    @property
    def url(self) -> str:
        return "http://embedded" if self.uds else self.address

    @property
    def headers(self) -> dict[str, str]:
        return {KEY_HEADER: self.key} if self.key else {}

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
        self,
        *arguments: str,
        environment: Mapping[str, str] | None = None,
        pass_fds: Sequence[int] = (),
    ) -> "subprocess.Popen[str]":
        """Start a server's process without waiting for its address."""
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
        environment: Mapping[str, str] | None = None,
        pass_fds: Sequence[int] = (),
    ) -> Server:
        """Start a server and wait until it listens."""
        address = ["--uds", str(uds)] if uds else ["--port", "0"]
        variables = dict(environment or {})
        if key:
            variables[KEY_VARIABLE] = key
        process = self.spawn(*address, *arguments, environment=variables, pass_fds=pass_fds)
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise AssertionError(process.communicate(timeout=10)[1])
        return Server(process, json.loads(line)["listening"], uds, key)

    def close(self) -> None:
        for process in self._started:
            process.kill()
            process.communicate(timeout=10)


def wait_exit(process: "subprocess.Popen[str]") -> tuple[int, str]:
    """Wait for the process to exit; return its status and its log."""
    _, log = process.communicate(timeout=10)
    return process.returncode, log


async def batch(client: aiohttp.ClientSession, *prompts: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Send a batch request and return its events."""
    async with client.post("/rhapsody/batch", json={"prompts": prompts}) as response:
        assert response.status == 200, await response.text()
        assert response.content_type == "application/x-ndjson"
        return [json.loads(line) async for line in response.content]


async def metric(client: aiohttp.ClientSession, name: str) -> float:
    """Read one number from /metrics."""
    async with client.get("/metrics") as response:
        lines = (await response.text()).splitlines()
    values = {line.split()[0]: float(line.split()[1]) for line in lines if line[:1] != "#"}
    return values[f"rhapsody_embedded_{name}"]


async def until_metric(client: aiohttp.ClientSession, name: str, value: float) -> None:
    """Wait until a number of /metrics has a value."""

    async def reached() -> bool:
        return await metric(client, name) == value

    await until(reached, 10)
