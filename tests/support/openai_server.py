"""A server of the OpenAI API whose answers a test scripts, over real HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from aiohttp import web

MODEL = "scripted"

Answer = Callable[[web.Request, dict[str, Any]], Awaitable[web.StreamResponse]]


def completion(text: str, **fields: Any) -> dict[str, Any]:
    """Return the body of a chat completion."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}}
    usage = {"prompt_tokens": 2, "completion_tokens": 3, "total_tokens": 5}
    return {"choices": [{**choice, "finish_reason": "stop"}], "usage": usage, **fields}


def sse(*events: Any) -> bytes:
    """Return the bytes of a stream of events; a str is sent as it is."""
    texts = [event if isinstance(event, str) else json.dumps(event) for event in events]
    return "".join(f"data: {text}\n\n" for text in texts).encode()


def delta(text: str, reason: str | None = None) -> dict[str, Any]:
    """Return one event of a streamed chat completion."""
    return {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": reason}]}


class OpenAIServer:
    """Answers requests as `answer` does, by default with the last message's text in upper case.

    Attributes:
        url: Its base URL.
        bodies: The bodies of all completion requests.
        headers: The headers of all completion requests.
        models: Names that `/models` lists; None: the route is missing.
        most_at_once: The largest number of requests at a time.
    """

    def __init__(self) -> None:
        self.url = ""
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.models: list[str] | None = [MODEL]
        self.models_status = 200
        self.answer: Answer = self.upper
        self.most_at_once = 0
        self._at_once = 0

    async def upper(self, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        """Answer with the prompt in upper case, at once or streamed."""
        prompt = body["messages"][-1]["content"] if "messages" in body else body["prompt"]
        if not body.get("stream"):
            return web.json_response(completion(prompt.upper()))
        usage = {"choices": [], "usage": {"prompt_tokens": 2, "completion_tokens": 3}}
        pieces = [delta(letter) for letter in prompt.upper()]
        data = sse(*pieces, delta("", "stop"), usage, "[DONE]")
        return web.Response(body=data, content_type="text/event-stream")

    async def _models(self, request: web.Request) -> web.Response:
        if self.models is None or self.models_status != 200:
            return web.Response(status=404 if self.models is None else self.models_status)
        return web.json_response({"data": [{"id": name} for name in self.models]})

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.bodies.append(body)
        self.headers.append(dict(request.headers))
        self._at_once += 1
        self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            await asyncio.sleep(0)
            return await self.answer(request, body)
        finally:
            self._at_once -= 1

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[OpenAIServer]:
        """Serve on a free port of the loopback interface."""
        application = web.Application()
        application.router.add_get("/v1/models", self._models)
        application.router.add_post("/v1/chat/completions", self._complete)
        application.router.add_post("/v1/completions", self._complete)
        runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        try:
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            self.url = "http://{}:{}/v1".format(*runner.addresses[0])
            yield self
        finally:
            await runner.cleanup()
