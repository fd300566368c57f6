"""The routes for embeddings, scores and classes, in the formats of OpenAI's API and of vLLM."""

from __future__ import annotations

import asyncio
import base64
import time
import uuid
from collections.abc import Mapping
from functools import partial

from aiohttp import web

from rhapsody.inference.embedded.http import json_response, read_object
from rhapsody.inference.embedded.openai_body import check_model
from rhapsody.inference.embedded.pooling.vectors import DIMENSIONS, floats_of
from rhapsody.inference.embedded.pooling.work import PoolingWork
from rhapsody.inference.embedded.scheduler import PromptScheduler, ScheduledPrompt
from rhapsody.inference.protocol.batch import token_usage
from rhapsody.inference.protocol.errors import RequestError

__all__ = ["PoolingRoutes"]

_IGNORED = frozenset({"user", "priority", "request_id"})


class PoolingRoutes:
    """`/v1/embeddings`, `/score`, `/v1/score` and `/classify`.

    Args:
        scheduler: Runs the inputs.
        model: The name that the model is served under.
    """

    def __init__(self, scheduler: PromptScheduler, model: str) -> None:
        self._scheduler = scheduler
        self._model = model

    def add_to(self, router: web.UrlDispatcher) -> None:
        """Add the routes.

        Args:
            router: The application's router.
        """
        router.add_post("/v1/embeddings", self.embeddings)
        router.add_post("/score", self.score)
        router.add_post("/v1/score", self.score)
        router.add_post("/classify", self.classify)

    async def embeddings(self, request: web.Request) -> web.Response:
        """Embed one text or several.

        Args:
            request: OpenAI's request. `encoding_format` is "float" or "base64".

        Raises:
            RequestError: The request is invalid.
        """
        body = await self._body(request)
        texts = _texts(body, "input")
        encoding = body.pop("encoding_format", None) or "float"
        if encoding not in ("float", "base64"):
            raise RequestError(
                f"encoding_format must be 'float' or 'base64', got {encoding!r:.80}.",
                "encoding_format",
            )
        dimensions = body.pop("dimensions", None)
        if dimensions not in (None, DIMENSIONS):
            raise RequestError(
                f"dimensions must be {DIMENSIONS}, got {dimensions!r:.80}.", "dimensions"
            )
        _check_rest(body)
        works = await self._run([self._work("embed", text) for text in texts])
        data: list[dict[str, object]] = [
            {
                "object": "embedding",
                "index": index,
                "embedding": floats_of(work.data)
                if encoding == "float"
                else base64.b64encode(work.data).decode("ascii"),
            }
            for index, work in enumerate(works)
        ]
        return self._response("embd", data, works)

    async def score(self, request: web.Request) -> web.Response:
        """Score pairs of texts.

        Args:
            request: vLLM's request: `text_1` and `text_2`, or `queries` and `documents`.

        Raises:
            RequestError: The request is invalid.
        """
        body = await self._body(request)
        first, second = ("queries", "documents") if "queries" in body else ("text_1", "text_2")
        queries, documents = _texts(body, first), _texts(body, second)
        if len(queries) == 1:
            queries *= len(documents)
        if len(queries) != len(documents):
            raise RequestError(
                f"{first} must have one text or as many as {second}, got {len(queries)} and "
                f"{len(documents)}.",
                first,
            )
        _check_rest(body)
        pairs = zip(queries, documents, strict=True)
        works = await self._run([self._work("score", *pair) for pair in pairs])
        data: list[dict[str, object]] = [
            {"index": index, "object": "score", "score": floats_of(work.data)[0]}
            for index, work in enumerate(works)
        ]
        return self._response("score", data, works)

    async def classify(self, request: web.Request) -> web.Response:
        """Classify one text or several.

        Args:
            request: vLLM's request. Its response also has the `labels` of all probabilities.

        Raises:
            RequestError: The request is invalid.
        """
        body = await self._body(request)
        texts = _texts(body, "input")
        _check_rest(body)
        works = await self._run([self._work("classify", text) for text in texts])
        data: list[dict[str, object]] = []
        for index, work in enumerate(works):
            numbers = floats_of(work.data)
            data.append(
                {
                    "index": index,
                    "label": work.labels[numbers.index(max(numbers))],
                    "probs": numbers,
                    "num_classes": len(numbers),
                    "labels": work.labels,
                }
            )
        return self._response("classify", data, works)

    async def _body(self, request: web.Request) -> dict[str, object]:
        body = await read_object(request)
        check_model(body.pop("model", None), self._model)
        return body

    def _work(self, kind: str, text: str, document: str | None = None) -> PoolingWork:
        model = self._scheduler.model
        return PoolingWork(kind, text, document, model.labels, model.max_model_len)

    async def _run(self, works: list[PoolingWork]) -> list[PoolingWork]:
        """Wait until the scheduler has done the works. A disconnected client cancels this."""
        loop = asyncio.get_running_loop()
        scheduled: list[ScheduledPrompt] = []
        ends: list[asyncio.Future[None]] = []
        for work in works:
            end: asyncio.Future[None] = loop.create_future()
            ends.append(end)
            waiting = ScheduledPrompt(work.length, [work], partial(_set_end, end))
            scheduled.append(self._scheduler.enqueue(waiting))
        try:
            await asyncio.gather(*ends)
        finally:
            for one in scheduled:
                self._scheduler.cancel(one)
        return works

    def _response(
        self, prefix: str, data: list[dict[str, object]], works: list[PoolingWork]
    ) -> web.Response:
        return json_response(
            {
                "id": f"{prefix}-{uuid.uuid4().hex}",
                "object": "list",
                "created": int(time.time()),
                "model": self._model,
                "data": data,
                "usage": token_usage(sum(work.length for work in works), 0),
            }
        )


def _set_end(end: asyncio.Future[None], scheduled: ScheduledPrompt) -> None:
    if end.done():
        return
    if scheduled.error is not None:
        end.set_exception(scheduled.error)
    else:
        end.set_result(None)


def _texts(body: dict[str, object], name: str) -> list[str]:
    given = body.pop(name, None)
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, list) or not texts or not all(isinstance(one, str) for one in texts):
        raise RequestError(
            f"{name} must be a str or a list of str (token ids are not supported by the embedded "
            f"model), got {given!r:.80}.",
            name,
        )
    return list(texts)


def _check_rest(rest: Mapping[str, object]) -> None:
    for name, value in rest.items():
        if name not in _IGNORED and value is not None:
            raise RequestError(f"{name} is not supported by the embedded model.", name)
