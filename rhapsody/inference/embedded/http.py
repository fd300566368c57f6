"""HTTP helpers of the embedded server: JSON bodies, error responses, the key of every path."""

from __future__ import annotations

import contextlib
import hmac
import json
import logging
from collections.abc import Mapping

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from rhapsody.inference.protocol.errors import RequestError, error_body
from rhapsody.inference.protocol.process import KEY_HEADER, missing_key
from rhapsody.waiting import done_within

__all__ = ["dumps", "errors_as_json", "json_response", "read_object", "require_key"]

logger = logging.getLogger(__name__)

DISCARD_SECONDS = 10.0
"""Longest time for the rest of a body that is too large."""


def dumps(value: object) -> bytes:
    """Return a value as compact JSON in ASCII, which can hold a lone surrogate of a prompt."""
    return json.dumps(value, separators=(",", ":")).encode("ascii")


def json_response(value: object, status: int = 200) -> web.Response:
    """Return a JSON response.

    Args:
        value: The body.
        status: The HTTP status.
    """
    return web.Response(body=dumps(value), status=status, content_type="application/json")


async def read_object(request: web.Request) -> dict[str, object]:
    """Read a request's body, which must be a JSON object.

    Args:
        request: The request.

    Raises:
        RequestError: The body is not UTF-8, not JSON, or not an object.
    """
    body = await request.read()
    try:
        value = json.loads(body.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise RequestError(f"The body is not UTF-8: {error}.") from None
    except (ValueError, RecursionError) as error:
        raise RequestError(f"The body is not JSON: {error}.") from None
    if not isinstance(value, dict):
        raise RequestError(f"The body must be a JSON object, got {type(value).__name__}.")
    return value


def _error_response(
    error: RequestError, headers: Mapping[str, str] | None = None
) -> web.StreamResponse:
    response = json_response(error_body(error), error.code)
    response.headers.update(headers or {})
    return response


async def _discard(request: web.Request) -> None:
    with contextlib.suppress(ConnectionError):
        while await request.content.readany():
            pass


@web.middleware
async def errors_as_json(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn every error of a route, and of the router itself, into a JSON response.

    Args:
        request: The request.
        handler: The next handler.
    """
    try:
        return await handler(request)
    except RequestError as error:
        return _error_response(error)
    except web.HTTPException as error:
        if isinstance(error, web.HTTPRequestEntityTooLarge):
            # A client that still sends may see a broken connection instead of the response.
            await done_within(_discard(request), DISCARD_SECONDS)
        message = f"{error.reason}: {request.method} {request.path}"
        allow = error.headers.get("Allow")
        headers = {"Allow": allow} if allow else None
        return _error_response(RequestError(message, code=error.status), headers)
    except Exception as error:
        logger.exception("%s %s failed", request.method, request.path)
        return _error_response(RequestError(f"Internal error: {error!r}", code=500))


def require_key(key: str | None) -> Middleware:
    """Return the middleware that refuses requests without the key, on every path.

    Args:
        key: The key; None: every request is accepted.
    """
    expected = None if key is None else key.encode("utf-8", "surrogateescape")

    @web.middleware
    async def check_key(request: web.Request, handler: Handler) -> web.StreamResponse:
        if expected is not None:
            given = request.headers.get(KEY_HEADER, "").encode("utf-8", "surrogateescape")
            if not hmac.compare_digest(given, expected):
                raise missing_key()
        return await handler(request)

    return check_key
