"""The batch route of the embedded server: many prompts in one request, events as they happen."""

from __future__ import annotations

import asyncio
import logging

from aiohttp import web

from rhapsody.inference.embedded.chat import render_chat, render_prompt
from rhapsody.inference.embedded.http import json_response, read_object
from rhapsody.inference.embedded.openai_body import read_chat
from rhapsody.inference.embedded.pooling.work import PoolingWork
from rhapsody.inference.embedded.sampling import Sampling
from rhapsody.inference.embedded.scheduler import PromptScheduler, ScheduledPrompt
from rhapsody.inference.embedded.structure.tool_calls import CALLED, known_text, message_of
from rhapsody.inference.protocol.batch import (
    BATCH_PATH,
    CANCEL_PATH,
    Event,
    EventBuffer,
    delta_event,
    done_event,
    duplicate_id,
    error_event,
    ids_of,
    numbers_event,
    prompts_of,
)
from rhapsody.inference.protocol.errors import RequestError

__all__ = ["BatchRoutes"]

logger = logging.getLogger(__name__)

_FIELDS = frozenset(
    ("id", "prompt", "messages", "sampling", "stream", "order", "kind", "document", "options")
)
_PROMPTS_PER_TURN = 64


class BatchRoutes:
    """`POST /rhapsody/batch` and `POST /rhapsody/cancel`.

    Args:
        scheduler: Runs the prompts.
    """

    def __init__(self, scheduler: PromptScheduler) -> None:
        self._scheduler = scheduler
        # By id. None: announced by a batch that is still being submitted.
        self._prompts: dict[str, ScheduledPrompt | None] = {}

    def add_to(self, router: web.UrlDispatcher) -> None:
        """Add the routes.

        Args:
            router: The application's router.
        """
        router.add_post(BATCH_PATH, self.batch)
        router.add_post(CANCEL_PATH, self.cancel)

    async def batch(self, request: web.Request) -> web.StreamResponse:
        """Run a batch and stream its events; a client that disconnects cancels it.

        Args:
            request: A batch request, see `rhapsody.inference.protocol.batch`.

        Returns:
            The finished response.

        Raises:
            RequestError: The batch as a whole is malformed.
        """
        items = prompts_of(await read_object(request))
        response = web.StreamResponse()
        response.content_type = "application/x-ndjson"
        await response.prepare(request)
        run = _BatchRun(self._scheduler, self._prompts)
        try:
            await run.stream(items, response)
            await response.write_eof()
        except ConnectionResetError:
            pass  # the client has disconnected
        finally:
            run.close()
        return response

    async def cancel(self, request: web.Request) -> web.Response:
        """Cancel prompts of any batch by their ids.

        Args:
            request: `{"ids": [...]}`; unknown ids are ignored.

        Returns:
            `{"cancelled": k}`, the number of prompts that had not ended.

        Raises:
            RequestError: The body is malformed.
        """
        ids = ids_of(await read_object(request))
        return json_response({"cancelled": sum(map(self._cancel, ids))})

    def _cancel(self, prompt_id: str) -> bool:
        if prompt_id not in self._prompts:
            return False
        scheduled = self._prompts[prompt_id]
        if scheduled is not None:
            return self._scheduler.cancel(scheduled)
        del self._prompts[prompt_id]
        return True


class _BatchRun:
    """The prompts of one request in progress, and their events that are not sent yet."""

    def __init__(
        self, scheduler: PromptScheduler, prompts: dict[str, ScheduledPrompt | None]
    ) -> None:
        self._scheduler = scheduler
        self._prompts = prompts
        self._own: dict[str, ScheduledPrompt] = {}
        self._announced: set[str] = set()
        self._events = EventBuffer()

    async def stream(self, items: list[Event], response: web.StreamResponse) -> None:
        # All ids at once, before the loop runs: from then on any prompt may be cancelled.
        self._announced = {str(item["id"]) for item in items} - self._prompts.keys()
        self._prompts.update(dict.fromkeys(self._announced))
        for position, item in enumerate(items):
            self._submit(item)
            if position % _PROMPTS_PER_TURN == _PROMPTS_PER_TURN - 1:
                await asyncio.sleep(0)
        while self._own or self._events:
            await response.write(await self._events.take())

    def close(self) -> None:
        """Cancel the prompts that are still in progress: their client has disconnected."""
        for prompt_id in self._announced:
            self._prompts.pop(prompt_id, None)
        for scheduled in list(self._own.values()):
            self._scheduler.cancel(scheduled)

    def _submit(self, item: Event) -> None:
        prompt_id = str(item["id"])
        try:
            self._claim(prompt_id)
            _check_fields(item)
            if item.get("kind") == "chat":
                self._own[prompt_id] = self._prompts[prompt_id] = self._submit_chat(item)
                return
            if item.get("kind") not in (None, "generate"):
                self._own[prompt_id] = self._prompts[prompt_id] = self._submit_pooling(item)
                return
            text, sampling, stream, order = _read_item(item)

            def on_delta(index: int, text: str) -> None:
                self._events.put(delta_event(prompt_id, index, text))

            def on_end(scheduled: ScheduledPrompt) -> None:
                del self._own[prompt_id], self._prompts[prompt_id]
                self._events.put(_last_event(prompt_id, scheduled))

            scheduled = self._scheduler.submit(
                text, sampling, on_end, on_delta if stream else None, order
            )
            self._own[prompt_id] = self._prompts[prompt_id] = scheduled
        except RequestError as error:
            self._events.put(error_event(prompt_id, error))
        except Exception as error:  # the other prompts of the batch must not fail
            logger.exception("the model failed on a prompt")
            failure = RequestError(f"The model failed: {error!r:.200}", code=500)
            self._events.put(error_event(prompt_id, failure))

    def _submit_chat(self, item: Event) -> ScheduledPrompt:
        prompt_id, options = str(item["id"]), item.get("options") or {}
        if not isinstance(options, dict):
            raise RequestError(f"options must be an object, got {options!r:.80}.", "options")
        chat = read_chat({**options, "messages": item.get("messages")}, "")

        def on_end(scheduled: ScheduledPrompt) -> None:
            del self._own[prompt_id], self._prompts[prompt_id]
            event = _last_event(prompt_id, scheduled)
            if chat.calls and scheduled.error is None:
                event.update(texts=[""], finish_reasons=[CALLED], message=message_of(chat.calls))
            elif scheduled.error is None:
                event["message"] = {"role": "assistant", "content": scheduled.texts[0]}
            self._events.put(event)

        known = known_text(chat.calls)
        [prompt] = chat.prompts
        order = _order_of(item)
        return self._scheduler.submit(prompt, chat.sampling, on_end, None, order, known)

    def _submit_pooling(self, item: Event) -> ScheduledPrompt:
        prompt_id, model = str(item["id"]), self._scheduler.model
        work = PoolingWork(
            *(item.get("kind"), item.get("prompt"), item.get("document")),
            model.labels,
            model.max_model_len,
        )

        def on_end(scheduled: ScheduledPrompt) -> None:
            del self._own[prompt_id], self._prompts[prompt_id]
            error, usage = scheduled.error, scheduled.usage
            self._events.put(
                numbers_event(prompt_id, work.data, usage, work.labels)
                if error is None
                else error_event(prompt_id, error)
            )

        return self._scheduler.enqueue(
            ScheduledPrompt(work.length, [work], on_end), _order_of(item)
        )

    def _claim(self, prompt_id: str) -> None:
        if prompt_id in self._announced:
            self._announced.remove(prompt_id)
            if prompt_id not in self._prompts:
                raise RequestError.cancelled()
            del self._prompts[prompt_id]
        elif prompt_id in self._prompts:
            raise duplicate_id(prompt_id)


def _check_fields(item: Event) -> None:
    for name in item:
        if name not in _FIELDS:
            expected = ", ".join(sorted(_FIELDS))
            raise RequestError(f"Unknown field {name!r}, expected: {expected}.", name)


def _order_of(item: Event) -> int:
    order = item.get("order")
    if order is not None and not isinstance(order, int):
        raise RequestError(f"order must be an integer, got {order!r:.80}.", "order")
    return order or 0


def _read_item(item: Event) -> tuple[str, Sampling, bool, int]:
    """Check one prompt; return its text, its sampling, whether it streams, and its order."""
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
    return text, Sampling.parse(values or {}), bool(stream), _order_of(item)


def _last_event(prompt_id: str, scheduled: ScheduledPrompt) -> Event:
    if scheduled.error is not None:
        return error_event(prompt_id, scheduled.error)
    return done_event(prompt_id, scheduled.texts, scheduled.finish_reasons, scheduled.usage)
