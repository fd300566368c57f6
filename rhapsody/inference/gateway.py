"""The gateway: the HTTP front of a service, OpenAI-compatible under `/v1`.

`/generate` goes through the batcher. Everything under `/v1` is passed to a replica unchanged, so
that what a model server can do is not limited to what is known here.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import logging
import socket
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import TYPE_CHECKING, Any

from aiohttp import web

from rhapsody.api.errors import OverloadedError, PromptError, ReplicaError
from rhapsody.inference.config import port_error
from rhapsody.inference.generate_body import BadBody, GenerateBody
from rhapsody.inference.http_errors import MAX_BODY_BYTES, error_body, error_response
from rhapsody.inference.passage import Passage
from rhapsody.inference.prompts import Completion
from rhapsody.inference.turns import outcomes_of

if TYPE_CHECKING:
    from rhapsody.inference.service import InferenceService

__all__ = ["Gateway", "is_open_to_others"]

logger = logging.getLogger(__name__)

EVERYWHERE = ("0.0.0.0", "::")

EXPECTED = (web.HTTPException, BadBody, OverloadedError, ReplicaError, PromptError)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Gateway:
    """Serves one inference service over HTTP.

    Args:
        service: The service.
    """

    def __init__(self, service: InferenceService) -> None:
        self._service = service
        self._config = service.config
        self._runner: web.AppRunner | None = None
        self._port = 0

    @property
    def endpoint(self) -> str:
        """The URL it is reached at."""
        host = self._config.host
        if not host or host in EVERYWHERE:
            host = socket.gethostname()
        return f"http://{f'[{host}]' if ':' in host else host}:{self._port}"

    async def start(self) -> None:
        """Listen.

        Raises:
            ResourceError: The port is taken, or the address is not this machine's.
        """
        app = web.Application(middlewares=[self._shape_errors], client_max_size=MAX_BODY_BYTES)
        app.router.add_get("/health", self._health)
        app.router.add_post("/generate", self._generate)
        app.router.add_get("/metrics", self._metrics)
        passage = Passage(self._service, self._config.max_retries + 1)
        app.router.add_route("*", "/v1/{path:.*}", passage.handle)
        # A client that goes away cancels its handler, and with it the work on the replica.
        self._runner = web.AppRunner(
            app, handler_cancellation=True, access_log=None, shutdown_timeout=2.0
        )
        await self._runner.setup()
        address = await asyncio.to_thread(self._config.bind_address)
        site = web.TCPSite(self._runner, address, self._config.port)
        try:
            await site.start()
        except OSError as error:
            await self._runner.cleanup()
            raise port_error(address, self._config.port, error) from error
        self._port = self._runner.addresses[0][1]
        if is_open_to_others(self._config.api_key, [a[0] for a in self._runner.addresses]):
            logger.warning(
                "%s can be reached by others and asks for no key; set api_key= or "
                "RHAPSODY_API_KEY, or host='127.0.0.1'",
                self.endpoint,
            )

    async def stop(self) -> None:
        """Stop listening and end what is being answered."""
        if self._runner is not None:
            await self._runner.cleanup()

    @web.middleware
    async def _shape_errors(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Check the key, and give every error the same shape."""
        try:
            if request.path != "/health":
                self._check_key(request)
            if request.path not in ("/health", "/metrics"):
                self._service.check_open()
            return await handler(request)
        except ConnectionResetError:  # the client has gone
            raise
        except Exception as error:
            if isinstance(error, web.HTTPException) and error.status < 400:
                raise
            if not isinstance(error, EXPECTED):
                logger.exception("%s %s failed", request.method, request.path)
            return error_response(request, error)

    def _check_key(self, request: web.Request) -> None:
        key = self._config.api_key
        if key is None:
            return
        scheme, _, given = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not hmac.compare_digest(
            given.strip().encode("utf-8", "surrogateescape"), key.encode()
        ):
            raise web.HTTPUnauthorized(headers={"WWW-Authenticate": "Bearer"})

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
                {key: replica[key] for key in ("index", "state", "in_flight", "restarts")}
                for replica in service.get_statistics()["replicas"]
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
        body = GenerateBody.parse(await request.read())
        since = time.monotonic()
        admission, pool = self._service.admission, self._service.pool
        if pool is not None and pool.failure is not None:
            raise pool.failure
        if len(body.prompts) > admission.limit:
            raise BadBody(
                f"{len(body.prompts)} prompts are more than the {admission.limit} that "
                "max_pending allows at all; send them in parts",
                "prompts",
            )
        admission.try_enter(len(body.prompts))
        inside = len(body.prompts)

        async def answer(prompt: Any) -> Completion:
            nonlocal inside
            try:
                return await self._service.complete_admitted(
                    prompt, body.system_prompt, body.sampling()
                )
            finally:
                inside -= 1
                admission.leave()

        try:
            outcomes = await outcomes_of(map(answer, body.prompts), body.timeout)
        finally:
            admission.leave(inside)  # a client that went away before all had begun
        return _generated(outcomes, body.timeout, time.monotonic() - since)

    async def _metrics(self, request: web.Request) -> web.Response:
        pool = self._service.pool
        assert pool is not None
        ready = pool.ready
        texts = await asyncio.gather(*(replica.metrics() for replica in ready))
        # A real server's metrics are long, and read in Python: not on this loop.
        exposed = await asyncio.to_thread(
            self._service.metrics.expose,
            self._service.admission.pending,
            [replica.state for replica in pool.replicas],
            {r.index: text for r, text in zip(ready, texts, strict=True) if text is not None},
        )
        return web.Response(body=exposed, headers={"Content-Type": "text/plain; version=0.0.4"})


def is_open_to_others(api_key: str | None, addresses: Iterable[str]) -> bool:
    """Say whether other machines may ask for answers without a key.

    Args:
        api_key: The key that is asked for.
        addresses: Where the gateway listens.
    """
    return api_key is None and not all(
        ipaddress.ip_address(address).is_loopback for address in addresses
    )


def _generated(outcomes: list[Any], timeout: float, elapsed: float) -> web.Response:
    results, reasons, errors = [], [], []
    usage = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
    for outcome in outcomes:
        failed = isinstance(outcome, BaseException)
        results.append(None if failed else outcome.response)
        reasons.append(None if failed else outcome.finish_reason)
        errors.append(_prompt_error(outcome, timeout) if failed else None)
        for kind in usage if not failed else ():
            usage[kind] += outcome.usage.get(kind, 0)
    failures = sum(error is not None for error in errors)
    status = "success" if not failures else "error" if failures == len(errors) else "partial"
    return web.json_response(
        {
            "status": status,
            "results": results,
            "finish_reasons": reasons,
            "errors": errors,
            "usage": usage,
            "num_prompts": len(results),
            "total_time": elapsed,
            "avg_time_per_prompt": elapsed / len(results),
        }
    )


def _prompt_error(error: BaseException, timeout: float) -> dict[str, Any]:
    if isinstance(error, PromptError):
        body = error_body(error.code, str(error), error.kind, error.param)
    elif isinstance(error, asyncio.CancelledError):
        body = error_body(504, f"no response within the timeout of {timeout:g} s")
    elif isinstance(error, ReplicaError):
        body = error_body(503, error.reason)
    else:
        logger.error("a prompt failed", exc_info=error)
        body = error_body(500, "internal error; the log says more")
    detail: dict[str, Any] = body["error"]
    return detail
