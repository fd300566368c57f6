"""The gateway: the HTTP server of an inference service, OpenAI-compatible under `/v1`.

`/generate` goes through the batcher. Every request under `/v1`, and to some other routes of vLLM,
is forwarded to a replica unchanged, so that clients can use all that the model server supports.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import math
import socket
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from itertools import starmap
from typing import Any, Protocol

from aiohttp import web

from rhapsody.errors import OverloadedError, PromptError, ReplicaError
from rhapsody.inference.admission import Admission
from rhapsody.inference.clients import ApiKey, Client, Clients
from rhapsody.inference.config import InferenceConfig
from rhapsody.inference.gather import gather_outcomes
from rhapsody.inference.http.bodies import BodyError, GenerateBody
from rhapsody.inference.http.cors import CrossOrigin
from rhapsody.inference.http.errors import error_response
from rhapsody.inference.http.generate_response import GenerateResponse
from rhapsody.inference.http.listener import ConnectionLimits, Listener
from rhapsody.inference.http.openapi import openapi_document, routes_page
from rhapsody.inference.http.priority import HEADER, header_priority
from rhapsody.inference.http.proxy import FORWARDED, Proxy, is_forwarded
from rhapsody.inference.http.request_body import read_body
from rhapsody.inference.metrics import Metrics
from rhapsody.inference.ports import bind_sockets, port_error
from rhapsody.inference.prompts import Completion
from rhapsody.inference.protocol.process import MAX_BODY_BYTES
from rhapsody.inference.replicas.pool import ReplicaPool

__all__ = ["Gateway", "PromptService", "is_public_without_key"]

logger = logging.getLogger(__name__)

ALL_ADDRESSES = ("0.0.0.0", "::")
KEEPALIVE_SECONDS = 75.0
"""How long an idle connection stays open for the next request."""

EXPECTED = (web.HTTPException, BodyError, OverloadedError, ReplicaError, PromptError)
"""Errors that are the client's or a replica's; any other one is a bug and is logged."""

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class PromptService(Protocol):
    """The interface of an inference service that the gateway uses."""

    pool: ReplicaPool
    admission: Admission
    metrics: Metrics
    fetches_media: bool
    """Whether the servers fetch images from any URL, and cannot be told not to."""
    has_priorities: bool
    """Whether the servers handle requests by their priority."""

    @property
    def healthy(self) -> bool:
        """Whether at least one server takes prompts."""

    def check_open(self) -> None:
        """Raise ReplicaError unless the service accepts prompts."""

    async def complete_admitted(
        self,
        prompt: str | Sequence[Mapping[str, Any]],
        system_prompt: str | None = None,
        sampling: Mapping[str, Any] | None = None,
        *,
        priority: int = 0,
        order: int | None = None,
    ) -> Completion:
        """Complete one prompt that `admission` has let in."""


class Gateway:
    """Serves one inference service over HTTP.

    Args:
        config: The service's configuration.
        service: The service.
        limits: How many connections there may be; None: as many as this process can open.
    """

    def __init__(
        self,
        config: InferenceConfig,
        service: PromptService,
        limits: ConnectionLimits | None = None,
    ) -> None:
        self._config = config
        self._service = service
        self._proxy = Proxy(
            service.pool,
            service.admission,
            config.max_retries + 1,
            fetches_media=service.fetches_media,
            has_priorities=service.has_priorities,
        )
        self.clients = Clients(config.keys())
        self._cross_origin = CrossOrigin(config.cors_origins)
        self._listener = Listener(limits or ConnectionLimits.of_this_process())
        self._runner: web.AppRunner | None = None
        self._port = 0

    @property
    def endpoint(self) -> str | None:
        """The URL of the server; None unless it listens."""
        if not self._port:
            return None
        host = self._config.host
        if not host or host in ALL_ADDRESSES:
            host = socket.gethostname()
        return f"http://{f'[{host}]' if ':' in host else host}:{self._port}"

    async def start(self) -> None:
        """Listen for requests.

        Raises:
            ResourceError: The port is in use, or the address is not this machine's.
        """
        app = web.Application(middlewares=[self._handle_errors], client_max_size=MAX_BODY_BYTES)
        app.router.add_get("/health", self._health)
        app.router.add_post("/generate", self._generate)
        app.router.add_get("/metrics", self._metrics)
        app.router.add_route("*", "/v1/{path:.*}", self._forward)
        app.router.add_get("/openapi.json", self._openapi)
        app.router.add_get("/docs", self._docs)
        for path in FORWARDED:
            app.router.add_route("*", path, self._forward)
        app.on_response_prepare.append(self._cross_origin.mark)
        # A client that disconnects cancels its handler, and so the work on the replica.
        self._runner = web.AppRunner(
            app,
            handler_cancellation=True,
            access_log=None,
            shutdown_timeout=2.0,
            auto_decompress=False,  # see `read_body`
            keepalive_timeout=KEEPALIVE_SECONDS,
        )
        await self._runner.setup()
        assert self._runner.server is not None
        try:
            await self._listen(self._runner.server)
        except BaseException:
            await self._runner.cleanup()
            raise
        addresses = self._listener.addresses
        self._port = addresses[0][1]
        has_key = self.clients.required
        if not has_key and is_public_without_key(None, [address for address, _ in addresses]):
            logger.warning(
                "%s can be reached from other machines and requires no key; set api_key= or "
                "RHAPSODY_API_KEY, or use host='127.0.0.1'",
                self.endpoint,
            )

    async def _listen(self, server: web.Server) -> None:
        address = await asyncio.to_thread(self._config.bind_address)
        sockets = await asyncio.to_thread(bind_sockets, address, self._config.port)
        try:
            self._listener.start(server, sockets)
        except OSError as error:
            raise port_error(address, self._config.port, error) from error

    async def replace_keys(self, keys: Mapping[str, ApiKey]) -> None:
        """Use other keys from now on."""
        self.clients.replace(keys)

    async def stop(self) -> None:
        """Stop listening, and cancel requests that do not finish in 2 seconds."""
        await self._listener.stop()
        if self._runner is not None:
            await self._runner.cleanup()
        self._port = 0

    @web.middleware
    async def _handle_errors(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Check the key, and turn every error into a response of one format."""
        self._listener.began(request.protocol)
        try:
            if (preflight := self._cross_origin.preflight(request)) is not None:
                return preflight
            if request.path != "/health":
                self._client_of(request)
            if request.path != "/health" or not self.clients.required:
                self._listener.trust(request.protocol)
            if request.path not in ("/health", "/metrics"):
                self._service.check_open()
            return await handler(request)
        except ConnectionResetError:  # the client has disconnected
            raise
        except Exception as error:
            if isinstance(error, web.HTTPException) and error.status < 400:
                raise
            if not isinstance(error, EXPECTED):
                logger.exception("%s %s failed", request.method, request.path)
            return error_response(request, error)

    def _client_of(self, request: web.Request) -> Client:
        """Return who has sent a request. Raises HTTPUnauthorized if the key is wrong."""
        scheme, _, given = request.headers.get("Authorization", "").partition(" ")
        client = self.clients.find(given.strip() if scheme.lower() == "bearer" else "")
        if client is None:
            raise web.HTTPUnauthorized(headers={"WWW-Authenticate": "Bearer"})
        return client

    def _enter(self, request: web.Request, prompts: int = 1) -> Client:
        """Count prompts against the rate of a request's client."""
        client = self._client_of(request)
        if seconds := client.try_enter(prompts):
            raise web.HTTPTooManyRequests(
                text=f"the key '{client.name}' has used up its rate; try again in {seconds:.1f} s",
                headers={"Retry-After": str(math.ceil(seconds))},
            )
        return client

    async def _forward(self, request: web.Request) -> web.StreamResponse:
        free = request.method == "GET"
        client = self._client_of(request) if free else self._enter(request)
        return await self._proxy.handle(request, client)

    async def _health(self, request: web.Request) -> web.Response:
        service, config = self._service, self._config
        healthy = service.healthy
        body = {
            "status": "healthy" if healthy else "unavailable",
            "model": config.model_name,
            "engine": config.engine,
            "mode": "service",
            "endpoint": self.endpoint,
            "replicas": [
                {
                    "index": replica.index,
                    "state": replica.state,
                    "in_flight": replica.in_flight,
                    "restarts": replica.restarts,
                }
                for replica in service.pool.replicas
            ],
            "batch_config": {
                "max_batch_size": config.max_batch_size,
                "max_batch_wait_ms": config.max_batch_wait_ms,
                "max_pending": config.max_pending,
                "pending_prompts": service.admission.pending,
            },
        }
        return web.json_response(body, status=200 if healthy else 503)

    async def _generate(self, request: web.Request) -> web.Response:
        body = await GenerateBody.parse(await read_body(request))
        priority = body.priority
        if priority is None:
            priority = header_priority(request.headers.get(HEADER)) or 0
        since = time.monotonic()
        admission, pool = self._service.admission, self._service.pool
        if pool.failure is not None:
            raise pool.failure
        if len(body.prompts) > admission.limit:
            raise BodyError(
                f"a request may have at most max_pending={admission.limit} prompts, got "
                f"{len(body.prompts)}; send them in several requests",
                "prompts",
            )
        admission.try_enter(len(body.prompts))
        try:
            client = self._enter(request, len(body.prompts))
        except web.HTTPException:
            admission.leave(len(body.prompts))
            raise
        admitted = len(body.prompts)
        response = GenerateResponse(len(body.prompts), body.timeout)

        async def complete(position: int, prompt: Any) -> None:
            nonlocal admitted
            try:
                completion = await self._service.complete_admitted(
                    prompt,
                    body.system_prompt,
                    body.sampling(),
                    priority=priority,
                    order=client.order(priority),
                )
                client.add_usage(completion.usage)
                response.set_completion(position, completion)
            except Exception as error:
                response.set_error(position, error)
            finally:
                admitted -= 1
                admission.leave()

        completing = starmap(complete, enumerate(body.prompts))
        try:
            await gather_outcomes(completing, body.timeout, pool.window)
        finally:
            admission.leave(admitted)  # prompts that did not start
        data = response.encode(time.monotonic() - since)
        return web.Response(body=data, content_type="application/json")

    async def _metrics(self, request: web.Request) -> web.Response:
        pool = self._service.pool
        ready = pool.ready
        if pool.router is not None:
            self._service.metrics.set_routed(pool.router.hits, pool.router.misses)
        texts = await asyncio.gather(*(replica.metrics() for replica in ready))
        self._service.metrics.set_clients(self.clients)
        # A model server's metrics are long, and parsing them in Python would block the loop.
        exposed = await asyncio.to_thread(
            self._service.metrics.expose,
            self._service.admission.pending,
            [replica.state for replica in pool.replicas],
            {r.index: text for r, text in zip(ready, texts, strict=True) if text is not None},
        )
        return web.Response(body=exposed, headers={"Content-Type": "text/plain; version=0.0.4"})

    async def _openapi(self, request: web.Request) -> web.Response:
        return web.json_response(await self._document())

    async def _docs(self, request: web.Request) -> web.Response:
        return web.Response(text=routes_page(await self._document()), content_type="text/html")

    async def _document(self) -> dict[str, Any]:
        replica = self._service.pool.least_loaded()
        server = await replica.openapi() if replica is not None else None
        return openapi_document(server, is_forwarded, has_key=self.clients.required)


def is_public_without_key(api_key: str | None, addresses: Iterable[str]) -> bool:
    """Return whether other machines can use the server without a key.

    Args:
        api_key: The key that clients must send, if any.
        addresses: The addresses that the gateway listens on.
    """
    return api_key is None and not all(
        ipaddress.ip_address(address).is_loopback for address in addresses
    )
