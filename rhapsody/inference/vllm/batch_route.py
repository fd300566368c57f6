"""The batch route in a vLLM server: `--middleware rhapsody.inference.vllm.batch_route.BatchRoute`.

A batch request hands many prompts to the server's own engine at once and streams their events as
they happen; vLLM serves everything else. Every path requires the replica's key, since vLLM's own
key protects only some of them.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import os
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from contextlib import aclosing
from functools import partial
from typing import Any

from rhapsody.inference.protocol.batch import (
    BATCH_PATH,
    CANCEL_PATH,
    LIMIT_PATH,
    WEIGHTS_PATH,
    EventBuffer,
    duplicate_id,
    error_event,
    ids_of,
    prompts_of,
)
from rhapsody.inference.protocol.errors import RequestError, error_body
from rhapsody.inference.protocol.process import (
    HANG_VARIABLE,
    KEY_HEADER,
    KEY_VARIABLE,
    MAX_BODY_BYTES,
    missing_key,
)
from rhapsody.inference.vllm.engine_adapter import AnyPrepared, EngineAdapter, request_error
from rhapsody.inference.vllm.own_route import ask_route
from rhapsody.inference.vllm.versions import ai_kinds, is_engine_dead
from rhapsody.inference.vllm.weights import load_weights

__all__ = ["BatchRoute"]

logger = logging.getLogger("vllm.rhapsody")  # vLLM configures only loggers below its own name

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

HEADER = KEY_HEADER.lower().encode()  # ASGI: header names are bytes in lower case
ENGINE_DEAD_EXIT = 70
LARGE_BODY_BYTES = 1024 * 1024
"""A larger body is decoded in a thread."""


class BatchRoute:
    """The middleware, an ASGI application around vLLM's own.

    Args:
        app: The application that serves all other paths.
    """

    def __init__(self, app: App) -> None:
        self._app = app
        self._key = os.environ.pop(KEY_VARIABLE, "").encode()
        self._prompts: dict[str, asyncio.Task[None] | None] = {}
        """By id. None: announced by a batch that is still being prepared."""
        self._engine: EngineAdapter | None = None
        self._engine_lock = asyncio.Lock()
        self._hang_seconds = float(os.environ.pop(HANG_VARIABLE, "inf"))
        self._probe: asyncio.Future[Any] | None = None
        self._probed_at = 0.0
        self._reloading = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request, or pass it on."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif not self._has_key(scope):
            await _refuse(scope, receive, send)
        elif scope["type"] == "http" and scope["path"] in (BATCH_PATH, CANCEL_PATH):
            await self._serve(scope, receive, send)
        elif scope["type"] == "http" and scope["path"] == WEIGHTS_PATH:
            await self._reload(scope, receive, send)
        elif scope["type"] == "http" and scope["path"] == "/health" and self._hangs(scope):
            text = f"The engine has not reacted for {self._hang_seconds:g} s."
            await _send_error(send, RequestError(text, code=503))
        elif scope["type"] == "http" and scope["path"] == LIMIT_PATH:
            engine = scope["app"].state.engine_client
            limit = engine.vllm_config.scheduler_config.max_num_seqs
            kinds, _ = await ai_kinds(engine)
            await _send_json(send, 200, {"max_num_seqs": limit, "kinds": kinds})
        else:
            await self._app(scope, receive, send)

    def _has_key(self, scope: Scope) -> bool:
        given = dict(scope["headers"]).get(HEADER, b"")
        return bool(self._key) and hmac.compare_digest(given, self._key)

    def _hangs(self, scope: Scope) -> bool:
        """Return whether the engine's process has stopped reacting; vLLM notices only its death.

        Each health check sends a probe to the engine unless one is still pending.
        """
        now = asyncio.get_running_loop().time()
        if self._reloading:  # the engine reacts only afterwards
            self._probed_at = now
            return False
        if self._probe is None or self._probe.done():
            if self._probe is not None and not self._probe.cancelled():
                self._probe.exception()  # an error is a reaction too; vLLM notices a dead engine
            engine = scope["app"].state.engine_client
            self._probe = asyncio.ensure_future(engine.is_sleeping())
            self._probed_at = now
        return now - self._probed_at > self._hang_seconds

    async def _reload(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._reloading = True
        try:
            path = (await _read_body(receive)).get("path")
            if not isinstance(path, str):
                raise RequestError(f"path must be a str, got {path!r:.80}.", "path")
            await load_weights(scope["app"].state.engine_client, path)
        except RequestError as error:
            await _send_error(send, error)
        except Exception as error:
            logger.exception("the weights of %s were not loaded", path)
            await _send_error(send, RequestError(f"{type(error).__name__}: {error}", code=500))
        else:
            await _send_json(send, 200, {})
        finally:
            self._reloading = False

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] != "POST":
            await _send_error(send, RequestError("The method must be POST.", code=405))
            return
        try:
            body = await _read_body(receive)
            if scope["path"] == CANCEL_PATH:
                await _send_json(send, 200, {"cancelled": self._cancel(ids_of(body))})
                return
            items = prompts_of(body)
        except RequestError as error:
            await _send_error(send, error)
            return
        if self._engine is None:
            async with self._engine_lock:
                ask = partial(ask_route, self._app, scope)
                self._engine = self._engine or await EngineAdapter.of(scope["app"].state, ask)
        run = _BatchRun(self._engine, self._prompts)
        streaming = asyncio.ensure_future(run.stream(items, send))
        disconnect = asyncio.ensure_future(_wait_disconnect(receive))
        try:
            await asyncio.wait([streaming, disconnect], return_when="FIRST_COMPLETED")
        finally:
            disconnect.cancel()
            streaming.cancel()
            await asyncio.wait([disconnect, streaming])
            await run.close()
        if not streaming.cancelled():
            streaming.result()

    def _cancel(self, ids: list[str]) -> int:
        cancelled = 0
        for prompt_id in ids:
            if prompt_id in self._prompts:
                task = self._prompts[prompt_id]
                if task is None:
                    del self._prompts[prompt_id]
                else:
                    task.cancel()
                cancelled += 1
        return cancelled


class _BatchRun:
    """The prompts of one request in progress, and their events that are not sent yet."""

    def __init__(
        self, engine: EngineAdapter, prompts: dict[str, asyncio.Task[None] | None]
    ) -> None:
        self._engine = engine
        self._prompts = prompts
        self._announced: set[str] = set()
        self._own: set[asyncio.Task[None]] = set()
        self._events = EventBuffer()

    async def stream(self, items: list[dict[str, Any]], send: Send) -> None:
        # All ids at once, before the loop runs: from then on any prompt may be cancelled.
        self._announced = {str(item["id"]) for item in items} - self._prompts.keys()
        self._prompts.update(dict.fromkeys(self._announced))
        headers = [(b"content-type", b"application/x-ndjson")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        submitting = asyncio.ensure_future(self._submit(items))
        submitting.add_done_callback(lambda _: self._events.wake())
        try:
            while self._own or self._events or not submitting.done():
                if lines := await self._events.take():
                    await _send_body(send, lines, more=True)
        finally:
            submitting.cancel()
            await asyncio.wait([submitting])
        submitting.result()
        await _send_body(send, b"", more=False)

    async def _submit(self, items: list[dict[str, Any]]) -> None:
        async with aclosing(self._engine.prepare(items)) as parts:
            async for part in parts:
                for position, prepared in part:
                    self._begin(str(items[position]["id"]), prepared)

    def _begin(self, prompt_id: str, prepared: AnyPrepared | Exception) -> None:
        if prompt_id not in self._announced:
            self._events.put(error_event(prompt_id, duplicate_id(prompt_id)))
            return
        self._announced.discard(prompt_id)
        if prompt_id not in self._prompts:
            self._events.put(error_event(prompt_id, RequestError.cancelled()))
        elif isinstance(prepared, Exception):
            del self._prompts[prompt_id]
            self._events.put(error_event(prompt_id, request_error(prepared)))
        else:
            task = asyncio.get_running_loop().create_task(self._generate(prompt_id, prepared))
            self._prompts[prompt_id] = task
            self._own.add(task)
            task.add_done_callback(lambda _: self._on_end(prompt_id, task))

    async def _generate(self, prompt_id: str, prepared: AnyPrepared) -> None:
        try:
            async with aclosing(self._engine.events(prompt_id, prepared)) as events:
                async for event in events:
                    await self._events.wait_room()
                    self._events.put(event)
        except Exception as error:
            if is_engine_dead(error):
                # Without a last event the prompt goes to another replica. Exiting here restarts
                # this one earlier than vLLM's own check, which runs every five seconds.
                logger.critical("the engine is dead, the server exits: %s", error)
                logging.shutdown()
                os._exit(ENGINE_DEAD_EXIT)
            self._events.put(error_event(prompt_id, request_error(error)))

    def _on_end(self, prompt_id: str, task: asyncio.Task[None]) -> None:
        self._own.discard(task)
        self._prompts.pop(prompt_id, None)
        if task.cancelled():
            self._events.put(error_event(prompt_id, RequestError.cancelled()))
        self._events.wake()

    async def close(self) -> None:
        """Cancel the prompts that are still in progress: their client has disconnected."""
        for prompt_id in self._announced:
            self._prompts.pop(prompt_id, None)
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
            raise RequestError("The connection was closed before the end of the body.")
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > MAX_BODY_BYTES:
            raise RequestError(f"The body is larger than {MAX_BODY_BYTES} bytes.")
        if not message.get("more_body", False):
            break
    data = b"".join(parts)
    try:
        body = (
            await asyncio.to_thread(json.loads, data)
            if size > LARGE_BODY_BYTES
            else json.loads(data)
        )
    except ValueError as error:
        raise RequestError(f"The body is not JSON: {error}.") from None
    if not isinstance(body, dict):
        raise RequestError(f"The body must be a JSON object, got {type(body).__name__}.")
    return body


async def _wait_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _refuse(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.close", "code": 1008})
        return
    await _send_error(send, missing_key())


async def _send_error(send: Send, error: RequestError) -> None:
    await _send_json(send, error.code, error_body(error))


async def _send_json(send: Send, status: int, body: Mapping[str, Any]) -> None:
    headers = [(b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await _send_body(send, json.dumps(body).encode("ascii"), more=False)


async def _send_body(send: Send, body: bytes, *, more: bool) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": more})
