"""The gateway: the HTTP front of a service, OpenAI-compatible under `/v1`.

`/generate` goes through the batcher. Everything under `/v1` is passed to a replica unchanged,
streams included, so that what a model server can do is not limited to what is known here.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import json
import logging
import socket
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import aiohttp
from aiohttp import web

from rhapsody.api.errors import OverloadedError, PromptError, ReplicaError
from rhapsody.inference.config import port_error
from rhapsody.inference.generate_body import BadBody, GenerateBody

if TYPE_CHECKING:
    from rhapsody.inference.replica import Replica
    from rhapsody.inference.service import InferenceService

__all__ = ["Gateway"]

logger = logging.getLogger(__name__)

MAX_BODY_BYTES = 64 * 1024 * 1024
RETRY_AFTER_SECONDS = 1
HOP_BY_HOP = frozenset(
    {
        "connection",
        "content-length",
        "host",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
"""Headers that speak of one connection only (RFC 9110, section 7.6.1), and those set anew."""

KINDS = {
    400: "BadRequestError",
    401: "AuthenticationError",
    404: "NotFoundError",
    405: "MethodNotAllowed",
    413: "RequestTooLarge",
    503: "ServiceUnavailable",
    504: "Timeout",
}

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
        host = self._config.host or socket.gethostname()
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
        app.router.add_route("*", "/v1/{path:.*}", self._pass_on)
        # A client that goes away cancels its handler, and with it the work on the replica.
        self._runner = web.AppRunner(
            app, handler_cancellation=True, access_log=None, shutdown_timeout=2.0
        )
        await self._runner.setup()
        address = self._config.bind_address
        site = web.TCPSite(self._runner, address, self._config.port)
        try:
            await site.start()
        except OSError as error:
            await self._runner.cleanup()
            raise port_error(address, self._config.port, error) from error
        self._port = self._runner.addresses[0][1]
        if self._config.api_key is None and not self._on_loopback():
            logger.warning(
                "%s can be reached by others and asks for no key; set api_key= or "
                "RHAPSODY_API_KEY, or host='127.0.0.1'",
                self.endpoint,
            )

    def _on_loopback(self) -> bool:
        assert self._runner is not None
        return all(ipaddress.ip_address(a[0]).is_loopback for a in self._runner.addresses)

    async def stop(self) -> None:
        """Stop listening and end what is being answered."""
        if self._runner is not None:
            await self._runner.cleanup()

    # -- around every request ---------------------------------------------------------------------

    @web.middleware
    async def _shape_errors(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Check the key, and give every error the same shape."""
        try:
            if request.path != "/health":
                self._check_key(request)
            return await handler(request)
        except web.HTTPException as error:
            if error.status < 400:
                raise
            allowed = error.headers.get("Allow")
            headers = {"Allow": allowed} if allowed else {}
            return _error(error.status, _http_message(request, error), headers=headers)
        except BadBody as error:
            return _error(400, str(error), param=error.param)
        except OverloadedError as error:
            return _unavailable(str(error))
        except ReplicaError as error:
            return _unavailable(error.reason)
        except PromptError as error:
            return _error(error.code, str(error), error.kind, error.param)
        except Exception:
            logger.exception("%s %s failed", request.method, request.path)
            return _error(500, "internal error; the log says more", "InternalServerError")

    def _check_key(self, request: web.Request) -> None:
        key = self._config.api_key
        if key is None:
            return
        scheme, _, given = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not hmac.compare_digest(
            given.strip().encode("utf-8", "surrogateescape"), key.encode()
        ):
            raise web.HTTPUnauthorized

    # -- routes -----------------------------------------------------------------------------------

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
        admission = self._service.admission
        if len(body.prompts) > admission.limit:
            raise BadBody(
                f"{len(body.prompts)} prompts are more than the {admission.limit} that "
                "max_pending allows at all; send them in parts",
                "prompts",
            )
        admission.try_enter(len(body.prompts))
        answers = [asyncio.ensure_future(self._answer(prompt, body)) for prompt in body.prompts]
        try:
            await asyncio.wait(answers, timeout=body.timeout)
        finally:
            for answer in answers:
                answer.cancel()
            outcomes = await asyncio.gather(*answers, return_exceptions=True)
        return _generated(outcomes, body.timeout, time.monotonic() - since)

    async def _answer(self, prompt: Any, body: GenerateBody) -> Any:
        try:
            return await self._service.complete_admitted(
                prompt, body.system_prompt, body.sampling()
            )
        finally:
            self._service.admission.leave()

    async def _metrics(self, request: web.Request) -> web.Response:
        pool = self._service.pool
        assert pool is not None
        texts = await asyncio.gather(*(_metrics_of(replica) for replica in pool.ready))
        replicas = {r.index: t for r, t in zip(pool.ready, texts, strict=False) if t is not None}
        exposed = self._service.metrics.expose(
            self._service.admission.pending, [r.state for r in pool.replicas], replicas
        )
        return web.Response(body=exposed, headers={"Content-Type": "text/plain; version=0.0.4"})

    async def _pass_on(self, request: web.Request) -> web.StreamResponse:
        """Pass a request to a replica; to another one where the first is found dead."""
        data = await request.read()
        headers = {
            name: value
            for name, value in request.headers.items()
            if name.lower() not in HOP_BY_HOP and name.lower() != "authorization"
        }
        self._service.admission.try_enter()
        try:
            for _ in range(self._config.max_retries + 1):
                replica = self._replica()
                try:
                    return await self._exchange(request, replica, headers, data)
                except aiohttp.ClientError as error:
                    replica.doubt()
                    reason = str(error)
            raise ReplicaError(f"the model server went away: {reason}")
        finally:
            self._service.admission.leave()

    def _replica(self) -> Replica:
        pool = self._service.pool
        assert pool is not None
        replica = pool.least_loaded()
        if replica is None:
            raise pool.failure or ReplicaError("no model server is ready; try again soon")
        return replica

    async def _exchange(
        self, request: web.Request, replica: Replica, headers: dict[str, str], data: bytes
    ) -> web.StreamResponse:
        """Raises `aiohttp.ClientError` only while the client has been told nothing yet."""
        path = request.rel_url.raw_path_qs
        async with replica.request(request.method, path, headers, data) as answer:
            response = web.StreamResponse(status=answer.status, reason=answer.reason)
            for name, value in answer.headers.items():
                if name.lower() not in HOP_BY_HOP:
                    response.headers.add(name, value)
            if answer.content_length is not None:
                response.content_length = answer.content_length
            await response.prepare(request)
            try:
                async for chunk in answer.content.iter_any():
                    await response.write(chunk)
            except aiohttp.ClientError as error:
                replica.doubt()
                await _break_off(request, response, error)
            await response.write_eof()
            return response


async def _break_off(
    request: web.Request, response: web.StreamResponse, error: aiohttp.ClientError
) -> None:
    """Let a client see that what it got is not all: an error event, or a broken connection."""
    if response.content_type == "text/event-stream":
        body = _error_body(502, f"the model server went away: {error}", "ReplicaError")
        await response.write(b"data: " + json.dumps(body).encode() + b"\n\n")
        return
    if request.transport is not None:
        request.transport.abort()


async def _metrics_of(replica: Replica) -> str | None:
    try:
        async with replica.request("GET", "/metrics", {}, None) as answer:
            return await answer.text() if answer.status == 200 else None
    except aiohttp.ClientError:
        return None


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
        body = _error_body(error.code, str(error), error.kind, error.param)
    elif isinstance(error, asyncio.CancelledError):
        body = _error_body(504, f"no response within the timeout of {timeout:g} s")
    elif isinstance(error, ReplicaError):
        body = _error_body(503, error.reason)
    else:
        logger.error("a prompt failed", exc_info=error)
        body = _error_body(500, "internal error; the log says more", "InternalServerError")
    detail: dict[str, Any] = body["error"]
    return detail


def _http_message(request: web.Request, error: web.HTTPException) -> str:
    if error.status == 401:
        return "missing or wrong key; send it as 'Authorization: Bearer <key>'"
    if error.status == 404:
        return (
            f"there is no {request.path} here; try /health, /generate, /metrics, "
            "/v1/chat/completions or /v1/models"
        )
    if error.status == 405:
        return f"{request.path} does not take {request.method}; it takes {error.headers['Allow']}"
    if error.status == 413:
        return f"the body is larger than {MAX_BODY_BYTES} bytes"
    return error.text or error.reason


def _error_body(
    code: int, message: str, kind: str | None = None, param: str | None = None
) -> dict[str, Any]:
    kind = kind or KINDS.get(code, "Error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def _error(
    code: int,
    message: str,
    kind: str | None = None,
    param: str | None = None,
    headers: dict[str, str] | None = None,
) -> web.Response:
    return web.json_response(
        _error_body(code, message, kind, param), status=code, headers=headers or {}
    )


def _unavailable(message: str) -> web.Response:
    return _error(503, message, headers={"Retry-After": str(RETRY_AFTER_SECONDS)})
