"""The OpenAI routes: models, completions and chat completions, plain and streaming."""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections.abc import Callable
from functools import partial

from aiohttp import web

from rhapsody.inference.embedded.http import dumps, error_body, json_response, read_object
from rhapsody.inference.embedded.openai_body import (
    OpenAIRequest,
    read_chat,
    read_completion,
    unknown_model,
)
from rhapsody.inference.embedded.scheduler import Job, Scheduler

FINGERPRINT = "rhapsody-embedded-ngram"
DESCRIPTION = (
    "A small n-gram model in plain Python for quickstarts, tests and drills. "
    "It is not a real model: its answers mean nothing."
)


class OpenAIRoutes:
    """`/v1/models`, `/v1/completions` and `/v1/chat/completions`.

    Args:
        scheduler: Where the prompts go.
        model: The name that the model is served under.
    """

    def __init__(self, scheduler: Scheduler, model: str) -> None:
        """Remember when the serving began, which the list of models tells."""
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
        """List the one model.

        Args:
            request: The request; nothing of it is read.

        Returns:
            OpenAI's list of models.
        """
        return json_response({"object": "list", "data": [self._card()]})

    async def one_model(self, request: web.Request) -> web.Response:
        """Describe the model.

        Args:
            request: Its path names the model.

        Returns:
            OpenAI's description of a model.

        Raises:
            RequestError: Another model is asked for (404).
        """
        name = request.match_info["id"]
        if name != self._model:
            raise unknown_model(name)
        return json_response(self._card())

    async def chat_completions(self, request: web.Request) -> web.StreamResponse:
        """Answer a conversation.

        Args:
            request: OpenAI's chat request.

        Returns:
            OpenAI's chat completion, or a stream of its chunks.

        Raises:
            RequestError: The request is not acceptable.
        """
        asked = read_chat(await read_object(request), self._model)
        return await self._answer(request, asked, _ChatShape(self._model))

    async def completions(self, request: web.Request) -> web.StreamResponse:
        """Continue a text, or several.

        Args:
            request: OpenAI's completion request.

        Returns:
            OpenAI's completion, or a stream of its chunks.

        Raises:
            RequestError: The request is not acceptable.
        """
        asked = read_completion(await read_object(request), self._model)
        return await self._answer(request, asked, _TextShape(self._model))

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

    async def _answer(
        self, request: web.Request, asked: OpenAIRequest, shape: _Shape
    ) -> web.StreamResponse:
        answer = _Answer(self._scheduler, asked, shape)
        try:
            answer.submit()
            if asked.stream:
                response = _event_stream()
                await response.prepare(request)
                # Where the client has gone, nobody is left to tell.
                with contextlib.suppress(ConnectionResetError):
                    await answer.write_to(response)
                return response
            await answer.finished()
            return json_response(answer.whole())
        finally:
            answer.close()


class _Shape:
    """How the parts of an answer are written."""

    whole = ""
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
        """The choice of the first chunk, None where there is nothing to say yet."""
        raise NotImplementedError

    def piece(self, index: int, text: str, reason: str | None) -> dict[str, object]:
        """The choice of one chunk."""
        raise NotImplementedError

    def choice(self, index: int, text: str, reason: str) -> dict[str, object]:
        """One choice of a whole answer."""
        raise NotImplementedError


class _ChatShape(_Shape):
    whole = "chat.completion"
    chunk = "chat.completion.chunk"
    prefix = "chatcmpl"

    def first(self, index: int) -> dict[str, object]:
        return _choice(index, None, delta={"role": "assistant", "content": ""})

    def piece(self, index: int, text: str, reason: str | None) -> dict[str, object]:
        return _choice(index, reason, delta={"content": text} if text else {})

    def choice(self, index: int, text: str, reason: str) -> dict[str, object]:
        return _choice(index, reason, message={"role": "assistant", "content": text})


class _TextShape(_Shape):
    whole = chunk = "text_completion"
    prefix = "cmpl"

    def first(self, index: int) -> None:
        return None

    def piece(self, index: int, text: str, reason: str | None) -> dict[str, object]:
        return _choice(index, reason, text=text)

    def choice(self, index: int, text: str, reason: str) -> dict[str, object]:
        return _choice(index, reason, text=text)


def _choice(index: int, reason: str | None, **content: object) -> dict[str, object]:
    return {"index": index, **content, "logprobs": None, "finish_reason": reason}


class _Answer:
    """The answer to one request: its jobs, and the chunks that are ready to be sent."""

    def __init__(self, scheduler: Scheduler, asked: OpenAIRequest, shape: _Shape) -> None:
        self._scheduler = scheduler
        self._asked = asked
        self._shape = shape
        self._jobs: list[Job] = []
        self._open = len(asked.prompts)
        self._chunks: list[bytes] = []
        self._ready = asyncio.Event()

    def submit(self) -> None:
        for position, prompt in enumerate(self._asked.prompts):
            first = position * self._asked.sampling.n
            on_delta: Callable[[int, str], None] | None = None
            if self._asked.stream:
                on_delta = partial(self._on_delta, first)
            on_end = partial(self._on_end, first)
            self._jobs.append(
                self._scheduler.submit(prompt, self._asked.sampling, on_end, on_delta)
            )

    def close(self) -> None:
        """End what nobody listens to any more."""
        for job in self._jobs:
            self._scheduler.cancel(job)

    async def finished(self) -> None:
        while self._open:
            self._ready.clear()
            await self._ready.wait()
        for job in self._jobs:
            if job.error is not None:
                raise job.error

    def whole(self) -> dict[str, object]:
        choices: list[dict[str, object]] = []
        for prompt, job in zip(self._asked.prompts, self._jobs, strict=True):
            before = prompt if self._asked.echo else ""
            for text, reason in zip(job.texts, job.finish_reasons, strict=True):
                choices.append(self._shape.choice(len(choices), before + text, reason))
        return {**self._shape.frame(self._shape.whole, choices), "usage": self._usage()}

    async def write_to(self, response: web.StreamResponse) -> None:
        self._send_beginnings()
        while self._open or self._chunks:
            if not self._chunks:
                self._ready.clear()
                await self._ready.wait()
            chunks, self._chunks = self._chunks, []
            await response.write(b"".join(chunks))
        if self._asked.include_usage:
            frame = {**self._shape.frame(self._shape.chunk, []), "usage": self._usage()}
            await response.write(_event(frame))
        await response.write(b"data: [DONE]\n\n")
        await response.write_eof()

    def _send_beginnings(self) -> None:
        """What comes before the first token: roles, and prompts to be echoed."""
        n = self._asked.sampling.n
        beginnings: list[dict[str, object]] = []
        for position, prompt in enumerate(self._asked.prompts):
            for index in range(position * n, (position + 1) * n):
                choice = self._shape.first(index)
                if self._asked.echo:
                    choice = self._shape.piece(index, prompt, None)
                if choice is not None:
                    beginnings.append(choice)
        # Tokens may have come while the head of the response was written.
        self._chunks[:0] = [self._chunk(choice) for choice in beginnings]

    def _on_delta(self, first: int, index: int, text: str) -> None:
        self._send(self._shape.piece(first + index, text, None))

    def _on_end(self, first: int, job: Job) -> None:
        self._open -= 1
        self._ready.set()
        if not self._asked.stream:
            return
        if job.error is not None:
            self._chunks.append(_event(error_body(job.error)))
            return
        for index, reason in enumerate(job.finish_reasons):
            self._send(self._shape.piece(first + index, "", reason))

    def _send(self, choice: dict[str, object]) -> None:
        self._chunks.append(self._chunk(choice))
        self._ready.set()

    def _chunk(self, choice: dict[str, object]) -> bytes:
        frame = self._shape.frame(self._shape.chunk, [choice])
        if self._asked.include_usage:
            frame["usage"] = None
        return _event(frame)

    def _usage(self) -> dict[str, int]:
        usages = [job.usage for job in self._jobs]
        return {name: sum(usage[name] for usage in usages) for name in usages[0]}


def _event_stream() -> web.StreamResponse:
    response = web.StreamResponse(headers={"Cache-Control": "no-cache"})
    response.content_type = "text/event-stream"
    response.charset = "utf-8"
    return response


def _event(value: object) -> bytes:
    return b"data: " + dumps(value) + b"\n\n"
