"""What the routes share: bodies in, JSON out, errors in one shape, the secret on every path."""

from __future__ import annotations

import hmac
import json
import logging
from collections.abc import Mapping

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from rhapsody.inference.embedded.errors import RequestError

logger = logging.getLogger(__name__)

KEY_HEADER = "X-Rhapsody-Key"


def dumps(value: object) -> bytes:
    """Write JSON in ASCII: half of a surrogate pair in a prompt is no reason to fail.

    Args:
        value: What to write.

    Returns:
        Compact JSON.
    """
    return json.dumps(value, separators=(",", ":")).encode("ascii")


def json_response(value: object, status: int = 200) -> web.Response:
    """Answer with JSON.

    Args:
        value: The body.
        status: The HTTP status.

    Returns:
        The response.
    """
    return web.Response(body=dumps(value), status=status, content_type="application/json")


async def read_object(request: web.Request) -> dict[str, object]:
    """Read a body that has to be a JSON object.

    Args:
        request: The request.

    Returns:
        The object.

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


def error_body(error: RequestError) -> dict[str, object]:
    """The one shape of all errors.

    Args:
        error: What went wrong.

    Returns:
        The JSON body as OpenAI's clients read it.
    """
    return {
        "error": {
            "message": error.message,
            "type": error.kind,
            "param": error.param,
            "code": error.code,
        }
    }


def _error_response(
    error: RequestError, headers: Mapping[str, str] | None = None
) -> web.StreamResponse:
    response = json_response(error_body(error), error.code)
    response.headers.update(headers or {})
    return response


@web.middleware
async def errors_as_json(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Give every error of a route, and of the router itself, the one shape.

    Args:
        request: The request.
        handler: What answers it.

    Returns:
        The handler's response, or the error's.
    """
    try:
        return await handler(request)
    except RequestError as error:
        return _error_response(error)
    except web.HTTPException as error:
        message = f"{error.reason}: {request.method} {request.path}"
        allow = error.headers.get("Allow")
        headers = {"Allow": allow} if allow else None
        return _error_response(RequestError(message, code=error.status), headers)
    except Exception as error:
        logger.exception("%s %s failed", request.method, request.path)
        return _error_response(RequestError(f"Internal error: {error!r}", code=500))


def demand_key(key: str | None) -> Middleware:
    """Make the middleware that lets only those in who know the secret, on every path.

    Args:
        key: The secret; None lets everybody in.

    Returns:
        The middleware.
    """
    secret = None if key is None else key.encode("utf-8", "surrogateescape")

    @web.middleware
    async def check_key(request: web.Request, handler: Handler) -> web.StreamResponse:
        if secret is not None:
            given = request.headers.get(KEY_HEADER, "").encode("utf-8", "surrogateescape")
            if not hmac.compare_digest(given, secret):
                message = f"A valid {KEY_HEADER} header is required."
                raise RequestError(message, KEY_HEADER, code=401)
        return await handler(request)

    return check_key
