"""Error responses, all in one format: `{"error": {"message", "type", "param", "code"}}`."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from rhapsody.errors import OverloadedError, PromptError, ReplicaError, printable
from rhapsody.inference.http.bodies import BodyError
from rhapsody.inference.protocol.process import MAX_BODY_BYTES

__all__ = ["error_body", "error_response"]

RETRY_AFTER_SECONDS = 1

KINDS = {
    400: "BadRequestError",
    401: "AuthenticationError",
    403: "PermissionDeniedError",
    404: "NotFoundError",
    405: "MethodNotAllowed",
    408: "RequestTimeout",
    413: "RequestTooLarge",
    415: "UnsupportedMediaType",
    429: "RateLimitError",
    500: "InternalServerError",
    501: "NotImplementedError",
    502: "ReplicaError",
    503: "ServiceUnavailable",
    504: "Timeout",
}


def error_body(
    code: int, message: str, kind: str | None = None, param: str | None = None
) -> dict[str, Any]:
    """Return the body of an error response in OpenAI's format.

    Args:
        code: The HTTP status.
        message: What was wrong, what was expected, and what to do.
        kind: The error's name; None: the name of the status.
        param: The invalid parameter.
    """
    kind = kind or KINDS.get(code, "Error")
    return {"error": {"message": printable(message), "type": kind, "param": param, "code": code}}


def error_response(request: web.Request, error: Exception) -> web.Response:
    """Return the response for an error.

    Args:
        request: The request.
        error: Any exception. The text of an unexpected one is not sent, since it may hold secrets.
    """
    headers: dict[str, str] = {}
    if isinstance(error, web.HTTPException):
        for name in ("Accept-Encoding", "Allow", "Retry-After", "WWW-Authenticate"):
            if name in error.headers:
                headers[name] = error.headers[name]
        body = error_body(error.status, _http_message(request, error))
    elif isinstance(error, BodyError):
        body = error_body(400, str(error), param=error.param)
    elif isinstance(error, PromptError):
        body = error_body(error.code, str(error), error.kind, error.param)
    elif isinstance(error, (OverloadedError, ReplicaError)):
        headers["Retry-After"] = str(RETRY_AFTER_SECONDS)
        body = error_body(503, error.reason if isinstance(error, ReplicaError) else str(error))
    else:
        body = error_body(500, "internal error; see the server's log")
    return web.json_response(body, status=body["error"]["code"], headers=headers)


def _http_message(request: web.Request, error: web.HTTPException) -> str:
    if error.status == 401:
        return "missing or wrong key; send it as 'Authorization: Bearer <key>'"
    if error.status == 404:
        return (
            f"{request.path} does not exist; try /health, /generate, /metrics, "
            "/v1/chat/completions or /v1/models; /docs lists all routes"
        )
    if error.status == 405:
        return f"{request.path} does not allow {request.method}, only {error.headers['Allow']}"
    if error.status == 413:
        return f"the body is larger than {MAX_BODY_BYTES} bytes"
    return error.text or error.reason
