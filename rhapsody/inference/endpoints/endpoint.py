"""One endpoint: its requests, and when it takes no more of them."""

from __future__ import annotations

import email.utils
import json
import logging
import math
import random
import time
from collections.abc import Mapping
from typing import Any, NoReturn

import aiohttp

from rhapsody.errors import PromptError
from rhapsody.inference.endpoints.messages import (
    Broken,
    NoEvents,
    chat_body,
    completion_body,
    completion_of,
    error_in,
    error_of,
    logprobs_of,
    numbers_of,
    pooling_body,
    stream_events,
    usage_of,
)
from rhapsody.inference.endpoints.request import (
    MAX_RESPONSE_BYTES,
    EndpointFailed,
    Request,
    read_lines,
)
from rhapsody.inference.kinds import EMBED, SCORE, ChatTurn, PoolingInput
from rhapsody.inference.prompts import Completion, Prompt, PromptRequest, as_messages

__all__ = ["Endpoint", "EndpointBusy", "EndpointFailed"]

logger = logging.getLogger(__name__)

ERROR_BYTES = 64 * 1024
"""How much of an error's body is read."""
FAILURES_IN_A_ROW = 5
"""After so many, an endpoint gets one request at a time, after a pause, until one succeeds."""
FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 30.0
SHORTEST_RETRY_AFTER_SECONDS = 0.25
"""A server that names no time, or one that is over, would get thousands of requests a second."""
LONGEST_RETRY_AFTER_SECONDS = 120.0
BUSY_STATUSES = (408, 409, 425, 429, 503)
KEY_STATUSES = (401, 403)


class EndpointBusy(Exception):
    """The endpoint asks to send the request later."""


class Endpoint:
    """An OpenAI-compatible server.

    Args:
        index: Its number, from 0.
        url: Its base URL, such as "http://host:8000/v1".
        key: Its key, if it needs one.
        max_concurrency: Maximum number of requests at a time.
        request_timeout: Longest time for a response, in seconds; for a stream, between two pieces.
        chat: Whether a prompt that is a text is sent as a chat.
        proxy: URL of a proxy.
    """

    def __init__(
        self,
        index: int,
        url: str,
        key: str | None,
        *,
        max_concurrency: int,
        request_timeout: float,
        chat: bool,
        proxy: str | None,
    ) -> None:
        self.index = index
        self.url = url
        self.in_flight = 0
        self.completed = 0
        self.problem: str | None = None
        """Why the last request failed; None after a success."""
        self.not_before = 0.0
        """Time, by `time.monotonic`, from which it takes requests again."""
        self._failures = 0
        self._max_concurrency = max_concurrency
        self._chat = chat
        self._proxy = proxy
        self._timeout = request_timeout
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            headers={"Authorization": f"Bearer {key}"} if key else {},
        )

    async def close(self) -> None:
        """Close its connections."""
        await self._session.close()

    def take_out(self, problem: str) -> None:
        """Send it one request at a time, after pauses, until one succeeds."""
        self.problem = problem
        self._failures = FAILURES_IN_A_ROW
        self._pause(FIRST_PAUSE_SECONDS)

    @property
    def room(self) -> int:
        """How many requests it takes now."""
        if time.monotonic() < self.not_before:
            return 0
        limit = 1 if self._failures >= FAILURES_IN_A_ROW else self._max_concurrency
        return max(limit - self.in_flight, 0)

    @property
    def state(self) -> str:
        """READY, PAUSED (it asked for a pause), or FAILED (it failed several times in a row)."""
        if self._failures >= FAILURES_IN_A_ROW:
            return "FAILED"
        return "PAUSED" if time.monotonic() < self.not_before else "READY"

    def as_dict(self) -> dict[str, Any]:
        """Return its state for statistics."""
        return {
            "index": self.index,
            "address": self.url,
            "state": self.state,
            "in_flight": self.in_flight,
            "completed": self.completed,
            "problem": self.problem,
        }

    async def models(self) -> list[str] | None:
        """Return the names of its models; None if it does not list them.

        Raises:
            EndpointFailed: It cannot be reached, or it refuses the key.
        """
        try:
            body = await self._read(f"{self.url}/models", None)
        except (PromptError, EndpointBusy):
            return None
        data = body.get("data") if isinstance(body, dict) else None
        if not isinstance(data, list):
            return None
        return [
            one["id"] for one in data if isinstance(one, dict) and isinstance(one.get("id"), str)
        ]

    async def complete(
        self,
        model: str,
        prompt: Prompt,
        system_prompt: str | None,
        sampling: Mapping[str, Any],
        request: PromptRequest,
    ) -> Completion:
        """Complete one prompt with one request.

        Args:
            model: Name of the model.
            prompt: A text, chat messages, or an input of another kind.
            system_prompt: The system message before it.
            sampling: The sampling parameters.
            request: Gets the pieces of a streamed response.

        Raises:
            EndpointBusy: It asks to come later; its pause has begun.
            EndpointFailed: It did not answer, or not with a completion.
            PromptError: It refuses the prompt.
        """
        if isinstance(prompt, PoolingInput):
            url, body = self._pooling_url(prompt.kind), pooling_body(model, prompt)
        elif isinstance(prompt, ChatTurn):
            url = f"{self.url}/chat/completions"
            body = chat_body(model, prompt.messages, prompt.options)
        elif isinstance(prompt, str) and system_prompt is None and not self._chat:
            url, body = f"{self.url}/completions", completion_body(model, prompt, sampling)
        else:
            messages = as_messages(prompt, system_prompt)["messages"]
            messages = messages or [{"role": "user", "content": prompt}]
            url, body = f"{self.url}/chat/completions", chat_body(model, messages, sampling)
        try:
            data = json.dumps(body).encode()
        except (TypeError, ValueError, RecursionError) as error:
            raise PromptError(
                f"the prompt or its parameters cannot be sent as JSON: {error}", 400
            ) from error
        try:
            if request.body["stream"]:
                completion = await self._stream(url, body, request)
            elif isinstance(prompt, PoolingInput):
                completion = numbers_of(prompt.kind, await self._read_numbers(prompt.kind, data))
            else:
                completion = completion_of(await self._read(url, data), sampling.get("n") or 1)
        except Broken as error:
            failure = EndpointFailed(f"it sent {error}")
            self._record_failure(failure)
            raise failure from None
        except EndpointFailed as error:
            self._record_failure(error)
            raise
        self._failures, self.problem = 0, None
        self.completed += 1
        return completion

    def _pooling_url(self, kind: str) -> str:
        if kind in (EMBED, SCORE):
            return f"{self.url}/{'embeddings' if kind == EMBED else 'score'}"
        return f"{self.url.removesuffix('/v1')}/classify"  # vLLM has it outside /v1 only

    async def _read_numbers(self, kind: str, data: bytes) -> Any:
        url = self._pooling_url(kind)
        try:
            return await self._read(url, data)
        except PromptError as error:
            if error.code not in (404, 405, 501):
                raise
            raise PromptError(
                f"{url} does not exist, or its model does not take AI tasks of kind '{kind}' "
                f"({error}); use a server with such a model",
                error.code,
                error.kind,
            ) from error

    async def _read(self, url: str, data: bytes | None) -> Any:
        """Send a request and return the JSON value of its response."""
        async with self._requested(url, data) as response:
            await self._check(response)
            parts, size = [], 0
            async for part in response.content.iter_any():
                size += len(part)
                if size > MAX_RESPONSE_BYTES:
                    raise EndpointFailed(f"its response is larger than {MAX_RESPONSE_BYTES} bytes")
                parts.append(part)
        return self._value_of(b"".join(parts), response)

    def _value_of(self, text: bytes, response: aiohttp.ClientResponse) -> Any:
        """Return the JSON value of a response. Some servers report errors with the status 200."""
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            raise EndpointFailed(
                f"it answered with {response.content_type} instead of JSON "
                f"({' '.join(text[:80].decode(errors='replace').split())!r}); is "
                f"{self.url} the base URL of an OpenAI-compatible server? It usually ends in /v1"
            ) from None
        if isinstance(value, dict) and value.get("error"):
            self._refuse(error_in(value), response)
        return value

    async def _stream(self, url: str, body: dict[str, Any], request: PromptRequest) -> Completion:
        body = {**body, "stream": True, "stream_options": {"include_usage": True}}
        pieces: list[str] = []
        reason: str | None = None
        usage: Any = None
        logprobs: list[dict[str, Any]] = []
        async with self._requested(url, json.dumps(body).encode(), stream=True) as response:
            await self._check(response)
            try:
                async for event in stream_events(read_lines(response.content, self._timeout)):
                    if event.get("error"):
                        self._refuse(error_in(event), response)
                    usage = event.get("usage") or usage
                    for choice in event.get("choices") or []:
                        text, ended = _piece_of(choice)
                        reason = ended or reason
                        logprobs += logprobs_of(choice) or []
                        if text:
                            pieces.append(text)
                            request.add_piece(text)
            except NoEvents as whole:  # the server does not stream, or reports an error
                completion = completion_of(self._value_of(whole.text, response), 1)
                request.add_piece(completion.texts[0])
                return completion
        if reason is None:
            raise EndpointFailed("its streamed response ended early")
        found = [logprobs] if logprobs else None
        return Completion(["".join(pieces)], [reason], usage_of(usage), found)

    def _requested(self, url: str, data: bytes | None, stream: bool = False) -> Request:
        return Request(self._session, self._proxy, url, data, self._timeout, stream)

    async def _check(self, response: aiohttp.ClientResponse) -> None:
        """Raise the error that a response's status means."""
        status = response.status
        if 200 <= status < 300:
            return
        if 300 <= status < 400:
            raise EndpointFailed(f"it redirects to {response.headers.get('Location', '?')!r:.200}")
        text = (await response.content.read(ERROR_BYTES)).decode(errors="replace")
        self._refuse(error_of(status, text), response)

    def _refuse(self, error: PromptError, response: aiohttp.ClientResponse) -> NoReturn:
        """Raise what an error of the server means."""
        status, shown = error.code, f"(HTTP {response.status})"
        if status in BUSY_STATUSES:
            self._pause(_retry_after(response.headers.get("Retry-After")))
            self.problem = f"it is busy {shown}: {error}"
            raise EndpointBusy(self.problem)
        if status in KEY_STATUSES:
            raise EndpointFailed(f"it refuses the key {shown}: {error}")
        if status >= 500:
            raise EndpointFailed(f"it failed {shown}: {error}")
        raise error

    def _pause(self, seconds: float | None) -> None:
        if seconds is None:
            seconds = FIRST_PAUSE_SECONDS * random.uniform(0.5, 1.5)
        self.not_before = max(self.not_before, time.monotonic() + seconds)

    def _record_failure(self, error: EndpointFailed) -> None:
        self._failures += 1
        self.problem = str(error)
        over = self._failures - FAILURES_IN_A_ROW
        if over >= 0:
            pause = min(FIRST_PAUSE_SECONDS * 2.0 ** min(over, 10), LONGEST_PAUSE_SECONDS)
            self._pause(pause)
            logger.warning(
                "endpoint %s failed %d times in a row and pauses for %.1f s: %s",
                self.url,
                self._failures,
                pause,
                error,
            )


def _piece_of(choice: Any) -> tuple[str, str | None]:
    """Return the text and the finish reason of one choice of an event."""
    if not isinstance(choice, dict) or choice.get("index") not in (0, None):
        return "", None
    delta = choice.get("delta")
    text = delta.get("content") if isinstance(delta, dict) else choice.get("text")
    reason = choice.get("finish_reason")
    return text if isinstance(text, str) else "", str(reason) if reason else None


def _retry_after(value: str | None) -> float | None:
    """Return the seconds of a Retry-After header: a number or a date; None if there is none."""
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
        except (TypeError, ValueError):
            return None
    if math.isnan(seconds):
        return None
    return min(max(seconds, SHORTEST_RETRY_AFTER_SECONDS), LONGEST_RETRY_AFTER_SECONDS)
