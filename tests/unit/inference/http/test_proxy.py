"""The proxy between a real client and replicas with scripted servers."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from rhapsody.errors import OverloadedError, ReplicaError
from rhapsody.inference.admission import Admission
from rhapsody.inference.clients import ApiKey
from rhapsody.inference.clients import Client as Caller
from rhapsody.inference.http.proxy import Proxy
from rhapsody.inference.http.request_body import read_body
from rhapsody.inference.replicas.pool import ReplicaPool
from tests.support.replicas import FakeReplica, ScriptedServer, pool_of, started_replica

Client = TestClient[web.Request, web.Application]
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


async def echo(request: web.Request) -> web.Response:
    body = (await request.read()).decode()
    response = web.json_response(
        {"path": request.raw_path, "headers": dict(request.headers), "body": body}
    )
    response.headers["X-Own"] = "kept"
    return response


async def models(request: web.Request) -> web.Response:
    return web.json_response({"data": [{"id": "an/org", "owned_by": "us"}]})


async def not_found(request: web.Request) -> web.Response:
    return web.json_response({"detail": "Not Found"}, status=404)


async def endless_events(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    await response.write(b"data: 1\n\n")
    await asyncio.Event().wait()
    return response


@contextlib.asynccontextmanager
async def client_of(
    pool: ReplicaPool,
    admission: Admission | None = None,
    attempts: int = 2,
    caller: Caller | None = None,
    **options: bool,
) -> AsyncIterator[Client]:
    app = web.Application()
    proxy = Proxy(pool, admission or Admission(4), attempts, **options)
    caller = caller or Caller("alice", None)

    async def handle(request: web.Request) -> web.StreamResponse:
        return await proxy.handle(request, caller, await read_body(request))

    app.router.add_route("*", "/v1/{path:.*}", handle)
    server = TestServer(app)
    await server.start_server(auto_decompress=False)
    async with TestClient(server) as client:
        yield client


def server_with(**handlers: Handler) -> ScriptedServer:
    server = ScriptedServer()
    server.routes = [web.route("*", f"/v1/{name}", handler) for name, handler in handlers.items()]
    return server


async def test_request_and_response_are_forwarded_unchanged() -> None:
    async with (
        started_replica(server_with(echo=echo)) as replica,
        client_of(pool_of(replica)) as client,
        client.post("/v1/echo?a=1", data=b"body", headers={"X-Mine": "1"}) as response,
    ):
        seen = await response.json()
        assert response.headers["X-Own"] == "kept"
    assert seen["path"] == "/v1/echo?a=1"
    assert seen["body"] == "body"
    assert seen["headers"]["X-Mine"] == "1"


async def test_keys_and_connection_headers_are_not_forwarded() -> None:
    headers = {
        "Authorization": "Bearer theirs",
        "X-Rhapsody-Key": "guessed",
        "Connection": "X-Hop",
        "X-Hop": "1",
        "TE": "trailers",
    }
    async with (
        started_replica(server_with(echo=echo)) as replica,
        client_of(pool_of(replica)) as client,
        client.get("/v1/echo", headers=headers) as response,
    ):
        seen = (await response.json())["headers"]
    assert seen["X-Rhapsody-Key"] == "key"
    assert not {"Authorization", "X-Hop", "TE"} & seen.keys()


@pytest.mark.parametrize(
    ("priority", "highest", "keeps"),
    [(None, None, True), (1, None, True), (0, None, False), (None, 0, False), (9, 0, False)],
)
async def test_urgent_chat_keeps_slots_free(
    priority: int | None, highest: int | None, keeps: bool
) -> None:
    caller = Caller("a", None if highest is None else ApiKey(key="k", max_priority=highest))
    server = server_with(**{"chat/completions": echo})
    async with started_replica(server) as replica:
        replica.limit = 64
        pool = pool_of(replica)
        async with (
            client_of(pool, caller=caller, has_priorities=True) as client,
            client.post("/v1/chat/completions", json={"priority": priority}) as response,
        ):
            assert response.status == 200
        assert pool.ordinary_capacity() == (60 if keeps else 64)


async def test_requests_count_as_pending_prompts() -> None:
    admission = Admission(1)
    async with (
        started_replica(server_with(events=endless_events)) as replica,
        client_of(pool_of(replica), admission) as client,
    ):
        async with client.get("/v1/events") as response:
            await response.content.readline()
            assert (admission.pending, replica.in_flight) == (1, 1)
            assert (await client.get("/v1/events")).status == 500
        await replica.stop()


async def test_full_admission_raises_overloaded() -> None:
    admission = Admission(1)
    admission.try_enter()
    with pytest.raises(OverloadedError):
        await handle(pool_of(FakeReplica(0)), admission, "/v1/models")


async def test_no_ready_replica_raises_replica_error() -> None:
    pool = pool_of(FakeReplica(0, state="DEAD"))
    with pytest.raises(ReplicaError, match="no model server is ready; try again soon"):
        await handle(pool, Admission(1), "/v1/models")
    pool.close(ReplicaError("none is left"))
    with pytest.raises(ReplicaError, match="none is left"):
        await handle(pool, Admission(1), "/v1/models")


async def handle(pool: ReplicaPool, admission: Admission, path: str) -> web.StreamResponse:
    raised: list[Exception] = []

    async def call(request: web.Request) -> web.StreamResponse:
        try:
            return await Proxy(pool, admission, 1).handle(request, Caller("alice", None), b"")
        except Exception as error:
            raised.append(error)
            return web.Response()

    app = web.Application()
    app.router.add_route("*", "/v1/{path:.*}", call)
    async with TestClient(TestServer(app)) as client, client.get(path) as response:
        await response.read()
    if raised:
        raise raised[0]
    raise AssertionError("nothing was raised")


async def test_next_replica_is_tried_after_a_lost_connection() -> None:
    async with (
        started_replica(server_with(echo=echo), 0) as dead,
        started_replica(server_with(echo=echo), 1) as alive,
        client_of(pool_of(dead, alive)) as client,
    ):
        await dead.stop("READY")
        alive.in_flight = 1  # so that the dead replica is chosen first
        async with client.get("/v1/echo") as response:
            assert response.status == 200
        assert dead.state == "UNHEALTHY"
        alive.in_flight = 0


@pytest.mark.parametrize(
    ("path", "status"), [("/v1/models/an%2Forg", 200), ("/v1/models/other", 404)]
)
async def test_single_model_is_taken_from_the_list(path: str, status: int) -> None:
    async with (
        started_replica(server_with(models=models)) as replica,
        client_of(pool_of(replica)) as client,
        client.get(path) as response,
    ):
        body = await response.json()
    assert response.status == status
    if status == 200:
        assert body == {"id": "an/org", "owned_by": "us"}
    else:
        assert body["error"]["message"] == "The model `other` does not exist."


async def test_router_errors_get_the_common_format() -> None:
    async with (
        started_replica(server_with(nothing=not_found)) as replica,
        client_of(pool_of(replica)) as client,
        client.get("/v1/nothing") as response,
    ):
        body = await response.json()
    assert response.status == 404
    assert body["error"] == {
        "message": "Not Found",
        "type": "NotFoundError",
        "param": None,
        "code": 404,
    }


async def test_interrupted_stream_ends_in_an_error_event() -> None:
    async with (
        started_replica(server_with(events=endless_events)) as replica,
        client_of(pool_of(replica)) as client,
        client.get("/v1/events") as response,
    ):
        assert await response.content.readline() == b"data: 1\n"
        await replica.stop()
        rest = await response.read()
    event = json.loads(rest.strip().removeprefix(b"data: "))
    assert event["error"]["code"] == 502
    assert "the model server went away" in event["error"]["message"]


async def test_interrupted_response_closes_the_connection() -> None:
    async def endless(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"half")
        await asyncio.Event().wait()
        return response

    async with (
        started_replica(server_with(endless=endless)) as replica,
        client_of(pool_of(replica)) as client,
        client.get("/v1/endless") as response,
    ):
        await response.content.readexactly(4)
        await replica.stop()
        with pytest.raises(aiohttp.ClientPayloadError):
            await response.read()


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/v1/files", None, 501),
        ("/v1/responses/resp_1", None, 501),
        ("/v1/responses", {"previous_response_id": "resp_1"}, 501),
        ("/v1/responses", {"input": "hi"}, 200),
        ("/v1/filesystem", None, 200),
    ],
)
async def test_stateful_routes_need_a_single_replica(path: str, body: Any, status: int) -> None:
    server = ScriptedServer()
    server.routes = [web.route("*", "/v1/{path:.*}", echo)]
    async with started_replica(server) as replica:
        for pool, expected in (
            (pool_of(replica), 200),
            (pool_of(replica, FakeReplica(1, in_flight=9)), status),
        ):
            async with client_of(pool) as client, client.post(path, json=body) as response:
                assert response.status == expected


async def usage_stream(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    for part in (b"data: {}\n\n" * 500, b'data: {"usage": {"prompt_', b'tokens": 5, "completion_'):
        await response.write(part)
    await response.write(b'tokens": 7}}\n\ndata: [DONE]\n\n')
    return response


async def test_tokens_are_counted_for_the_client() -> None:
    caller = Caller("alice", None)
    async with (
        started_replica(server_with(usage=usage_stream)) as replica,
        client_of(pool_of(replica), caller=caller) as client,
        client.post("/v1/usage") as response,
    ):
        await response.read()
    assert (caller.prompt_tokens, caller.completion_tokens) == (5, 7)


async def test_server_with_priorities_gets_the_place_of_a_request() -> None:
    seen: list[bytes] = []

    async def completions(request: web.Request) -> web.Response:
        seen.append(await request.read())
        return web.json_response({})

    async with (
        started_replica(server_with(completions=completions)) as replica,
        client_of(pool_of(replica), has_priorities=True) as client,
    ):
        for headers in ({}, {"X-Rhapsody-Priority": "20"}):
            async with client.post("/v1/completions", data=b'{"n": 1}', headers=headers):
                pass
    urgent, more_urgent = (json.loads(body)["priority"] for body in seen)
    assert more_urgent < urgent


async def test_header_of_vllm_cannot_set_the_priority() -> None:
    async with (
        started_replica(server_with(echo=echo)) as replica,
        client_of(pool_of(replica)) as client,
        client.get("/v1/echo", headers={"X-Vllm-Priority": "-99"}) as response,
    ):
        headers = (await response.json())["headers"]
    assert "x-vllm-priority" not in {name.lower() for name in headers}


@pytest.mark.parametrize("path", ["/v1/load_lora_adapter", "/v1/unload_lora_adapter"])
async def test_clients_cannot_load_adapters(path: str) -> None:
    body = {"lora_name": "x", "lora_path": "/"}
    async with (
        client_of(pool_of(FakeReplica(0))) as client,
        client.post(path, json=body) as response,
    ):
        assert response.status == 403
