"""One replica: its batch route seen from here, with a server that does as a test says."""

import asyncio
import json
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from rhapsody.api.errors import PromptError, ReplicaError
from rhapsody.inference.prompts import PromptRequest
from rhapsody.inference.replica import Replica
from tests.support.inference import until


class Server:
    """Stands in for a server's process: listens in this one."""

    def __init__(self) -> None:
        self.pid = 4711
        self.ended = False
        self.batches: list[list[dict[str, Any]]] = []
        self.cancelled: list[list[str]] = []
        self.saw_cancel = asyncio.Event()
        self.accept = asyncio.Event()
        self.accept.set()
        self.go_on = asyncio.Event()
        self.lines: Callable[[list[dict[str, Any]]], list[bytes]] = done
        self.status = 200
        self.text = ""
        self.exit = asyncio.Event()
        self._runner: web.AppRunner | None = None

    async def launch(
        self, command: list[str], environment: dict[str, str], log: Path, socket: Path
    ) -> "Server":
        app = web.Application()
        app.router.add_get("/health", self._health)
        app.router.add_post("/rhapsody/batch", self._batch)
        app.router.add_post("/rhapsody/cancel", self._cancel)
        app.router.add_post("/fails", self._fail)
        self._runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.UnixSite(self._runner, str(socket)).start()
        self.address = f"unix:{socket}"
        return self

    async def wait(self) -> int:
        await self.exit.wait()
        return 1

    async def end(self) -> None:
        if self._runner is not None:
            self.go_on.set()
            await self._runner.cleanup()
        self.ended = True

    def log_tail(self) -> str:
        return "last words"

    async def _health(self, request: web.Request) -> web.Response:
        return web.Response()

    async def _batch(self, request: web.Request) -> web.StreamResponse:
        prompts = (await request.json())["prompts"]
        self.batches.append(prompts)
        await self.accept.wait()
        if self.status != 200:
            return web.Response(status=self.status, text="no")
        response = web.StreamResponse()
        await response.prepare(request)
        for line in self.lines(prompts):
            await response.write(line)
        if self.lines is nothing:
            await self.go_on.wait()
        return response

    async def _fail(self, request: web.Request) -> web.StreamResponse:
        """Close the connection after an error, as uvicorn does, and do not say so before."""
        response = web.Response(status=int(request.query["status"]), text=self.text)
        await response.prepare(request)
        await response.write_eof()
        assert request.transport is not None
        asyncio.get_running_loop().call_later(0.001, request.transport.close)
        return response

    async def _cancel(self, request: web.Request) -> web.Response:
        self.cancelled.append((await request.json())["ids"])
        self.saw_cancel.set()
        return web.json_response({})


def done(prompts: list[dict[str, Any]]) -> list[bytes]:
    answer = {"type": "done", "texts": ["text"], "finish_reasons": ["stop"], "usage": {}}
    return [json.dumps({"id": p["id"], **answer}).encode() + b"\n" for p in prompts]


def nothing(prompts: list[dict[str, Any]]) -> list[bytes]:
    return []


@pytest.fixture
def server() -> Server:
    return Server()


@pytest.fixture
async def replica(server: Server) -> AsyncIterator[Replica]:
    # Not tmp_path: the path of a Unix socket is limited to 107 bytes.
    with tempfile.TemporaryDirectory() as folder:
        made = Replica(
            *(0, ["server"], {"RHAPSODY_REPLICA_KEY": "key"}, Path(folder), 4),
            server,  # type: ignore[arg-type]
            lambda: None,
        )
        await made.start(10)
        yield made
        await made.end()


def send(replica: Replica, number: int = 2) -> tuple[list[PromptRequest], Awaitable[Any]]:
    requests = [PromptRequest(f"prompt {i}") for i in range(number)]
    replica.take(requests)
    return requests, asyncio.ensure_future(replica.answer(requests))


async def test_each_prompt_gets_its_outcome(replica: Replica) -> None:
    requests, answering = send(replica)
    assert replica.in_flight == 2
    assert replica.room == 2
    assert await answering == []
    assert [(await request.completion()).response for request in requests] == ["text"] * 2
    assert replica.in_flight == 0


@pytest.mark.parametrize(
    "lines",
    [
        lambda prompts: done(prompts)[:1],
        lambda prompts: [*done(prompts)[:1], b"what?\n"],
        lambda prompts: [*done(prompts)[:1], b'{"id": "another", "type": "done"}\n'],
        lambda prompts: [*done(prompts)[:1], b'{"no": "id"}\n'],
    ],
    ids=["cut", "no JSON", "unknown id", "no id"],
)
async def test_prompts_without_an_outcome_are_handed_back(
    replica: Replica, server: Server, lines: Any
) -> None:
    server.lines = lines
    (first, second), answering = send(replica)
    assert await answering == [second]
    assert first.done
    assert not second.done
    assert replica.in_flight == 0
    assert replica.state == "UNHEALTHY", "it gets nothing more before it has been asked how it is"
    second.abandon()


async def test_a_server_error_hands_all_back(replica: Replica, server: Server) -> None:
    server.status = 500
    requests, answering = send(replica)
    assert await answering == requests
    for request in requests:
        request.abandon()


async def test_a_refused_request_is_not_sent_again(replica: Replica, server: Server) -> None:
    server.status = 413
    [request], answering = send(replica, 1)
    assert await answering == []
    with pytest.raises(PromptError) as refused:
        await request.completion()
    assert refused.value.code == 413
    assert replica.state == "READY"
    assert replica.in_flight == 0


async def test_cancels_of_one_moment_go_in_one_message(replica: Replica, server: Server) -> None:
    for name in ("a", "b", "c"):
        replica.cancel(name)
    await asyncio.wait_for(server.saw_cancel.wait(), 10)
    assert server.cancelled == [["a", "b", "c"]]


async def test_a_cancel_that_overtook_its_prompt_is_sent_again(
    replica: Replica, server: Server
) -> None:
    server.accept.clear()
    server.lines = nothing
    [request], answering = send(replica, 1)
    await until(lambda: server.batches)
    replica.cancel(request.id)
    request.abandon()
    await asyncio.wait_for(server.saw_cancel.wait(), 10)
    server.saw_cancel.clear()
    server.accept.set()  # only now does the server know of the prompt
    await asyncio.wait_for(server.saw_cancel.wait(), 10)
    assert server.cancelled == [[request.id], [request.id]]
    server.go_on.set()
    await answering


async def test_what_is_cancelled_before_it_was_sent_is_not_sent(
    replica: Replica, server: Server
) -> None:
    [request], answering = send(replica, 1)
    request.abandon()
    assert await answering == []
    assert server.batches == []
    assert replica.in_flight == 0


async def test_its_end_wakes_whoever_waits_for_answers(replica: Replica, server: Server) -> None:
    server.lines = nothing
    requests, answering = send(replica)
    await until(lambda: replica._answers)
    # A server that hangs sends nothing, not even an end.
    server.end = server.wait  # type: ignore[assignment,method-assign]
    ending = asyncio.ensure_future(replica.end())
    assert await asyncio.wait_for(answering, 10) == requests
    server.exit.set()
    await ending
    del server.end
    await server.end()
    for request in requests:
        request.abandon()


async def test_passing_on_to_one_that_ended_is_a_client_error(replica: Replica) -> None:
    await replica.end()
    assert replica.pid is None
    with pytest.raises(aiohttp.ClientError):
        await replica.request("GET", "/health", {}).__aenter__()


@pytest.mark.parametrize("status", [400, 500])
@pytest.mark.parametrize("text", ["", "no", "no" * 100_000], ids=len)
async def test_a_connection_that_is_closed_after_an_error_does_no_harm(
    replica: Replica, server: Server, status: int, text: str
) -> None:
    server.text = text
    for _ in range(50):
        async with replica.request("POST", f"/fails?status={status}", {}) as answer:
            assert answer.status == status
            assert await answer.text() == text


async def test_an_exit_is_told_with_its_code(replica: Replica, server: Server) -> None:
    watching = asyncio.ensure_future(replica.until_dead(30))
    server.exit.set()
    assert await asyncio.wait_for(watching, 10) == "exited with code 1"


async def test_one_that_doubt_was_cast_on_is_asked_at_once(replica: Replica) -> None:
    watching = asyncio.ensure_future(replica.until_dead(30))
    replica.doubt()
    assert replica.state == "UNHEALTHY"
    await until(lambda: replica.state == "READY")
    watching.cancel()
    await asyncio.wait([watching])


async def test_an_exit_during_the_start_is_told_with_the_last_words(server: Server) -> None:
    async def unwell(request: web.Request) -> web.Response:
        server.exit.set()
        return web.Response(status=503)

    server._health = unwell  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as folder:
        replica = Replica(
            *(0, ["server"], {"RHAPSODY_REPLICA_KEY": "key"}, Path(folder), 4),
            server,  # type: ignore[arg-type]
            lambda: None,
        )
        with pytest.raises(ReplicaError, match="exited with code 1 while it started") as failed:
            await replica.start(10)
    assert failed.value.log_tail == "last words"
    assert replica.state == "DEAD"
