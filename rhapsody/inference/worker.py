"""The batch route inside a vLLM server: `--middleware rhapsody.inference.worker.BatchRoute`.

Many prompts in one request, each answered on a line of its own as soon as it is ready. The prompts
go to the server's own engine, all at once; everything else is left to vLLM. On every path the
secret of the replica is asked for, since vLLM's own key guards some paths only.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import os
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from contextlib import aclosing
from typing import Any

from rhapsody.inference.batch_call import CANCEL_PATH, LIMIT_PATH, PATH
from rhapsody.inference.vllm.answers import Answers, Event, Prepared, error_event
from rhapsody.inference.vllm.versions import is_engine_dead

__all__ = ["BatchRoute"]

logger = logging.getLogger("vllm.rhapsody")  # vLLM configures what is below its own name

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

KEY_VARIABLE = "RHAPSODY_REPLICA_KEY"
KEY_HEADER = b"x-rhapsody-key"
HANG_VARIABLE = "RHAPSODY_HANG_SECONDS"
MAX_BODY_BYTES = 64 * 1024 * 1024
ENGINE_DEAD_EXIT = 70
CANCELLED = {"message": "The request was cancelled.", "param": None, "code": 499}


class BatchRoute:
    """The middleware, an ASGI application around vLLM's own.

    Args:
        app: What answers all other paths.
    """

    def __init__(self, app: App) -> None:
        self._app = app
        self._key = os.environ.pop(KEY_VARIABLE, "").encode()
        self._prompts: dict[str, asyncio.Task[None] | None] = {}
        """By id; None is announced by a batch that is still being taken in."""
        self._answers: Answers | None = None
        self._making = asyncio.Lock()
        self._patience = float(os.environ.pop(HANG_VARIABLE, "inf"))
        self._reaction: asyncio.Future[Any] | None = None
        self._asked = 0.0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or pass it on."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif not self._may_enter(scope):
            await _refuse(scope, receive, send)
        elif scope["type"] == "http" and scope["path"] in (PATH, CANCEL_PATH):
            await self._answer(scope, receive, send)
        elif scope["type"] == "http" and scope["path"] == "/health" and self._hangs(scope):
            text = f"the engine has not reacted for {self._patience:g} s"
            await _send_json(send, 503, _error(503, "ServiceUnavailable", text))
        elif scope["type"] == "http" and scope["path"] == LIMIT_PATH:
            config = scope["app"].state.engine_client.vllm_config.scheduler_config
            await _send_json(send, 200, {"max_num_seqs": config.max_num_seqs})
        else:
            await self._app(scope, receive, send)

    def _may_enter(self, scope: Scope) -> bool:
        given = dict(scope["headers"]).get(KEY_HEADER, b"")
        return bool(self._key) and hmac.compare_digest(given, self._key)

    def _hangs(self, scope: Scope) -> bool:
        """Say whether the engine's process has stopped to react; vLLM looks only if it has died.

        It is asked something at every check of the server's health, while no answer is due.
        """
        now = asyncio.get_running_loop().time()
        if self._reaction is None or self._reaction.done():
            if self._reaction is not None and not self._reaction.cancelled():
                self._reaction.exception()  # a reaction as well; a dead engine is seen by vLLM
            engine = scope["app"].state.engine_client
            self._reaction = asyncio.ensure_future(engine.is_sleeping())
            self._asked = now
        return now - self._asked > self._patience

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] != "POST":
            await _send_json(send, 405, _error(405, "MethodNotAllowedError", "use POST"))
            return
        try:
            body = await _read_body(receive)
            if scope["path"] == CANCEL_PATH:
                await _send_json(send, 200, {"cancelled": self._cancel(_ids_of(body))})
                return
            items = _items_of(body)
        except ValueError as error:
            await _send_json(send, 400, _error(400, "BadRequestError", str(error)))
            return
        if self._answers is None:
            async with self._making:
                self._answers = self._answers or await Answers.of(scope["app"].state)
        batch = _Batch(self._answers, self._prompts)
        answering = asyncio.ensure_future(batch.answer(items, send))
        leaving = asyncio.ensure_future(_until_gone(receive))
        try:
            await asyncio.wait([answering, leaving], return_when="FIRST_COMPLETED")
        finally:
            leaving.cancel()
            answering.cancel()
            await asyncio.wait([leaving, answering])
            await batch.close()
        if not answering.cancelled():
            answering.result()

    def _cancel(self, ids: list[str]) -> int:
        cancelled = 0
        for name in dict.fromkeys(ids):
            if name in self._prompts:
                task = self._prompts[name]
                if task is None:
                    del self._prompts[name]
                else:
                    task.cancel()
                cancelled += 1
        return cancelled


class _Batch:
    """The prompts of one request, and the lines that are ready to be sent."""

    def __init__(self, answers: Answers, prompts: dict[str, asyncio.Task[None] | None]) -> None:
        self._answers = answers
        self._prompts = prompts
        self._announced: set[str] = set()
        self._own: set[asyncio.Task[None]] = set()
        self._lines: list[bytes] = []
        self._ready = asyncio.Event()

    async def answer(self, items: list[Mapping[str, Any]], send: Send) -> None:
        # All at once, before the first turn of the loop: any may be cancelled from then on.
        self._announced = {str(item["id"]) for item in items} - self._prompts.keys()
        self._prompts.update(dict.fromkeys(self._announced))
        headers = [(b"content-type", b"application/x-ndjson")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        taking_in = asyncio.ensure_future(self._take_in(items))
        taking_in.add_done_callback(lambda _: self._ready.set())
        try:
            while self._own or self._lines or not taking_in.done():
                if not self._lines:
                    self._ready.clear()
                    await self._ready.wait()
                lines, self._lines = self._lines, []
                if lines:
                    await _send_body(send, b"".join(lines), more=True)
        finally:
            taking_in.cancel()
            await asyncio.wait([taking_in])
        taking_in.result()
        await _send_body(send, b"", more=False)

    async def _take_in(self, items: list[Mapping[str, Any]]) -> None:
        names = iter([str(item["id"]) for item in items])
        async with aclosing(self._answers.prepare(items)) as parts:
            async for part in parts:
                for prepared in part:
                    self._begin(next(names), prepared)

    def _begin(self, name: str, prepared: Prepared | Exception) -> None:
        if name not in self._announced:
            text = f"a prompt with the id {name!r} is being answered"
            self._put({"id": name, "type": "error", **CANCELLED, "message": text, "kind": "Id"})
            return
        self._announced.discard(name)
        if name not in self._prompts:
            self._put_cancelled(name)
        elif isinstance(prepared, Exception):
            del self._prompts[name]
            self._put(error_event(name, prepared))
        else:
            task = asyncio.get_running_loop().create_task(self._generate(name, prepared))
            self._prompts[name] = task
            self._own.add(task)
            task.add_done_callback(lambda _: self._ended(name, task))

    async def _generate(self, name: str, prepared: Prepared) -> None:
        try:
            async with aclosing(self._answers.events(name, prepared)) as events:
                async for event in events:
                    self._put(event)
        except Exception as error:
            if is_engine_dead(error):
                # Nothing is said of this prompt, so it goes to another replica; and this one is
                # replaced sooner than by vLLM's own watch, which looks every five seconds.
                logger.critical("the engine is dead, ending: %s", error)
                logging.shutdown()
                os._exit(ENGINE_DEAD_EXIT)
            self._put(error_event(name, error))

    def _ended(self, name: str, task: asyncio.Task[None]) -> None:
        self._own.discard(task)
        self._prompts.pop(name, None)
        if task.cancelled():
            self._put_cancelled(name)
        self._ready.set()

    def _put_cancelled(self, name: str) -> None:
        self._put({"id": name, "type": "error", **CANCELLED, "kind": "Cancelled"})

    def _put(self, event: Event) -> None:
        self._lines.append(json.dumps(event, separators=(",", ":")).encode("ascii") + b"\n")
        self._ready.set()

    async def close(self) -> None:
        """End what nobody listens to any more."""
        for name in self._announced:
            self._prompts.pop(name, None)
        for task in self._own:
            task.cancel()
        if self._own:
            await asyncio.wait(self._own)


async def _read_body(receive: Receive) -> dict[str, Any]:
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ValueError("the connection was closed before the whole body had come")
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > MAX_BODY_BYTES:
            raise ValueError(f"the body is larger than {MAX_BODY_BYTES} bytes")
        if not message.get("more_body", False):
            break
    loads = json.loads
    data = b"".join(parts)
    body = await asyncio.to_thread(loads, data) if size > 1024 * 1024 else loads(data)
    if not isinstance(body, dict):
        raise ValueError("the body must be a JSON object")
    return body


def _items_of(body: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    items = body.get("prompts")
    if not isinstance(items, list):
        raise ValueError(f"prompts must be a list, not {items!r:.80}")
    for position, item in enumerate(items):
        # Without an id there is no line to put an error on: the whole batch is refused.
        if not isinstance(item, dict) or not isinstance(item.get("id"), str):
            raise ValueError(f"prompts[{position}] must be an object with a str id")
    return items


def _ids_of(body: Mapping[str, Any]) -> list[str]:
    ids = body.get("ids")
    if not isinstance(ids, list) or not all(isinstance(one, str) for one in ids):
        raise ValueError(f"ids must be a list of str, not {ids!r:.80}")
    return ids


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _refuse(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.close", "code": 1008})
        return
    await _send_json(send, 401, _error(401, "AuthenticationError", "a valid key is required"))


def _error(code: int, kind: str, message: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


async def _send_json(send: Send, status: int, body: Mapping[str, Any]) -> None:
    headers = [(b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await _send_body(send, json.dumps(body).encode("ascii"), more=False)


async def _send_body(send: Send, body: bytes, *, more: bool) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": more})
