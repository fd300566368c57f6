"""Errors over HTTP: one shape for all of them, `{"error": {message, type, param, code}}`."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from rhapsody.api.errors import OverloadedError, PromptError, ReplicaError
from rhapsody.inference.generate_body import BadBody

__all__ = ["MAX_BODY_BYTES", "error_body", "error_response"]

MAX_BODY_BYTES = 64 * 1024 * 1024
RETRY_AFTER_SECONDS = 1

KINDS = {
    400: "BadRequestError",
    401: "AuthenticationError",
    404: "NotFoundError",
    405: "MethodNotAllowed",
    413: "RequestTooLarge",
    500: "InternalServerError",
    501: "NotImplementedError",
    502: "ReplicaError",
    503: "ServiceUnavailable",
    504: "Timeout",
}


def error_body(
    code: int, message: str, kind: str | None = None, param: str | None = None
) -> dict[str, Any]:
    """Put an error into the shape that OpenAI's clients read.

    Args:
        code: The HTTP status that fits.
        message: What was wrong, and what to do.
        kind: The error's name; the status's own where None.
        param: The parameter at fault.
    """
    kind = kind or KINDS.get(code, "Error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def error_response(request: web.Request, error: Exception) -> web.Response:
    """Answer a request with an error.

    Args:
        request: The request.
        error: Anything; what is not known here is the server's own fault and keeps its secrets.
    """
    headers: dict[str, str] = {}
    if isinstance(error, web.HTTPException):
        for name in ("Allow", "WWW-Authenticate"):
            if name in error.headers:
                headers[name] = error.headers[name]
        body = error_body(error.status, _http_message(request, error))
    elif isinstance(error, BadBody):
        body = error_body(400, str(error), param=error.param)
    elif isinstance(error, PromptError):
        body = error_body(error.code, str(error), error.kind, error.param)
    elif isinstance(error, (OverloadedError, ReplicaError)):
        headers["Retry-After"] = str(RETRY_AFTER_SECONDS)
        body = error_body(503, error.reason if isinstance(error, ReplicaError) else str(error))
    else:
        body = error_body(500, "internal error; the log says more")
    return web.json_response(body, status=body["error"]["code"], headers=headers)


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
