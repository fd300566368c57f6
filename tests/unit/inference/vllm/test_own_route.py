"""Requests to a server's own routes within its process."""

import json
from collections.abc import Mapping
from typing import Any

import pytest

from rhapsody.inference.protocol.errors import RequestError
from rhapsody.inference.vllm.own_route import ask_route

SCOPE = {"type": "http", "path": "/rhapsody/batch", "app": "the app", "headers": [(b"x", b"y")]}


class App:
    """Answers with a status and a body, and records the request."""

    def __init__(self, status: int, body: bytes) -> None:
        self.status, self.body = status, body
        self.scope: Mapping[str, Any] = {}
        self.sent: Any = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.scope = scope
        self.sent = json.loads((await receive())["body"])
        await send({"type": "http.response.start", "status": self.status})
        half = len(self.body) // 2
        for part in (self.body[:half], self.body[half:]):
            await send({"type": "http.response.body", "body": part})


async def test_route_gets_the_body_and_its_answer_is_returned() -> None:
    app = App(200, b'{"data": [1]}')
    assert await ask_route(app, SCOPE, "/score", {"a": 1}) == {"data": [1]}
    assert app.sent == {"a": 1}
    assert (app.scope["path"], app.scope["method"]) == ("/score", "POST")
    assert app.scope["app"] == "the app"
    assert (b"x", b"y") not in app.scope["headers"]


@pytest.mark.parametrize(
    ("status", "body", "code", "message"),
    [
        (400, b'{"error": {"message": "too long"}}', 400, "too long"),
        (404, b'{"message": "none"}', 404, "none"),
        (500, b"broken", 500, "broken"),
        (200, b"no json", 500, "no json"),
    ],
)
async def test_refusal_is_an_error(status: int, body: bytes, code: int, message: str) -> None:
    with pytest.raises(RequestError, match=message) as refused:
        await ask_route(App(status, body), SCOPE, "/score", {})
    assert refused.value.code == code
