"""The reverse proxy: requests forwarded to a replica unchanged, and its responses back."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import partial

import aiohttp
from aiohttp import web

from rhapsody.errors import ReplicaError
from rhapsody.inference.admission import Admission
from rhapsody.inference.clients import Client
from rhapsody.inference.http.bodies import BodyError
from rhapsody.inference.http.errors import error_body
from rhapsody.inference.http.media import remote_media
from rhapsody.inference.http.priority import HEADER, with_order
from rhapsody.inference.prefix_keys import LONGEST_PREFIX, Keys, prefix_keys
from rhapsody.inference.prompts import is_urgent
from rhapsody.inference.protocol.process import KEY_HEADER
from rhapsody.inference.replicas.pool import ReplicaPool
from rhapsody.inference.replicas.replica import Replica
from rhapsody.waiting import done_within

__all__ = ["FORWARDED", "Proxy", "is_forwarded"]

FORWARDED = ("/tokenize", "/detokenize", "/pooling", "/classify", "/score", "/rerank")
"""Routes outside /v1 that vLLM has for users, and not for administrators."""

VERSION_HEADER = "X-Rhapsody-Model-Version"
"""The version of the weights of the server that responds."""

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
"""Headers of a single connection (RFC 9110, section 7.6.1), and headers that are set anew."""

NOT_FORWARDED = frozenset(
    {
        "authorization",
        "content-encoding",
        "expect",
        "origin",
        "x-vllm-priority",  # it would win over the field that the gateway sets
        KEY_HEADER.lower(),
    }
)
"""Request headers that end here: keys, and headers that the gateway itself handles."""


STATEFUL = re.compile(
    r"/v1/(files|batches|conversations|assistants|threads|vector_stores|uploads|fine_tuning)(/|\Z)"
    r"|/v1/responses/."
)
"""Routes whose responses depend on earlier requests to the same replica."""
STATEFUL_FIELDS = ("previous_response_id", "background", "conversation")
"""Fields of a body of /v1/responses that depend on earlier requests as well."""

ADAPTER_ROUTES = ("/v1/load_lora_adapter", "/v1/unload_lora_adapter")
"""They take a path of the server's machine, and change the answers for all clients."""

MODELS = "/v1/models/"

END_BYTES = 1024
"""The usage of a response stands at its end."""
USAGE = re.compile(rb'"((?:prompt|completion)_tokens)"\s*:\s*(\d{1,15})')

PROMPT_FIELD = re.compile(rb'"(?:messages|prompt|input)"\s*:')

UNREAD_SECONDS = 300.0
"""How long a client may leave a response unread. The buffers between it and the model hold less
than a megabyte; when they are full, the model's own server has to keep the rest."""


class Proxy:
    """Forwards requests to the replicas of a pool, streams included.

    Args:
        pool: The replicas.
        admission: The bound on pending prompts; each request counts as one.
        attempts: How many replicas a request is tried on while their connections fail.
        fetches_media: Whether servers would fetch images from any URL, so that requests with such
            URLs are refused.
        has_priorities: Whether servers handle requests by their priority.
        start_seconds: Longest time that a request waits for a replica that it has started.
    """

    def __init__(
        self,
        pool: ReplicaPool,
        admission: Admission,
        attempts: int,
        *,
        fetches_media: bool = False,
        has_priorities: bool = False,
        start_seconds: float = 600.0,
    ) -> None:
        self._pool = pool
        self._admission = admission
        self._attempts = attempts
        self._fetches_media = fetches_media
        self._has_priorities = has_priorities
        self._start_seconds = start_seconds

    async def handle(self, request: web.Request, client: Client, data: bytes) -> web.StreamResponse:
        """Forward a request to the least loaded replica, and return its response.

        Args:
            request: The request.
            client: Who has sent it.
            data: Its body.

        Raises:
            BodyError: The server would fetch media from a URL, and cannot be told not to; or the
                priority is invalid.
            HTTPForbidden: The route loads an adapter.
            HTTPNotFound: The path contains `.` or `..`.
            HTTPNotImplemented: The request needs state of one replica, and there are several.
            OverloadedError: `max_pending` prompts are pending.
            ReplicaError: No replica is ready.
        """
        # A replica has private routes outside /v1, which `..` could reach.
        if any(part in (".", "..") for part in request.path.split("/")):
            raise web.HTTPNotFound
        if request.path in ADAPTER_ROUTES:
            raise web.HTTPForbidden(
                text="adapters are loaded by the program that serves the model, with "
                "backend.load_adapter(name, path)"
            )
        self._check_stateless(request, data)
        if self._fetches_media and (url := remote_media(data)) is not None:
            raise BodyError(
                f"media from the URL {url!r:.80} are refused: this version of vLLM cannot limit "
                "the domains that it fetches from; send a data: URL instead",
                "messages",
            )
        if self._has_priorities:
            place = partial(self._place, client)
            data = with_order(request.path, data, request.headers.get(HEADER), place)
        headers = dict(_forwarded(request.headers, NOT_FORWARDED))
        self._admission.try_enter()
        try:
            return await self._forward(request, headers, data, client)
        finally:
            self._admission.leave()

    async def _forward(
        self, request: web.Request, headers: Mapping[str, str], data: bytes, client: Client
    ) -> web.StreamResponse:
        reason = ""
        for _ in range(self._attempts):
            replica = await self._choose_replica(data)
            forwarded = replica.request(request.method, request.rel_url.raw_path_qs, headers, data)
            try:
                response = await forwarded.__aenter__()
            except aiohttp.ClientError as error:
                replica.suspect()
                reason = str(error)
                continue
            try:
                if response.status == 404 and request.path.startswith(MODELS):
                    return await _one_model(request, replica)
                if response.status >= 400 and response.content_type == "application/json":
                    return await _uniform_error(response)
                return await _relay(request, replica, response, client)
            finally:
                await forwarded.__aexit__(None, None, None)
        raise ReplicaError(f"the model server went away: {reason}")

    def _place(self, client: Client, priority: int) -> int:
        if is_urgent(client.allowed(priority)):
            self._pool.room.note_urgent()
        return client.order(priority)

    def _check_stateless(self, request: web.Request, data: bytes) -> None:
        """Refuse requests that depend on the state of a single replica."""
        replicas = self._pool.most_replicas
        if replicas == 1:
            return
        stateful = bool(STATEFUL.match(request.path))
        if request.path == "/v1/responses":
            with contextlib.suppress(ValueError, AttributeError):
                body = json.loads(data)
                stateful = any(body.get(field) for field in STATEFUL_FIELDS)
        if stateful:
            raise web.HTTPNotImplemented(
                text=f"{request.path} depends on state in one model server, and there are "
                f"{replicas}; use a single replica, or send the state with the request"
            )

    async def _choose_replica(self, data: bytes) -> Replica:
        replica = self._pool.choose(lambda: _prefix_keys(data))
        if replica is None and (self._pool.starts_on_demand or self._pool.is_paused):
            await done_within(self._pool.wait_ready(), self._start_seconds)
            replica = self._pool.choose(lambda: _prefix_keys(data))
        if replica is None:
            raise self._pool.failure or ReplicaError("no model server is ready; try again soon")
        return replica


def is_forwarded(path: str) -> bool:
    """Return whether the gateway forwards requests to a path of the model server."""
    return path.startswith("/v1/") or path in FORWARDED


def _prefix_keys(data: bytes) -> Keys:
    """Return the hashes of the beginnings of a request's prompt, as it stands in the JSON body."""
    found = PROMPT_FIELD.search(data)
    return prefix_keys(data[found.end() : found.end() + LONGEST_PREFIX]) if found else ()


async def _one_model(request: web.Request, replica: Replica) -> web.Response:
    """Return one model from the list of models, for servers without a route for it."""
    name = request.path.removeprefix(MODELS)
    for model in await replica.connection.models() or ():
        if model["id"] == name:
            return web.json_response(model)
    body = error_body(404, f"The model `{name}` does not exist.", param="model")
    return web.json_response(body, status=404)


async def _uniform_error(upstream: aiohttp.ClientResponse) -> web.Response:
    """Return an error in OpenAI's format; a server's router (404, 405) has its own format."""
    data = await upstream.read()
    with contextlib.suppress(ValueError, AttributeError):
        body = json.loads(data)
        if "error" not in body:
            data = json.dumps(error_body(upstream.status, str(body.get("detail", body)))).encode()
    response = web.Response(body=data, status=upstream.status, content_type="application/json")
    response.headers.extend(_forwarded(upstream.headers, ("content-type",)))
    return response


def _forwarded(headers: Mapping[str, str], dropped: Iterable[str] = ()) -> list[tuple[str, str]]:
    """Return the headers that are sent on to the other side."""
    named = {name.strip().lower() for name in headers.get("Connection", "").split(",")}
    left = HOP_BY_HOP.union(named, dropped)
    return [(name, value) for name, value in headers.items() if name.lower() not in left]


async def _relay(
    request: web.Request, replica: Replica, upstream: aiohttp.ClientResponse, client: Client
) -> web.StreamResponse:
    response = web.StreamResponse(status=upstream.status, reason=upstream.reason)
    for name, value in _forwarded(upstream.headers):
        response.headers.add(name, value)
    response.headers[VERSION_HEADER] = replica.version
    if upstream.content_length is not None:
        response.content_length = upstream.content_length
    with contextlib.suppress(ConnectionResetError):  # the client has disconnected
        await response.prepare(request)
        end = await _copy(request, response, replica, upstream)
        client.add_usage({m[1].decode(): int(m[2]) for m in USAGE.finditer(end)})
    return response


async def _copy(
    request: web.Request,
    response: web.StreamResponse,
    replica: Replica,
    upstream: aiohttp.ClientResponse,
) -> bytes:
    """Copy the body, and return its end."""
    end = b""
    while True:
        # A read error means that the replica is gone; a write error, that the client is.
        try:
            chunk = await upstream.content.readany()
        except aiohttp.ClientError as error:
            replica.suspect()
            await _end_incomplete(request, response, f"the model server went away: {error}")
            return end
        except asyncio.CancelledError:  # the gateway stops, or the client has disconnected
            if request.transport is not None and not request.transport.is_closing():
                await _end_incomplete(request, response, "the server was shut down")
            raise
        if not chunk:
            break
        end = chunk[-END_BYTES:] if len(chunk) >= END_BYTES else (end + chunk)[-END_BYTES:]
        with _closing_unread(request):
            await response.write(chunk)
    with _closing_unread(request):
        await response.write_eof()
    return end


@contextlib.contextmanager
def _closing_unread(request: web.Request) -> Iterator[None]:
    """Close the connection if its client does not read what is written, and so free the engine."""
    transport = request.transport
    if transport is None:
        yield
        return
    closing = asyncio.get_running_loop().call_later(UNREAD_SECONDS, transport.abort)
    try:
        yield
    finally:
        closing.cancel()


async def _end_incomplete(request: web.Request, response: web.StreamResponse, reason: str) -> None:
    """Mark a response as incomplete, by an error event or by closing the connection."""
    if response.content_type == "text/event-stream":
        body = error_body(502, reason)
        await response.write(b"data: " + json.dumps(body).encode() + b"\n\n")
        await response.write_eof()
    elif request.transport is not None:
        request.transport.abort()
