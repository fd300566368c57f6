"""The batch route: many prompts in one request, each answered on its own line when it is ready."""

from __future__ import annotations

import asyncio

from aiohttp import web

from rhapsody.inference.embedded.chat import render_chat, render_prompt
from rhapsody.inference.embedded.errors import RequestError
from rhapsody.inference.embedded.http import dumps, json_response, read_object
from rhapsody.inference.embedded.sampling import Sampling
from rhapsody.inference.embedded.scheduler import Job, Scheduler

_FIELDS = frozenset({"id", "prompt", "messages", "sampling", "stream"})
_PROMPTS_PER_TURN = 64


class BatchRoute:
    """`POST /rhapsody/batch` and `POST /rhapsody/cancel`.

    Args:
        scheduler: Where the prompts go.
    """

    def __init__(self, scheduler: Scheduler) -> None:
        """Know of no prompts yet."""
        self._scheduler = scheduler
        # None: announced by a batch that is still being taken in.
        self._jobs: dict[str, Job | None] = {}

    def add_to(self, router: web.UrlDispatcher) -> None:
        """Add the routes.

        Args:
            router: The application's router.
        """
        router.add_post("/rhapsody/batch", self.batch)
        router.add_post("/rhapsody/cancel", self.cancel)

    async def batch(self, request: web.Request) -> web.StreamResponse:
        """Answer a batch, one JSON object a line, in the order in which the prompts end.

        Args:
            request: `{"prompts": [{"id", "prompt" | "messages", "sampling", "stream"}, ...]}`.

        Returns:
            The finished response; a client that goes away takes its prompts with it.

        Raises:
            RequestError: The batch as a whole is not of that form.
        """
        items = _items(await read_object(request))
        response = web.StreamResponse()
        response.content_type = "application/x-ndjson"
        await response.prepare(request)
        batch = _Batch(self._scheduler, self._jobs)
        try:
            await batch.answer(items, response)
            await response.write_eof()
        except ConnectionResetError:
            pass  # the client has gone, and nobody is left to tell
        finally:
            batch.close()
        return response

    async def cancel(self, request: web.Request) -> web.Response:
        """Cancel prompts of any batch by their ids.

        Args:
            request: `{"ids": [...]}`; ids that are not known are passed over.

        Returns:
            `{"cancelled": k}`, how many were still to be answered.

        Raises:
            RequestError: The body is not of that form.
        """
        ids = (await read_object(request)).get("ids")
        if not isinstance(ids, list) or not all(isinstance(one, str) for one in ids):
            raise RequestError(f"ids must be a list of str, got {ids!r:.80}.", "ids")
        return json_response({"cancelled": sum(map(self._cancel, dict.fromkeys(ids)))})

    def _cancel(self, name: str) -> bool:
        if name not in self._jobs:
            return False
        job = self._jobs[name]
        if job is not None:
            return self._scheduler.cancel(job)
        del self._jobs[name]
        return True


class _Batch:
    """The prompts of one request, and the lines that are ready to be sent."""

    def __init__(self, scheduler: Scheduler, jobs: dict[str, Job | None]) -> None:
        self._scheduler = scheduler
        self._jobs = jobs
        self._own: dict[str, Job] = {}
        self._announced: set[str] = set()
        self._lines: list[bytes] = []
        self._ready = asyncio.Event()

    async def answer(self, items: list[dict[str, object]], response: web.StreamResponse) -> None:
        # All at once, before the first turn of the loop: any of them may be cancelled from then on.
        self._announced = {str(item["id"]) for item in items} - self._jobs.keys()
        self._jobs.update(dict.fromkeys(self._announced))
        for position, item in enumerate(items):
            self._submit(item)
            if position % _PROMPTS_PER_TURN == _PROMPTS_PER_TURN - 1:
                await asyncio.sleep(0)
        while self._own or self._lines:
            if not self._lines:
                self._ready.clear()
                await self._ready.wait()
            lines, self._lines = self._lines, []
            await response.write(b"".join(lines))

    def close(self) -> None:
        """End what nobody listens to any more."""
        for name in self._announced:
            self._jobs.pop(name, None)
        for job in list(self._own.values()):
            self._scheduler.cancel(job)

    def _submit(self, item: dict[str, object]) -> None:
        name = str(item["id"])
        try:
            self._claim(name)
            text, sampling, stream = _read_item(item)

            def on_delta(index: int, piece: str) -> None:
                self._send({"id": name, "type": "delta", "index": index, "text": piece})

            def on_end(job: Job) -> None:
                del self._own[name], self._jobs[name]
                self._send(_last_line(name, job))

            job = self._scheduler.submit(text, sampling, on_end, on_delta if stream else None)
            self._own[name] = self._jobs[name] = job
        except RequestError as error:
            self._send(_error_line(name, error))

    def _claim(self, name: str) -> None:
        if name in self._announced:
            self._announced.remove(name)
            if name not in self._jobs:
                raise RequestError("The request was cancelled.", code=499)
            del self._jobs[name]
        elif name in self._jobs:
            raise RequestError(f"A prompt with the id {name!r} is being answered.", "id")

    def _send(self, line: dict[str, object]) -> None:
        self._lines.append(dumps(line) + b"\n")
        self._ready.set()


def _items(body: dict[str, object]) -> list[dict[str, object]]:
    for name in body:
        if name != "prompts":
            raise RequestError(f"Unknown field {name!r}, expected only 'prompts'.", name)
    items = body.get("prompts")
    if not isinstance(items, list):
        raise RequestError(f"prompts must be a list, got {items!r:.80}.", "prompts")
    for position, item in enumerate(items):
        # Without an id there is no line to put an error on: the whole batch is refused.
        if not isinstance(item, dict) or not isinstance(item.get("id"), str):
            where = f"prompts[{position}]"
            raise RequestError(f"{where} must be an object with a str id, got {item!r:.80}.", where)
    return items


def _read_item(item: dict[str, object]) -> tuple[str, Sampling, bool]:
    """Check one prompt: its text as the model reads it, its parameters, whether it streams."""
    for name in item:
        if name not in _FIELDS:
            expected = ", ".join(sorted(_FIELDS))
            raise RequestError(f"Unknown field {name!r}, expected: {expected}.", name)
    prompt, messages = item.get("prompt"), item.get("messages")
    if (prompt is None) == (messages is None):
        raise RequestError("Exactly one of prompt and messages must be given.", "prompt")
    if prompt is not None and not isinstance(prompt, str):
        raise RequestError(f"prompt must be a str, got {prompt!r:.80}.", "prompt")
    values = item.get("sampling")
    if values is not None and not isinstance(values, dict):
        raise RequestError(f"sampling must be an object, got {values!r:.80}.", "sampling")
    stream = item.get("stream")
    if stream is not None and not isinstance(stream, bool):
        raise RequestError(f"stream must be true or false, got {stream!r:.80}.", "stream")
    text = render_chat(messages) if prompt is None else render_prompt(prompt)
    return text, Sampling.parse(values or {}), bool(stream)


def _last_line(name: str, job: Job) -> dict[str, object]:
    if job.error is not None:
        return _error_line(name, job.error)
    return {
        "id": name,
        "type": "done",
        "texts": job.texts,
        "finish_reasons": job.finish_reasons,
        "usage": job.usage,
    }


def _error_line(name: str, error: RequestError) -> dict[str, object]:
    return {
        "id": name,
        "type": "error",
        "message": error.message,
        "param": error.param,
        "code": error.code,
        "kind": error.kind,
    }
