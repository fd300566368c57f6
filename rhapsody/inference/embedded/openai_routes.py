"""The OpenAI routes: models, completions and chat completions, plain and streaming."""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections.abc import Callable
from functools import partial

from aiohttp import web

from rhapsody.inference.embedded.http import dumps, json_response, read_object
from rhapsody.inference.embedded.openai_body import (
    OpenAIRequest,
    read_chat,
    read_completion,
    unknown_model,
)
from rhapsody.inference.embedded.scheduler import PromptScheduler, ScheduledPrompt
from rhapsody.inference.embedded.structure.tool_calls import CALLED, known_text, message_of
from rhapsody.inference.protocol.errors import error_body

__all__ = ["OpenAIRoutes"]

FINGERPRINT = "rhapsody-embedded-ngram"
DESCRIPTION = (
    "A small n-gram model in plain Python for quickstarts, tests and drills. "
    "It is not a real model: its responses mean nothing."
)


class OpenAIRoutes:
    """`/v1/models`, `/v1/completions` and `/v1/chat/completions`.

    Args:
        scheduler: Runs the prompts.
        model: The name that the model is served under.
    """

    def __init__(self, scheduler: PromptScheduler, model: str) -> None:
        self._scheduler = scheduler
        self._model = model
        self._created = int(time.time())

    def add_to(self, router: web.UrlDispatcher) -> None:
        """Add the routes.

        Args:
            router: The application's router.
        """
        router.add_get("/v1/models", self.models)
        # A model's name may hold slashes, as organisation/model.
        router.add_get("/v1/models/{id:.+}", self.one_model)
        router.add_post("/v1/completions", self.completions)
        router.add_post("/v1/chat/completions", self.chat_completions)

    async def models(self, request: web.Request) -> web.Response:
        """Return OpenAI's list of models, which has one entry.

        Args:
            request: The request; it is not read.
        """
        return json_response({"object": "list", "data": [self._card()]})

    async def one_model(self, request: web.Request) -> web.Response:
        """Return OpenAI's description of the model.

        Args:
            request: Its path names the model.

        Raises:
            RequestError: The path names another model (404).
        """
        name = request.match_info["id"]
        if name != self._model:
            raise unknown_model(name)
        return json_response(self._card())

    async def chat_completions(self, request: web.Request) -> web.StreamResponse:
        """Complete a chat.

        Args:
            request: OpenAI's chat request.

        Returns:
            OpenAI's chat completion, or a stream of its chunks.

        Raises:
            RequestError: The request is invalid.
        """
        parsed = read_chat(await read_object(request), self._model)
        return await self._complete(request, parsed, _ChatFormat(self._model))

    async def completions(self, request: web.Request) -> web.StreamResponse:
        """Complete one text or several.

        Args:
            request: OpenAI's completion request.

        Returns:
            OpenAI's completion, or a stream of its chunks.

        Raises:
            RequestError: The request is invalid.
        """
        parsed = read_completion(await read_object(request), self._model)
        return await self._complete(request, parsed, _TextFormat(self._model))

    def _card(self) -> dict[str, object]:
        return {
            "id": self._model,
            "object": "model",
            "created": self._created,
            "owned_by": "rhapsody",
            "root": self._model,
            "parent": None,
            "max_model_len": self._scheduler.model.max_model_len,
            "embedded": True,
            "description": DESCRIPTION,
        }

    async def _complete(
        self, request: web.Request, parsed: OpenAIRequest, form: _Format
    ) -> web.StreamResponse:
        run = _RequestRun(self._scheduler, parsed, form)
        try:
            run.submit()
            if parsed.stream:
                response = _event_stream()
                await response.prepare(request)
                # The client may have disconnected.
                with contextlib.suppress(ConnectionResetError):
                    await run.stream(response)
                return response
            await run.wait()
            return json_response(run.completion())
        finally:
            run.close()


class _Format:
    """OpenAI's JSON objects of one route."""

    completion = ""
    chunk = ""
    prefix = ""

    def __init__(self, model: str) -> None:
        self._head = {
            "id": f"{self.prefix}-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": model,
            "system_fingerprint": FINGERPRINT,
        }

    def frame(self, kind: str, choices: list[dict[str, object]]) -> dict[str, object]:
        return {**self._head, "object": kind, "choices": choices}

    def first(self, index: int) -> dict[str, object] | None:
        """Return the choice of the first chunk, None if the route has no such chunk."""
        raise NotImplementedError

    def delta(self, index: int, text: str, reason: str | None) -> dict[str, object]:
        """Return the choice of a chunk."""
        raise NotImplementedError

    def choice(self, index: int, text: str, reason: str) -> dict[str, object]:
        """Return a choice of a plain response."""
        raise NotImplementedError


class _ChatFormat(_Format):
    completion = "chat.completion"
    chunk = "chat.completion.chunk"
    prefix = "chatcmpl"

    def first(self, index: int) -> dict[str, object]:
        return _choice(index, None, delta={"role": "assistant", "content": ""})

    def delta(self, index: int, text: str, reason: str | None) -> dict[str, object]:
        return _choice(index, reason, delta={"content": text} if text else {})

    def choice(self, index: int, text: str, reason: str) -> dict[str, object]:
        return _choice(index, reason, message={"role": "assistant", "content": text})


class _TextFormat(_Format):
    completion = chunk = "text_completion"
    prefix = "cmpl"

    def first(self, index: int) -> None:
        return None

    def delta(self, index: int, text: str, reason: str | None) -> dict[str, object]:
        return _choice(index, reason, text=text)

    def choice(self, index: int, text: str, reason: str) -> dict[str, object]:
        return _choice(index, reason, text=text)


def _choice(index: int, reason: str | None, **content: object) -> dict[str, object]:
    return {"index": index, **content, "logprobs": None, "finish_reason": reason}


class _RequestRun:
    """The prompts of one request in progress, and their chunks that are not sent yet."""

    def __init__(self, scheduler: PromptScheduler, request: OpenAIRequest, form: _Format) -> None:
        self._scheduler = scheduler
        self._request = request
        self._format = form
        self._prompts: list[ScheduledPrompt] = []
        self._open = len(request.prompts)
        self._chunks: list[bytes] = []
        self._ready = asyncio.Event()

    def submit(self) -> None:
        for position, prompt in enumerate(self._request.prompts):
            first = position * self._request.sampling.n
            on_delta: Callable[[int, str], None] | None = None
            if self._request.stream and not self._request.calls:
                on_delta = partial(self._on_delta, first)
            on_end = partial(self._on_end, first)
            self._prompts.append(
                self._scheduler.submit(
                    *(prompt, self._request.sampling, on_end, on_delta, self._request.order),
                    known_text(self._request.calls),
                )
            )

    def close(self) -> None:
        """Cancel the prompts that are still in progress: their client has disconnected."""
        for scheduled in self._prompts:
            self._scheduler.cancel(scheduled)

    async def wait(self) -> None:
        """Wait until all prompts have ended; raise the first one's error."""
        while self._open:
            self._ready.clear()
            await self._ready.wait()
        for scheduled in self._prompts:
            if scheduled.error is not None:
                raise scheduled.error

    def completion(self) -> dict[str, object]:
        """Return the body of the plain response."""
        choices: list[dict[str, object]] = []
        for prompt, scheduled in zip(self._request.prompts, self._prompts, strict=True):
            before = prompt if self._request.echo else ""
            for text, reason in zip(scheduled.texts, scheduled.finish_reasons, strict=True):
                calls = self._request.calls
                choices.append(
                    _choice(len(choices), CALLED, message=message_of(calls))
                    if calls
                    else self._format.choice(len(choices), before + text, reason)
                )
        return {**self._format.frame(self._format.completion, choices), "usage": self._usage()}

    async def stream(self, response: web.StreamResponse) -> None:
        """Send the chunks as soon as they are ready."""
        self._put_first_chunks()
        while self._open or self._chunks:
            if not self._chunks:
                self._ready.clear()
                await self._ready.wait()
            chunks, self._chunks = self._chunks, []
            await response.write(b"".join(chunks))
        if self._request.include_usage:
            frame = {**self._format.frame(self._format.chunk, []), "usage": self._usage()}
            await response.write(_event(frame))
        await response.write(b"data: [DONE]\n\n")
        await response.write_eof()

    def _put_first_chunks(self) -> None:
        """Put the roles and the echoed prompts before all tokens."""
        n = self._request.sampling.n
        choices: list[dict[str, object]] = []
        for position, prompt in enumerate(self._request.prompts):
            for index in range(position * n, (position + 1) * n):
                choice = self._format.first(index)
                if self._request.echo:
                    choice = self._format.delta(index, prompt, None)
                if choice is not None:
                    choices.append(choice)
        # Chunks of tokens may have been added while the response's headers were sent.
        self._chunks[:0] = [self._chunk(choice) for choice in choices]

    def _on_delta(self, first: int, index: int, text: str) -> None:
        self._put(self._format.delta(first + index, text, None))

    def _on_end(self, first: int, scheduled: ScheduledPrompt) -> None:
        self._open -= 1
        self._ready.set()
        if not self._request.stream:
            return
        if scheduled.error is not None:
            self._chunks.append(_event(error_body(scheduled.error)))
            return
        for index, reason in enumerate(scheduled.finish_reasons):
            if self._request.calls:
                called = message_of(self._request.calls)["tool_calls"]
                self._put(_choice(first + index, None, delta={"tool_calls": called}))
                reason = CALLED
            self._put(self._format.delta(first + index, "", reason))

    def _put(self, choice: dict[str, object]) -> None:
        self._chunks.append(self._chunk(choice))
        self._ready.set()

    def _chunk(self, choice: dict[str, object]) -> bytes:
        frame = self._format.frame(self._format.chunk, [choice])
        if self._request.include_usage:
            frame["usage"] = None
        return _event(frame)

    def _usage(self) -> dict[str, int]:
        usages = [scheduled.usage for scheduled in self._prompts]
        return {name: sum(usage[name] for usage in usages) for name in usages[0]}


def _event_stream() -> web.StreamResponse:
    response = web.StreamResponse(headers={"Cache-Control": "no-cache"})
    response.content_type = "text/event-stream"
    response.charset = "utf-8"
    return response


def _event(value: object) -> bytes:
    return b"data: " + dumps(value) + b"\n\n"
