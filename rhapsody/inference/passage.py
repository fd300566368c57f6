"""The passage: HTTP requests that go to a replica as they are, and its answers back."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import aiohttp
from aiohttp import web

from rhapsody.api.errors import ReplicaError
from rhapsody.inference.http_errors import error_body

if TYPE_CHECKING:
    from rhapsody.inference.replica import Replica
    from rhapsody.inference.service import InferenceService

__all__ = ["Passage"]

HOP_BY_HOP = frozenset(
    {
        "connection",
        "content-length",
        "host",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
"""Headers that speak of one connection only (RFC 9110, section 7.6.1), and those set anew."""

OURS = frozenset({"authorization", "content-encoding", "expect", "x-rhapsody-key"})
"""Request headers that end here: keys, and what aiohttp has dealt with (bodies are unpacked)."""


STATEFUL = re.compile(
    r"/v1/(files|batches|conversations|assistants|threads|vector_stores|uploads|fine_tuning)(/|\Z)"
    r"|/v1/responses/."
    r"|/v1/(un)?load_lora_adapter\Z"
)
"""Routes whose answers depend on what one replica has been told before."""
STATEFUL_FIELDS = ("previous_response_id", "background", "conversation")
"""Fields of a body of /v1/responses that do the same."""

MODELS = "/v1/models/"


class Passage:
    """Passes requests to the replicas of a service, streams included.

    Args:
        service: The service.
        attempts: How many replicas a request is tried on while they are found dead.
    """

    def __init__(self, service: InferenceService, attempts: int) -> None:
        self._service = service
        self._attempts = attempts

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Answer a request with what a replica answers.

        Raises:
            OverloadedError: `max_pending` prompts are inside.
            ReplicaError: No replica is there to answer.
        """
        # A replica has routes that are not for everybody: dots must not lead out of /v1.
        if any(part in (".", "..") for part in request.path.split("/")):
            raise web.HTTPNotFound
        data = await request.read()
        self._refuse_stateful(request, data)
        headers = dict(_passed(request.headers, OURS))
        self._service.admission.try_enter()
        try:
            return await self._first_answer(request, headers, data)
        finally:
            self._service.admission.leave()

    async def _first_answer(
        self, request: web.Request, headers: Mapping[str, str], data: bytes
    ) -> web.StreamResponse:
        reason = ""
        for _ in range(self._attempts):
            replica = self._replica()
            passing = replica.request(request.method, request.rel_url.raw_path_qs, headers, data)
            try:
                answer = await passing.__aenter__()
            except aiohttp.ClientError as error:
                replica.doubt()
                reason = str(error)
                continue
            try:
                if answer.status == 404 and request.path.startswith(MODELS):
                    return await _one_model(request, replica)
                if answer.status >= 400 and answer.content_type == "application/json":
                    return await _in_one_shape(answer)
                return await _relay(request, replica, answer)
            finally:
                await passing.__aexit__(None, None, None)
        raise ReplicaError(f"the model server went away: {reason}")

    def _refuse_stateful(self, request: web.Request, data: bytes) -> None:
        """Refuse what would ask one replica for what another one knows."""
        pool = self._service.pool
        if pool is None or len(pool.replicas) == 1:
            return
        wanted = bool(STATEFUL.match(request.path))
        if request.path == "/v1/responses":
            with contextlib.suppress(ValueError, AttributeError):
                body = json.loads(data)
                wanted = any(body.get(field) for field in STATEFUL_FIELDS)
        if wanted:
            raise web.HTTPNotImplemented(
                text=f"{request.path} keeps a state in one model server, and there are "
                f"{len(pool.replicas)}; use it with one replica, or send what it depends on along"
            )

    def _replica(self) -> Replica:
        pool = self._service.pool
        assert pool is not None
        replica = pool.least_loaded()
        if replica is None:
            raise pool.failure or ReplicaError("no model server is ready; try again soon")
        return replica


async def _one_model(request: web.Request, replica: Replica) -> web.Response:
    """Describe one model, for servers that only list them."""
    name = request.path.removeprefix(MODELS)
    async with replica.request("GET", "/v1/models", {}) as answer:
        models = (await answer.json())["data"] if answer.status == 200 else []
    for model in models:
        if model["id"] == name:
            return web.json_response(model)
    body = error_body(404, f"The model `{name}` does not exist.", param="model")
    return web.json_response(body, status=404)


async def _in_one_shape(answer: aiohttp.ClientResponse) -> web.Response:
    """Pass an error on; those of a server's router (404, 405) have a shape of their own."""
    data = await answer.read()
    with contextlib.suppress(ValueError, AttributeError):
        body = json.loads(data)
        if "error" not in body:
            data = json.dumps(error_body(answer.status, str(body.get("detail", body)))).encode()
    response = web.Response(body=data, status=answer.status, content_type="application/json")
    response.headers.extend(_passed(answer.headers, ("content-type",)))
    return response


def _passed(headers: Mapping[str, str], left_out: Iterable[str] = ()) -> list[tuple[str, str]]:
    """The headers that go on to the other side."""
    named = {name.strip().lower() for name in headers.get("Connection", "").split(",")}
    left = HOP_BY_HOP.union(named, left_out)
    return [(name, value) for name, value in headers.items() if name.lower() not in left]


async def _relay(
    request: web.Request, replica: Replica, answer: aiohttp.ClientResponse
) -> web.StreamResponse:
    response = web.StreamResponse(status=answer.status, reason=answer.reason)
    for name, value in _passed(answer.headers):
        response.headers.add(name, value)
    if answer.content_length is not None:
        response.content_length = answer.content_length
    with contextlib.suppress(ConnectionResetError):  # the client has gone
        await response.prepare(request)
        await _copy(request, response, replica, answer)
    return response


async def _copy(
    request: web.Request,
    response: web.StreamResponse,
    replica: Replica,
    answer: aiohttp.ClientResponse,
) -> None:
    while True:
        # Only reading tells of the replica; where writing fails, it is the client that is gone.
        try:
            chunk = await answer.content.readany()
        except aiohttp.ClientError as error:
            replica.doubt()
            await _break_off(request, response, error)
            return
        if not chunk:
            break
        await response.write(chunk)
    await response.write_eof()


async def _break_off(
    request: web.Request, response: web.StreamResponse, error: aiohttp.ClientError
) -> None:
    """Let a client see that what it got is not all: an error event, or a broken connection."""
    if response.content_type == "text/event-stream":
        body = error_body(502, f"the model server went away: {error}")
        await response.write(b"data: " + json.dumps(body).encode() + b"\n\n")
        await response.write_eof()
    elif request.transport is not None:
        request.transport.abort()
