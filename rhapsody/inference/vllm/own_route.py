"""A request to one of a vLLM server's own routes, within the server's process."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any

from rhapsody.inference.protocol.errors import RequestError

__all__ = ["ask_route"]

App = Callable[..., Awaitable[None]]
KEPT = ("app", "asgi", "client", "http_version", "scheme", "server")


async def ask_route(
    app: App, scope: Mapping[str, Any], path: str, body: Mapping[str, Any]
) -> dict[str, Any]:
    """Send a JSON body to a route, and return the JSON object of its response.

    Args:
        app: The application with the route.
        scope: The scope of the request that this one belongs to.
        path: The route.
        body: The body.

    Raises:
        RequestError: The route refused the request.
    """
    data = json.dumps(body).encode("ascii")
    length = str(len(data)).encode()
    inner: dict[str, Any] = {
        **{name: scope[name] for name in KEPT if name in scope},
        "type": "http",
        "method": "POST",
        "root_path": "",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": [(b"content-type", b"application/json"), (b"content-length", length)],
        "state": dict(scope.get("state", {})),
    }
    unread = [{"type": "http.request", "body": data, "more_body": False}]
    parts: list[bytes] = []
    status = 500

    async def receive() -> Mapping[str, Any]:
        if not unread:
            await asyncio.Event().wait()  # the client stays connected
        return unread.pop()

    async def send(message: MutableMapping[str, Any]) -> None:
        nonlocal status
        if message["type"] == "http.response.start":
            status = message["status"]
        else:
            parts.append(message.get("body", b""))

    await app(inner, receive, send)
    text = b"".join(parts)
    try:
        answer = json.loads(text)
    except ValueError:
        answer = None
    if status != 200 or not isinstance(answer, dict):
        raise _error(status, answer, text)
    return answer


def _error(status: int, answer: Any, text: bytes) -> RequestError:
    error = answer.get("error", answer) if isinstance(answer, dict) else None
    message = error.get("message", error) if isinstance(error, dict) else None
    code = status if 400 <= status < 600 else 500
    return RequestError(str(message or text.decode(errors="replace")[:300]), code=code)
