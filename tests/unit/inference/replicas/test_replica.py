"""One replica: its server's process, its health, and the batch route, with a scripted server."""

import asyncio
import shutil
import sys
from collections.abc import AsyncIterator, Awaitable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import aiohttp
import pytest
from aiohttp import web

from rhapsody.errors import PromptError, ReplicaError
from rhapsody.inference.launchers.local import LocalLauncher
from rhapsody.inference.prompts import PromptRequest
from rhapsody.inference.protocol.batch import LIMIT_PATH
from rhapsody.inference.replicas.launcher import Launcher
from rhapsody.inference.replicas.replica import Replica
from tests.support.replicas import (
    Lines,
    ScriptedServer,
    done_lines,
    make_replica,
    no_lines,
    short_directory,
    started_replica,
)
from tests.support.waiting import until


@pytest.fixture
def server() -> ScriptedServer:
    return ScriptedServer()


@pytest.fixture
async def replica(server: ScriptedServer) -> AsyncIterator[Replica]:
    async with started_replica(server) as replica:
        yield replica


def start_sending(replica: Replica, number: int = 2) -> tuple[list[PromptRequest], Awaitable[Any]]:
    requests = [PromptRequest(f"prompt {i}") for i in range(number)]
    replica.reserve(requests)
    return requests, asyncio.ensure_future(replica.send(requests))


async def test_each_prompt_gets_its_outcome(replica: Replica) -> None:
    requests, sending = start_sending(replica)
    assert replica.in_flight == 2
    assert await sending == []
    assert [(await request.completion()).response for request in requests] == ["text"] * 2
    assert replica.in_flight == 0


async def test_ordinary_prompts_in_flight_are_counted_apart(replica: Replica) -> None:
    requests = [PromptRequest("hi", priority=priority) for priority in (-1, 0, 1)]
    replica.reserve(requests)
    assert (replica.in_flight, replica.ordinary_in_flight) == (3, 2)
    requests[0].close()  # it is not sent
    await replica.send(requests)
    assert (replica.in_flight, replica.ordinary_in_flight) == (0, 0)


@pytest.mark.parametrize(
    "lines",
    [
        lambda prompts: done_lines(prompts)[:1],
        lambda prompts: [*done_lines(prompts)[:1], b"what?\n"],
        lambda prompts: [*done_lines(prompts)[:1], b'{"id": "another", "type": "done"}\n'],
        lambda prompts: [*done_lines(prompts)[:1], b'{"no": "id"}\n'],
    ],
    ids=["cut", "not-json", "unknown-id", "no-id"],
)
async def test_send_returns_prompts_without_outcome(
    replica: Replica, server: ScriptedServer, lines: Lines
) -> None:
    server.lines = lines
    (first, second), sending = start_sending(replica)
    assert await sending == [second]
    assert first.done
    assert not second.done
    assert replica.in_flight == 0
    assert replica.state == "UNHEALTHY", "no more prompts before a health check has succeeded"
    second.close()


async def test_send_returns_all_prompts_after_server_error(
    replica: Replica, server: ScriptedServer
) -> None:
    server.status = 500
    requests, sending = start_sending(replica)
    assert await sending == requests
    for request in requests:
        request.close()


async def test_prompt_for_which_a_batch_is_refused_fails_alone(
    replica: Replica, server: ScriptedServer
) -> None:
    server.refused = "prompt 3"
    requests = [PromptRequest(f"prompt {number}") for number in range(6)]
    replica.reserve(requests)
    assert await replica.send(requests) == []
    outcomes = await asyncio.gather(
        *(request.completion() for request in requests), return_exceptions=True
    )
    assert [type(one) is PromptError for one in outcomes] == [n == 3 for n in range(6)]
    assert (replica.state, replica.in_flight) == ("READY", 0)
    for request in requests:
        request.close()


async def test_refused_request_fails_its_prompts(replica: Replica, server: ScriptedServer) -> None:
    server.status = 413
    [request], sending = start_sending(replica, 1)
    assert await sending == []
    with pytest.raises(PromptError) as refused:
        await request.completion()
    assert refused.value.code == 413
    assert replica.state == "READY"
    assert replica.in_flight == 0


async def test_cancel_ahead_of_its_prompt_is_repeated(
    replica: Replica, server: ScriptedServer
) -> None:
    server.accepting.clear()
    server.lines = no_lines
    [request], sending = start_sending(replica, 1)
    await until(lambda: server.batches)
    replica.connection.cancel(request.id)
    request.close()
    await asyncio.wait_for(server.cancel_received.wait(), 10)
    server.cancel_received.clear()
    server.accepting.set()  # only now does the server know of the prompt
    await asyncio.wait_for(server.cancel_received.wait(), 10)
    assert server.cancelled == [[request.id], [request.id]]
    server.finish.set()
    await sending


async def test_closed_prompt_is_not_sent(replica: Replica, server: ScriptedServer) -> None:
    [request], sending = start_sending(replica, 1)
    request.close()
    assert await sending == []
    assert server.batches == []
    assert replica.in_flight == 0


async def test_stop_wakes_pending_responses(replica: Replica, server: ScriptedServer) -> None:
    server.lines = no_lines
    requests, sending = start_sending(replica)
    await until(lambda: replica.connection._responses)
    # A server that hangs does not even close its connections.
    server.stop = server.wait  # type: ignore[assignment,method-assign]
    stopping = asyncio.ensure_future(replica.stop())
    assert await asyncio.wait_for(sending, 10) == requests
    server.exit.set()
    await stopping
    del server.stop
    await server.stop()
    for request in requests:
        request.close()


async def test_request_to_stopped_replica_raises_client_error(replica: Replica) -> None:
    await replica.stop()
    assert replica.pid is None
    with pytest.raises(aiohttp.ClientError):
        await replica.request("GET", "/health", {}).__aenter__()


@pytest.mark.parametrize("status", [400, 500])
@pytest.mark.parametrize("text", ["", "no", "no" * 100_000], ids=len)
async def test_connection_closed_after_error_is_not_reused(
    replica: Replica, server: ScriptedServer, status: int, text: str
) -> None:
    server.text = text
    for _ in range(50):
        async with replica.request("POST", f"/fails?status={status}", {}) as response:
            assert response.status == status
            assert await response.text() == text


async def test_watch_returns_exit_code(replica: Replica, server: ScriptedServer) -> None:
    watching = asyncio.ensure_future(replica.watch(30, 60))
    server.exit.set()
    assert await asyncio.wait_for(watching, 10) == "exited with code 1"


async def test_suspected_server_is_checked_at_once(replica: Replica) -> None:
    watching = asyncio.ensure_future(replica.watch(30, 60))
    replica.suspect()
    assert replica.state == "UNHEALTHY"
    await until(lambda: replica.state == "READY")
    watching.cancel()
    await asyncio.wait([watching])


async def test_exit_during_start_raises_with_last_log_lines(server: ScriptedServer) -> None:
    async def unwell(request: web.Request) -> web.Response:
        server.exit.set()
        return web.Response(status=503)

    server._health = unwell  # type: ignore[method-assign]
    with short_directory() as folder:
        replica = make_replica(server, folder)
        with pytest.raises(ReplicaError, match="exited with code 1 while it started") as failed:
            await replica.start(10)
    assert failed.value.log_tail == "last lines"
    assert replica.state == "DEAD"


@pytest.mark.parametrize("exits", [False, True])
async def test_server_lost_after_its_first_health_check_could_not_start(
    server: ScriptedServer, exits: bool
) -> None:
    cuts: list[web.Request] = []

    async def cut(request: web.Request) -> web.Response:
        cuts.append(request)
        if exits and len(cuts) == 2:  # the client asks twice, and must not connect after the end
            server.exit.set()
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    server.routes = [web.get(LIMIT_PATH, cut)]
    reason = "exited with code 1" if exits else r"failed while it started \(ServerDisconnected"
    with short_directory() as folder:
        replica = make_replica(server, folder, limit=None)
        with pytest.raises(ReplicaError, match=reason) as failed:
            await replica.start(10)
    assert failed.value.log_tail == "last lines"
    assert replica.state == "DEAD"


async def test_log_tail_has_no_control_sequences(server: ScriptedServer) -> None:
    text = "\x1b[1;31mred\x1b[0m\ttab\r\n\x1b]0;title\x07next\x9b\x00 \x1b]8;;http://x\x1b\\link"
    server.log_tail = lambda: text  # type: ignore[method-assign]
    with short_directory() as folder:
        replica = make_replica(server, folder)
        await replica.start(10)
        assert replica.log_tail() == "red\ttab\nnext link"
        await replica.stop()


async def test_failed_start_says_the_cause_and_keeps_the_log(tmp_path: Path) -> None:
    script = "print('ValueError: no memory'); print('later'); raise SystemExit(3)"
    with short_directory() as folder:
        replica = Replica(
            0,
            [sys.executable, "-c", script],
            {"RHAPSODY_REPLICA_KEY": "key"},
            folder,
            4,
            LocalLauncher(),
            lambda: None,
            advice={"memory": "buy more"},
            kept_log=tmp_path / "kept.log",
        )
        with pytest.raises(ReplicaError) as failed:
            await replica.start(20)
        await replica.stop()
    assert failed.value.reason == (
        "model server 0 exited with code 3 while it started: ValueError: no memory; buy more; "
        f"its log is kept in {tmp_path / 'kept.log'}"
    )
    assert (tmp_path / "kept.log").read_text() == "ValueError: no memory\nlater\n"


async def test_error_quotes_the_log_of_its_own_start_only() -> None:
    with short_directory() as folder:
        script = f"import os; print(len(os.listdir({str(folder)!r}))); raise SystemExit(3)"
        environment = {"RHAPSODY_REPLICA_KEY": "key"}
        command = [sys.executable, "-c", script]
        replica = Replica(0, command, environment, folder, 4, LocalLauncher(), lambda: None)
        for _ in range(2):
            with pytest.raises(ReplicaError) as failed:
                await replica.start(20)
            assert failed.value.log_tail == "1"
        await replica.stop()


async def test_full_disk_is_said(server: ScriptedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = SimpleNamespace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with short_directory() as folder:
        error = make_replica(server, folder).failure("exited with code 1")
    assert f"the file system of {folder} is full" in error.reason


async def silent(request: web.Request) -> web.Response:
    await asyncio.Event().wait()
    raise AssertionError


async def test_busy_server_is_unhealthy_but_not_dead(
    replica: Replica, server: ScriptedServer
) -> None:
    server._health_now = silent
    watching = asyncio.ensure_future(replica.watch(0.05, 60))
    await until(lambda: replica.state == "UNHEALTHY")
    await asyncio.wait([watching], timeout=1)
    assert not watching.done()
    server._health_now = None
    await until(lambda: replica.state == "READY")
    watching.cancel()


async def test_server_that_hangs_is_dead_after_hang_timeout(
    replica: Replica, server: ScriptedServer
) -> None:
    server._health_now = silent
    reason = await asyncio.wait_for(replica.watch(0.05, 0.3), 20)
    assert reason == "did not respond for 0.3 s"


async def test_server_that_refuses_health_checks_is_dead(
    replica: Replica, server: ScriptedServer
) -> None:
    async def unwell(request: web.Request) -> web.Response:
        return web.Response(status=503)

    server._health_now = unwell
    reason = await asyncio.wait_for(replica.watch(0.05, 60), 20)
    assert reason == "refused 3 health checks in a row"


async def test_next_server_starts_while_the_former_one_ends(server: ScriptedServer) -> None:
    ending = asyncio.Event()
    next_server = ScriptedServer()

    async def end() -> None:
        await ending.wait()
        await ScriptedServer.stop(server)

    server.stop = end  # type: ignore[method-assign]
    with short_directory() as folder:
        replica = make_replica(server, folder)
        await replica.start(10)
        await replica.retire()
        assert (replica.state, replica.pid) == ("DEAD", None)
        replica._launcher = cast("Launcher", next_server)
        await replica.start(10)
        assert replica.state == "READY"
        assert not server.stopped
        stopping = asyncio.ensure_future(replica.stop())
        await asyncio.wait([stopping], timeout=0.05)
        assert not stopping.done(), "it waits for the former server"
        ending.set()
        await asyncio.wait_for(stopping, 10)
    assert server.stopped
    assert next_server.stopped
