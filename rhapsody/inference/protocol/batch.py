"""The batch route's protocol: many prompts in one request, events as JSON lines in its response.

A request is `{"prompts": [{"id", "prompt" | "messages", "sampling", "stream", "order"}, ...]}`.
Prompts with a lower `order`, a whole number, are handled first. The response has one event per
line, in the order in which they happen: "delta" events of the prompts that stream, and for each
prompt a last event, "done" or "error".

To embed, score or classify, an item has that `kind`, a text as `prompt`, and for a score a
`document`. Its "done" event has numbers instead of texts. An item of the kind "chat" has `messages`
and `options`, which are other fields of `/v1/chat/completions` such as `tools`; its "done" event
also has the `message` of the model.
"""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Mapping, Sequence
from typing import Any

from rhapsody.inference.protocol.errors import RequestError

__all__ = [
    "BATCH_PATH",
    "CANCEL_PATH",
    "LIMIT_PATH",
    "WEIGHTS_PATH",
    "Event",
    "EventBuffer",
    "delta_event",
    "done_event",
    "duplicate_id",
    "error_event",
    "ids_of",
    "numbers_event",
    "prompts_of",
    "token_usage",
]

BATCH_PATH = "/rhapsody/batch"
CANCEL_PATH = "/rhapsody/cancel"
LIMIT_PATH = "/rhapsody/limit"
"""Returns how many prompts the server works on at a time (`max_num_seqs`), and the kinds of AI task
that its model takes (`kinds`), if only the server knows."""

WEIGHTS_PATH = "/rhapsody/weights"
"""Takes `{"path": ...}` and loads the weights there. The status 400 means that the server keeps its
weights, and 500 that they may be damaged."""

Event = dict[str, Any]


def prompts_of(body: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the prompts of a batch request.

    Args:
        body: The request's JSON object.

    Raises:
        RequestError: The batch as a whole is malformed; single prompts are not checked.
    """
    for name in body:
        if name != "prompts":
            raise RequestError(f"Unknown field {name!r}, expected only 'prompts'.", name)
    prompts = body.get("prompts")
    if not isinstance(prompts, list):
        raise RequestError(f"prompts must be a list, got {prompts!r:.80}.", "prompts")
    for position, prompt in enumerate(prompts):
        # An error about a prompt without an id could not be sent as an event.
        if not isinstance(prompt, dict) or not isinstance(prompt.get("id"), str):
            where = f"prompts[{position}]"
            raise RequestError(
                f"{where} must be an object with a str id, got {prompt!r:.80}.", where
            )
    return prompts


def ids_of(body: Mapping[str, Any]) -> list[str]:
    """Return the prompt ids of a cancel request, each once.

    Args:
        body: The request's JSON object, `{"ids": [...]}`.

    Raises:
        RequestError: The ids are not a list of str.
    """
    ids = body.get("ids")
    if not isinstance(ids, list) or not all(isinstance(one, str) for one in ids):
        raise RequestError(f"ids must be a list of str, got {ids!r:.80}.", "ids")
    return list(dict.fromkeys(ids))


def duplicate_id(prompt_id: str) -> RequestError:
    """Return the error of a prompt whose id belongs to another prompt in progress."""
    return RequestError(f"A prompt with the id {prompt_id!r} is already in progress.", "id")


def delta_event(prompt_id: str, index: int, text: str) -> Event:
    """Return the event of new text in one completion of a prompt."""
    return {"id": prompt_id, "type": "delta", "index": index, "text": text}


def done_event(
    prompt_id: str, texts: Sequence[str], finish_reasons: Sequence[str], usage: Mapping[str, int]
) -> Event:
    """Return the last event of a prompt that was completed."""
    return {
        "id": prompt_id,
        "type": "done",
        "texts": texts,
        "finish_reasons": finish_reasons,
        "usage": usage,
    }


def numbers_event(
    prompt_id: str, data: bytes, usage: Mapping[str, int], labels: Sequence[str] = ()
) -> Event:
    """Return the last event of an input that was embedded, scored or classified.

    Args:
        prompt_id: Its id.
        data: The numbers, float32 in little-endian order.
        usage: Token counts.
        labels: The labels of the numbers, for "classify".
    """
    return {
        "id": prompt_id,
        "type": "done",
        "data": base64.b64encode(data).decode("ascii"),
        "labels": list(labels),
        "usage": usage,
    }


def error_event(prompt_id: str, error: RequestError) -> Event:
    """Return the last event of a prompt that failed."""
    return {
        "id": prompt_id,
        "type": "error",
        "message": error.message,
        "param": error.param,
        "code": error.code,
        "kind": error.kind,
    }


def token_usage(prompt_tokens: int, completion_tokens: int) -> dict[str, int]:
    """Return token counts under OpenAI's names."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }


MAX_BUFFER_BYTES = 4 * 1024 * 1024
"""Bytes of events of one batch that wait to be sent; beyond it, its prompts wait."""


class EventBuffer:
    """The events of one batch that have not been sent yet, encoded as lines."""

    def __init__(self) -> None:
        self._lines: list[bytes] = []
        self._bytes = 0
        self._changed = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()

    def __len__(self) -> int:
        return len(self._lines)

    def put(self, event: Event) -> None:
        """Add an event."""
        line = json.dumps(event, separators=(",", ":")).encode("ascii") + b"\n"
        self._lines.append(line)
        self._bytes += len(line)
        if self._bytes > MAX_BUFFER_BYTES:
            self._room.clear()
        self._changed.set()

    async def wait_room(self) -> None:
        """Wait while there are too many events, because the client does not read them."""
        await self._room.wait()

    def wake(self) -> None:
        """Make a pending `take` return, even without events."""
        self._changed.set()

    async def take(self) -> bytes:
        """Remove and return all lines; wait for the first one, or for `wake`."""
        if not self._lines:
            self._changed.clear()
            await self._changed.wait()
        lines, self._lines, self._bytes = self._lines, [], 0
        self._room.set()
        return b"".join(lines)
