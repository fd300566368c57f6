"""The client's side of the batch route: prompts encoded as requests, lines decoded as events."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Iterable
from typing import Any

import aiohttp

from rhapsody.errors import PromptError
from rhapsody.inference.pacing import Pace
from rhapsody.inference.prompts import PromptRequest

__all__ = ["read_events", "split_batch"]

MAX_REQUEST_BYTES = 16 * 1024 * 1024
"""Bytes of prompts in one request, unless a single prompt is larger; servers accept 64 MiB."""
BYTES_PER_UNIT = 4096
"""Bytes of prompts whose encoding takes as long as a unit of a `Pace`."""

EncodedRequest = tuple[bytes, list[PromptRequest]]
"""The body of a request to the batch route, and the prompts in it."""


async def split_batch(requests: Iterable[PromptRequest], pace: Pace) -> list[EncodedRequest]:
    """Encode prompts as requests to the batch route, as few as their sizes allow.

    Each prompt is encoded separately. So a prompt that cannot be encoded fails alone, and the loop
    runs in between. A thread would not help: encoding a whole batch holds the interpreter lock.

    Args:
        requests: The prompts. Those that are done are left out.
        pace: Bounds the work in one pass of the loop.
    """
    encoded: list[EncodedRequest] = []
    parts: list[bytes] = []
    prompts: list[PromptRequest] = []
    size = 0
    for request in requests:
        if request.done:
            continue
        try:
            data = json.dumps(request.body).encode("ascii")
        except (TypeError, ValueError, RecursionError) as error:
            text = f"the prompt or its parameters cannot be sent as JSON: {error}"
            request.fail(PromptError(text, 400, "BadRequestError"))
            continue
        if prompts and size + len(data) > MAX_REQUEST_BYTES:
            encoded.append((_body(parts), prompts))
            parts, prompts, size = [], [], 0
        parts.append(data)
        prompts.append(request)
        size += len(data)
        await pace.take(1 + len(data) // BYTES_PER_UNIT)
    if prompts:
        encoded.append((_body(parts), prompts))
    return encoded


def _body(parts: list[bytes]) -> bytes:
    return b'{"prompts": [' + b", ".join(parts) + b"]}"


async def read_events(
    content: aiohttp.StreamReader, pace: Pace
) -> AsyncGenerator[dict[str, Any], None]:
    """Yield the events of a response, one per line.

    Args:
        content: The body of the response.
        pace: Bounds how many events are passed on in one pass of the loop.

    Raises:
        aiohttp.ClientError: The connection was lost, or a line is not JSON.
    """
    parts: list[bytes] = []
    async for chunk in content.iter_any():
        parts.append(chunk)
        if b"\n" in chunk:  # chunks of a long line are joined only once
            *lines, rest = b"".join(parts).split(b"\n")
            parts = [rest]
            for line in lines:
                await pace.take(1 + len(line) // BYTES_PER_UNIT)
                try:
                    yield json.loads(line)
                except ValueError as error:
                    raise aiohttp.ClientPayloadError(f"not JSON: {line!r:.80}") from error
