import asyncio
import io
import json
import os
import signal
import socket
import stat
import time

import pytest

from rhapsody.inference.embedded.__main__ import parse_options

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


def end(process, timeout=10):
    """Wait for the process's end and return its status and its log."""
    _, log = process.communicate(timeout=timeout)
    return process.returncode, log


@pytest.mark.parametrize(("method", "path"), PATHS)
@pytest.mark.parametrize(
    "headers",
    [{}, {"X-Rhapsody-Key": "wrong"}, {"X-Rhapsody-Key": "é"}, {"Authorization": "Bearer x"}],
)
async def test_every_path_demands_the_secret(server, method, path, headers):
    async with (
        server.client(headers=headers) as client,
        client.request(method, path) as response,
    ):
        assert response.status == 401
        assert (await response.json())["error"]["type"] == "AuthenticationError"


async def test_health_is_an_empty_object(client):
    async with client.get("/health") as response:
        assert (response.status, await response.json()) == (200, {})


@pytest.mark.parametrize("path", ["/nothing", "/tokenize", "/v1/embeddings"])
async def test_what_is_not_there_is_not_found_in_the_same_form(client, path):
    async with client.post(path, json={}) as response:
        error = (await response.json())["error"]
        assert response.status == error["code"] == 404
    assert error["type"] == "NotFoundError"
    assert set(error) == {"message", "type", "param", "code"}


async def test_a_method_that_is_not_allowed_says_which_are(client):
    async with client.delete("/health") as response:
        error = (await response.json())["error"]
        assert response.status == error["code"] == 405
        assert "GET" in response.headers["Allow"]


async def test_a_body_that_is_too_large_is_refused(client):
    body = io.BytesIO(b"x" * (65 * 1024 * 1024))
    async with client.post("/rhapsody/batch", data=body) as response:
        assert response.status == 413
        assert (await response.json())["error"]["type"] == "PayloadTooLargeError"


async def test_it_answers_within_a_second_of_its_start(servers):
    start = time.monotonic()
    server = servers.start()
    async with server.client() as client, client.get("/health") as response:
        assert response.status == 200
    # Twice what is promised: the machine that runs the tests is shared.
    assert time.monotonic() - start < 2


async def test_without_a_secret_nobody_is_asked_for_one(servers, helpers):
    async with servers.start().client() as client:
        [line] = await helpers.batch(client, {"id": "1", "prompt": "Why?"})
    assert line["type"] == "done"


def test_it_says_where_it_listens(servers, socket_path):
    assert servers.start(uds=socket_path).address == f"unix:{socket_path}"
    assert servers.start().address.startswith("http://127.0.0.1:")


def test_the_socket_is_for_its_owner_alone(servers, socket_path):
    servers.start(uds=socket_path)
    assert stat.S_IMODE(socket_path.stat().st_mode) & 0o077 == 0


@pytest.mark.parametrize("name", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_with_status_0_and_removes_the_socket(servers, socket_path, name):
    server = servers.start(uds=socket_path)
    server.process.send_signal(name)
    status, log = end(server.process)
    assert status == 0, log
    assert "Traceback" not in log
    assert not socket_path.exists()


async def test_at_sigterm_running_requests_finish(servers, helpers):
    server = servers.start("--token-delay-ms", "10")
    async with server.client() as client:
        sampling = {"max_tokens": 50, "ignore_eos": True}
        prompt = {"id": "1", "prompt": "Why?", "sampling": sampling}
        request = asyncio.create_task(helpers.batch(client, prompt))
        await helpers.until_gauge(client, "requests_running", 1)
        server.process.terminate()
        [line] = await asyncio.wait_for(request, 10)
    assert line["usage"]["completion_tokens"] == 50
    assert end(server.process)[0] == 0


async def test_at_sigterm_endless_requests_are_cut_after_two_seconds(servers, helpers):
    server = servers.start("--token-delay-ms", "10")
    async with server.client() as client:
        sampling = {"max_tokens": 1900, "ignore_eos": True}
        prompt = {"id": "1", "prompt": "Why?", "sampling": sampling}
        request = asyncio.create_task(helpers.batch(client, prompt))
        await helpers.until_gauge(client, "requests_running", 1)
        server.process.terminate()
        start = time.monotonic()
        status, log = await asyncio.to_thread(end, server.process)
        await asyncio.gather(request, return_exceptions=True)
    assert status == 0, log
    assert 1.5 < time.monotonic() - start < 4


@pytest.mark.parametrize("arguments", [(), ("--start-delay-ms", "60000")])
def test_it_ends_at_once_when_its_parent_is_gone(servers, socket_path, arguments):
    read_end, write_end = os.pipe()
    try:
        process = servers.spawn(
            *("--uds", str(socket_path), *arguments),
            environment={"RHAPSODY_PARENT_FD": str(read_end)},
            pass_fds=(read_end,),
        )
        if not arguments:
            process.stdout.readline()
            assert socket_path.exists()
        start = time.monotonic()
    finally:
        os.close(read_end)
        os.close(write_end)
    status, log = end(process)
    assert "parent process is gone" in log
    assert status == 1
    assert not socket_path.exists()
    assert time.monotonic() - start < 3


def test_a_living_parent_is_no_reason_to_end(servers):
    read_end, write_end = os.pipe()
    try:
        server = servers.start(
            environment={"RHAPSODY_PARENT_FD": str(read_end)}, pass_fds=(read_end,)
        )
        os.write(write_end, b"still here")
        server.process.terminate()
        assert end(server.process)[0] == 0
    finally:
        os.close(read_end)
        os.close(write_end)


@pytest.mark.parametrize("value", ["x", "999"])
def test_a_parent_that_cannot_be_watched_is_an_error(servers, value):
    process = servers.spawn("--port", "0", environment={"RHAPSODY_PARENT_FD": value})
    status, log = end(process)
    assert status == 1
    assert "RHAPSODY_PARENT_FD must be" in log
    assert "Traceback" not in log


def test_it_can_be_told_to_fail(servers):
    process = servers.spawn("--port", "0", "--fail-at-start", "no memory left")
    status, log = end(process)
    assert status == 1
    assert log.endswith("no memory left\n")


def test_a_start_that_is_delayed_can_be_ended(servers, socket_path):
    process = servers.spawn("--uds", str(socket_path), "--start-delay-ms", "300")
    assert json.loads(process.stdout.readline()) == {"listening": f"unix:{socket_path}"}
    process.terminate()
    assert end(process)[0] == 0


def test_a_port_in_use_is_an_error_in_one_line(servers):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        status, log = end(servers.spawn("--port", port))
    assert status == 1
    assert len(log.splitlines()) == 1
    assert f"cannot listen on 127.0.0.1:{port}" in log


def test_a_socket_path_that_is_too_long_is_an_error_in_one_line(servers):
    status, log = end(servers.spawn("--uds", "/tmp/" + "x" * 120))
    assert status == 1
    assert len(log.splitlines()) == 1
    assert "125 bytes, at most" in log


def test_the_command_line_is_in_milliseconds_and_the_options_in_seconds():
    options = parse_options(["--model", "m", "--port", "0", "--token-delay-ms", "2.5"])
    assert options.token_delay == 0.0025


@pytest.mark.parametrize(
    "arguments",
    [
        ["--model", "m"],
        ["--port", "0"],
        ["--model", "m", "--port", "0", "--uds", "x"],
        ["--model", "m", "--port", "-1"],
        ["--model", "m", "--port", "0", "--max-num-seqs", "0"],
        ["--model", "m", "--port", "0", "--token-delay-ms", "-1"],
        ["--model", "m", "--port", "0", "--token-delay-ms", "nan"],
    ],
)
def test_a_mistake_on_the_command_line_ends_with_status_2(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        parse_options(arguments)
    assert caught.value.code == 2
    assert "usage:" in capsys.readouterr().err
