"""The batch route as its caller sees it: prompts put into requests, lines read as events."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Iterable
from typing import Any

import aiohttp

from rhapsody.api.errors import PromptError
from rhapsody.inference.prompts import PromptRequest

__all__ = ["CANCEL_PATH", "LIMIT_PATH", "PATH", "Post", "events", "posts_of"]

PATH = "/rhapsody/batch"
CANCEL_PATH = "/rhapsody/cancel"
LIMIT_PATH = "/rhapsody/limit"
"""Says how many prompts a server works on at a time, where only the server knows."""
LARGEST_POST = 16 * 1024 * 1024
"""Bytes of prompts in one request, unless a single one has more; servers take 64 MiB."""
BYTES_PER_TURN = 256 * 1024

Post = tuple[bytes, list[PromptRequest]]
"""The body of a request to the batch route, and the prompts in it."""


async def posts_of(requests: Iterable[PromptRequest]) -> list[Post]:
    """Put prompts into as few requests as their sizes allow.

    Each is encoded by itself: one that is no JSON fails alone, and the loop runs in between (in a
    thread, one call for the whole batch would hold the interpreter just as long).

    Args:
        requests: The prompts; those that nobody waits for any more are left out.
    """
    posts: list[Post] = []
    parts: list[bytes] = []
    group: list[PromptRequest] = []
    size = since_turn = 0
    for request in requests:
        if request.done:
            continue
        try:
            data = json.dumps(request.body).encode("ascii")
        except (TypeError, ValueError, RecursionError) as error:
            text = f"the prompt or its parameters cannot be sent as JSON: {error}"
            request.fail(PromptError(text, 400, "BadRequestError"))
            continue
        if group and size + len(data) > LARGEST_POST:
            posts.append((_body(parts), group))
            parts, group, size = [], [], 0
        parts.append(data)
        group.append(request)
        size += len(data)
        since_turn += len(data)
        if since_turn > BYTES_PER_TURN:
            since_turn = 0
            await asyncio.sleep(0)
    if group:
        posts.append((_body(parts), group))
    return posts


def _body(parts: list[bytes]) -> bytes:
    return b'{"prompts": [' + b", ".join(parts) + b"]}"


async def events(content: aiohttp.StreamReader) -> AsyncGenerator[dict[str, Any], None]:
    """Yield the answer's lines.

    Raises:
        aiohttp.ClientError: The connection was lost, or a line is no JSON object.
    """
    parts: list[bytes] = []
    async for chunk in content.iter_any():
        parts.append(chunk)
        if b"\n" in chunk:  # a long line comes in many chunks, joined once
            *lines, rest = b"".join(parts).split(b"\n")
            parts = [rest]
            for line in lines:
                try:
                    yield json.loads(line)
                except ValueError as error:
                    raise aiohttp.ClientPayloadError(f"no JSON: {line!r:.80}") from error
