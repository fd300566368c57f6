"""The embedded server's process: key, signals, sockets, the watch on its parent."""

import asyncio
import json
import os
import signal
import socket
import stat
import subprocess
import time
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from tests.support.embedded_servers import Server, Servers, batch, until_metric, wait_exit

PATHS = [
    ("GET", "/health"),
    ("GET", "/metrics"),
    ("GET", "/v1/models"),
    ("GET", "/v1/models/tiny"),
    ("POST", "/v1/completions"),
    ("POST", "/v1/chat/completions"),
    ("POST", "/rhapsody/batch"),
    ("POST", "/rhapsody/cancel"),
    ("GET", "/no/such/path"),
    ("DELETE", "/health"),
    ("OPTIONS", "/v1/models"),
]


@pytest.mark.parametrize(("method", "path"), PATHS)
@pytest.mark.parametrize(
    "headers",
    [{}, {"X-Rhapsody-Key": "wrong"}, {"X-Rhapsody-Key": "é"}, {"Authorization": "Bearer x"}],
)
async def test_every_path_requires_the_key(
    server: Server, method: str, path: str, headers: dict[str, str]
) -> None:
    async with (
        server.client(headers=headers) as client,
        client.request(method, path) as response,
    ):
        assert response.status == 401
        assert (await response.json())["error"]["type"] == "AuthenticationError"


async def test_health_is_an_empty_object(client: aiohttp.ClientSession) -> None:
    async with client.get("/health") as response:
        assert (response.status, await response.json()) == (200, {})


@pytest.mark.parametrize("path", ["/nothing", "/tokenize", "/v1/audio"])
async def test_unknown_path_is_a_not_found_error(client: aiohttp.ClientSession, path: str) -> None:
    async with client.post(path, json={}) as response:
        error = (await response.json())["error"]
        assert response.status == error["code"] == 404
    assert error["type"] == "NotFoundError"
    assert set(error) == {"message", "type", "param", "code"}


async def test_wrong_method_names_allowed_ones(client: aiohttp.ClientSession) -> None:
    async with client.delete("/health") as response:
        error = (await response.json())["error"]
        assert response.status == error["code"] == 405
        assert "GET" in response.headers["Allow"]


async def test_too_large_body_is_refused(client: aiohttp.ClientSession) -> None:
    sent = 0

    async def body() -> AsyncIterator[bytes]:
        nonlocal sent
        for _ in range(90):
            yield b"x" * 1024 * 1024
            sent += 1

    async with client.post("/rhapsody/batch", data=body()) as response:
        assert response.status == 413
        assert (await response.json())["error"]["type"] == "PayloadTooLargeError"
    assert sent == 90, "the response comes after all of the body, so no client finds a broken pipe"


async def test_server_starts_within_seconds(servers: Servers) -> None:
    start = time.monotonic()
    server = servers.start()
    async with server.client() as client, client.get("/health") as response:
        assert response.status == 200
    # Twice the documented time: the test machine is shared.
    assert time.monotonic() - start < 2


async def test_no_key_is_required_if_none_is_set(servers: Servers) -> None:
    async with servers.start().client() as client:
        [line] = await batch(client, {"id": "1", "prompt": "Why?"})
    assert line["type"] == "done"


def test_address_is_printed(servers: Servers, socket_path: Path) -> None:
    assert servers.start(uds=socket_path).address == f"unix:{socket_path}"
    assert servers.start().address.startswith("http://127.0.0.1:")


def test_socket_is_private(servers: Servers, socket_path: Path) -> None:
    servers.start(uds=socket_path)
    assert stat.S_IMODE(socket_path.stat().st_mode) & 0o077 == 0


@pytest.mark.parametrize("name", [signal.SIGTERM, signal.SIGINT])
def test_signal_stops_server_and_removes_socket(
    servers: Servers, socket_path: Path, name: signal.Signals
) -> None:
    server = servers.start(uds=socket_path)
    server.process.send_signal(name)
    status, log = wait_exit(server.process)
    assert status == 0, log
    assert "Traceback" not in log
    assert not socket_path.exists()


async def test_sigterm_lets_running_requests_finish(servers: Servers) -> None:
    server = servers.start("--token-delay-ms", "10")
    async with server.client() as client:
        sampling = {"max_tokens": 50, "ignore_eos": True}
        prompt = {"id": "1", "prompt": "Why?", "sampling": sampling}
        request = asyncio.create_task(batch(client, prompt))
        await until_metric(client, "requests_running", 1)
        server.process.terminate()
        [line] = await asyncio.wait_for(request, 10)
    assert line["usage"]["completion_tokens"] == 50
    assert wait_exit(server.process)[0] == 0


async def test_sigterm_cancels_requests_after_two_seconds(servers: Servers) -> None:
    server = servers.start("--token-delay-ms", "10")
    async with server.client() as client:
        sampling = {"max_tokens": 1900, "ignore_eos": True}
        prompt = {"id": "1", "prompt": "Why?", "sampling": sampling}
        request = asyncio.create_task(batch(client, prompt))
        await until_metric(client, "requests_running", 1)
        server.process.terminate()
        start = time.monotonic()
        status, log = await asyncio.to_thread(wait_exit, server.process)
        await asyncio.gather(request, return_exceptions=True)
    assert status == 0, log
    assert 1.5 < time.monotonic() - start < 4


@pytest.mark.parametrize("arguments", [(), ("--start-delay-ms", "60000")])
def test_server_exits_when_its_parent_is_gone(
    servers: Servers, socket_path: Path, arguments: tuple[str, ...]
) -> None:
    read_end, write_end = os.pipe()
    try:
        process = servers.spawn(
            *("--uds", str(socket_path), *arguments),
            environment={"RHAPSODY_PARENT_FD": str(read_end)},
            pass_fds=(read_end,),
        )
        if not arguments:
            _first_line(process)
            assert socket_path.exists()
        start = time.monotonic()
    finally:
        os.close(read_end)
        os.close(write_end)
    status, log = wait_exit(process)
    assert "parent process is gone" in log
    assert status == 1
    assert not socket_path.exists()
    assert time.monotonic() - start < 3


def test_server_runs_while_its_parent_lives(servers: Servers) -> None:
    read_end, write_end = os.pipe()
    try:
        server = servers.start(
            environment={"RHAPSODY_PARENT_FD": str(read_end)}, pass_fds=(read_end,)
        )
        os.write(write_end, b"still here")
        server.process.terminate()
        assert wait_exit(server.process)[0] == 0
    finally:
        os.close(read_end)
        os.close(write_end)


@pytest.mark.parametrize("value", ["x", "999"])
def test_invalid_parent_pipe_is_an_error(servers: Servers, value: str) -> None:
    process = servers.spawn("--port", "0", environment={"RHAPSODY_PARENT_FD": value})
    status, log = wait_exit(process)
    assert status == 1
    assert "RHAPSODY_PARENT_FD must be" in log
    assert "Traceback" not in log


def test_fail_at_start_exits_with_the_message(servers: Servers) -> None:
    process = servers.spawn("--port", "0", "--fail-at-start", "no memory left")
    status, log = wait_exit(process)
    assert status == 1
    assert log.endswith("no memory left\n")


def test_delayed_start_listens_and_stops(servers: Servers, socket_path: Path) -> None:
    process = servers.spawn("--uds", str(socket_path), "--start-delay-ms", "300")
    assert json.loads(_first_line(process)) == {"listening": f"unix:{socket_path}"}
    process.terminate()
    assert wait_exit(process)[0] == 0


def test_port_in_use_is_an_error_in_one_line(servers: Servers) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        status, log = wait_exit(servers.spawn("--port", port))
    assert status == 1
    assert len(log.splitlines()) == 1
    assert f"cannot listen on 127.0.0.1:{port}" in log


def test_overlong_socket_path_is_an_error_in_one_line(servers: Servers) -> None:
    status, log = wait_exit(servers.spawn("--uds", "/tmp/" + "x" * 120))
    assert status == 1
    assert len(log.splitlines()) == 1
    assert "must have at most 107 bytes, got 125" in log


def _first_line(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    return process.stdout.readline()
