"""The gateway: the HTTP server of one or several models, OpenAI-compatible under `/v1`.

`/generate` goes through the batcher. Every request under `/v1`, and to some other routes of vLLM,
is forwarded to a replica of its model unchanged, so that clients can use all that the server has.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import math
import socket
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any

from aiohttp import web

from rhapsody.errors import OverloadedError, PromptError, ReplicaError
from rhapsody.inference.clients import ApiKey, Client, Clients
from rhapsody.inference.configuration.listening import ListenConfig
from rhapsody.inference.http.batches.routes import BatchRoutes
from rhapsody.inference.http.bodies import BodyError, GenerateBody
from rhapsody.inference.http.cors import CrossOrigin
from rhapsody.inference.http.errors import error_response
from rhapsody.inference.http.listener import ConnectionLimits, Listener
from rhapsody.inference.http.models import Models, requested_model
from rhapsody.inference.http.openapi import openapi_document, routes_page
from rhapsody.inference.http.priority import HEADER, header_priority
from rhapsody.inference.http.proxy import FORWARDED, is_forwarded
from rhapsody.inference.http.request_body import read_body
from rhapsody.inference.http.served_model import ServedModel
from rhapsody.inference.metrics import ClientMetrics
from rhapsody.inference.ports import bind_sockets, port_error
from rhapsody.inference.protocol.process import MAX_BODY_BYTES

__all__ = ["Gateway", "is_public_without_key"]

logger = logging.getLogger(__name__)

MODELS = "/v1/models"
ALL_ADDRESSES = ("0.0.0.0", "::")
STOP_SECONDS = 2.0
"""How long requests may still run when the server stops; then they get an error."""
KEEPALIVE_SECONDS = 75.0
"""How long an idle connection stays open for the next request."""

EXPECTED = (web.HTTPException, BodyError, OverloadedError, ReplicaError, PromptError)
"""Errors that are the client's or a replica's; any other one is a bug and is logged."""

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Gateway:
    """Serves one or several models over HTTP.

    Args:
        config: Where to listen, and who may connect.
        models: The models; at least one.
        limits: How many connections there may be; None: as many as this process can open.
    """

    def __init__(
        self,
        config: ListenConfig,
        models: Sequence[ServedModel],
        limits: ConnectionLimits | None = None,
    ) -> None:
        self._config = config
        self._models = Models(models)
        self._client_metrics = ClientMetrics()
        self.clients = Clients(config.keys())
        self._cross_origin = CrossOrigin(config.cors_origins)
        self._batch_routes = BatchRoutes(
            config.batch_dir, self._models, self.clients, self._client_of
        )
        self._listener = Listener(limits or ConnectionLimits.of_this_process())
        self._runner: web.AppRunner | None = None
        self._port = 0
        self._stopping = False
        self._requests: dict[asyncio.Task[Any], bool] = {}
        """The tasks of requests, and whether the response of each has begun."""

    def usage(self) -> list[dict[str, Any]]:
        """Return the name and the usage of each client."""
        return [client.as_dict() for client in self.clients]

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
            ConfigurationError: `batch_dir` cannot be used.
            ResourceError: The port is in use, or the address is not this machine's.
        """
        self._stopping = False
        app = web.Application(middlewares=[self._handle_errors], client_max_size=MAX_BODY_BYTES)
        app.router.add_get("/health", self._health)
        app.router.add_post("/generate", self._generate)
        app.router.add_get("/metrics", self._metrics)
        self._batch_routes.add_to(app.router)
        app.router.add_route("*", "/v1/{path:.*}", self._forward)
        app.router.add_get("/openapi.json", self._openapi)
        app.router.add_get("/docs", self._docs)
        for path in FORWARDED:
            app.router.add_route("*", path, self._forward)
        app.on_response_prepare.extend([self._cross_origin.mark, self._note_begin])
        # A client that disconnects cancels its handler, and so the work on the replica.
        self._runner = web.AppRunner(
            app,
            handler_cancellation=True,
            access_log=None,
            shutdown_timeout=STOP_SECONDS,
            auto_decompress=False,  # see `read_body`
            keepalive_timeout=KEEPALIVE_SECONDS,
        )
        await self._runner.setup()
        assert self._runner.server is not None
        try:
            await self._batch_routes.start()
            await self._listen(self._runner.server)
        except BaseException:
            await self._batch_routes.stop()
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
        """Stop listening. Requests that do not finish in `STOP_SECONDS` get an error."""
        await self._listener.stop()
        if self._requests:
            await asyncio.wait(list(self._requests), timeout=STOP_SECONDS)
        self._stopping = True
        for task in self._requests:
            task.cancel()
        if self._runner is not None:
            await self._runner.cleanup()
        await self._batch_routes.stop()
        self._port = 0

    async def _note_begin(self, request: web.Request, response: web.StreamResponse) -> None:
        if (task := asyncio.current_task()) in self._requests:
            self._requests[task] = True

    @web.middleware
    async def _handle_errors(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Check the key, and turn every error into a response of one format."""
        self._listener.began(request.protocol)
        task = asyncio.current_task()
        assert task is not None
        self._requests[task] = False
        try:
            if (preflight := self._cross_origin.preflight(request)) is not None:
                return preflight
            if request.path != "/health":
                self._client_of(request)
            if request.path != "/health" or not self.clients.required:
                self._listener.trust(request.protocol)
            if request.path not in ("/health", "/metrics"):
                self._models.check_open()
            return await handler(request)
        except asyncio.CancelledError:
            if not self._stopping or self._requests[task]:
                raise
            return error_response(request, ReplicaError("the server was shut down"))
        except ConnectionResetError as error:
            if not _has_disconnected(request):
                raise
            logger.debug("%s %s: the client disconnected: %s", request.method, request.path, error)
            return web.Response()  # nobody receives it; aiohttp logs an exception as an error
        except Exception as error:
            if isinstance(error, web.HTTPException) and error.status < 400:
                raise
            if not isinstance(error, EXPECTED):
                logger.exception("%s %s failed", request.method, request.path)
            return error_response(request, error)
        finally:
            del self._requests[task]

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
        if request.method == "GET":
            return await self._forward_from(self._client_of(request), request)
        client = self._enter(request)
        try:
            return await self._forward_from(client, request)
        except EXPECTED:
            client.take_back()  # no model has responded
            raise

    async def _forward_from(self, client: Client, request: web.Request) -> web.StreamResponse:
        data = await read_body(request)
        free = request.method == "GET"
        if self._models.one is not None:
            return await self._models.one.forward(request, client, data)
        if free and request.path == MODELS:
            return web.json_response({"object": "list", "data": await self._models.describe()})
        if free and request.path.startswith(f"{MODELS}/"):
            name = request.path.removeprefix(f"{MODELS}/")
            found = {entry["id"]: entry for entry in await self._models.describe()}
            return web.json_response(found.get(name) or self._models.choose(name).stand_in())
        model = self._models.choose(await requested_model(request, data))
        return await model.forward(request, client, data)

    async def _health(self, request: web.Request) -> web.Response:
        body = self._models.health(self.endpoint)
        return web.json_response(body, status=503 if body["status"] == "unavailable" else 200)

    async def _generate(self, request: web.Request) -> web.Response:
        body = await GenerateBody.parse(await read_body(request))
        if body.priority is None:
            body.priority = header_priority(request.headers.get(HEADER)) or 0
        model = self._models.choose(body.model)
        data = await model.generate(body, lambda prompts: self._enter(request, prompts))
        return web.Response(body=data, content_type="application/json")

    async def _metrics(self, request: web.Request) -> web.Response:
        exposed = await self._models.metrics() + self._client_metrics.expose(self.clients)
        return web.Response(body=exposed, headers={"Content-Type": "text/plain; version=0.0.4"})

    async def _openapi(self, request: web.Request) -> web.Response:
        return web.json_response(await self._document())

    async def _docs(self, request: web.Request) -> web.Response:
        return web.Response(text=routes_page(await self._document()), content_type="text/html")

    async def _document(self) -> dict[str, Any]:
        server = await self._models.openapi()
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


def _has_disconnected(request: web.Request) -> bool:
    return request.transport is None or request.transport.is_closing()
