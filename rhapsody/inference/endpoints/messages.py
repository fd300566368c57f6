"""Requests and responses of the OpenAI API, as an endpoint takes and gives them."""

from __future__ import annotations

import base64
import json
import math
import re
import sys
from array import array
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from rhapsody.errors import PromptError
from rhapsody.inference.kinds import CLASSIFY, EMBED, SCORE, PoolingInput, floats_of
from rhapsody.inference.prompts import Completion

__all__ = [
    "Broken",
    "NoEvents",
    "chat_body",
    "completion_body",
    "completion_of",
    "error_in",
    "error_of",
    "logprobs_of",
    "numbers_of",
    "pooling_body",
    "stream_events",
    "usage_of",
]

MAX_LINE_BYTES = 4 * 1024 * 1024
"""Longest line of a streamed response."""
MAX_TOKENS = 2**53
"""Larger counts are none."""


OTHER_FIELDS = (b":", b"event:", b"id:", b"retry:")
ERROR_CODE = re.compile(r"[45]\d\d\Z")


class Broken(Exception):
    """A response is not what the OpenAI API describes."""


class NoEvents(Exception):
    """A response that should be a stream has no events.

    Args:
        text: What it has instead.
    """

    def __init__(self, text: bytes) -> None:
        super().__init__(text)
        self.text = text


def chat_body(
    model: str, messages: Sequence[Mapping[str, Any]], sampling: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the body of a request to `/chat/completions`.

    Args:
        model: The model's name.
        messages: The chat.
        sampling: Sampling parameters. A number of `logprobs`, as vLLM has it, becomes
            `top_logprobs`.
    """
    body = {"model": model, "messages": list(messages), **sampling}
    likeliest = body.get("logprobs")
    if likeliest is not None and not isinstance(likeliest, bool):
        body["logprobs"], body["top_logprobs"] = True, likeliest
    return body


def completion_body(model: str, prompt: str, sampling: Mapping[str, Any]) -> dict[str, Any]:
    """Return the body of a request to `/completions`."""
    body = {"model": model, "prompt": prompt, **sampling}
    if isinstance(body.get("logprobs"), bool):
        body["logprobs"] = int(body["logprobs"])
    return body


def pooling_body(model: str, given: PoolingInput) -> dict[str, Any]:
    """Return the body of a request to `/embeddings`, `/score` or `/classify`."""
    if given.kind == SCORE:
        return {"model": model, "text_1": given.text, "text_2": given.document}
    if given.kind == CLASSIFY:
        return {"model": model, "input": given.text}
    return {"model": model, "input": given.text, "encoding_format": "base64"}


def numbers_of(kind: str, body: Any) -> Completion:
    """Read a response of `/embeddings`, `/score` or `/classify` to a single input.

    Args:
        kind: "embed", "score" or "classify".
        body: The response. A class that it does not name is called LABEL_0, LABEL_1 and so on.

    Raises:
        Broken: It is not what these routes return.
    """
    try:
        [entry] = body["data"]
        names: Sequence[str] = ()
        if kind == EMBED:
            numbers = entry["embedding"]
        elif kind == SCORE:
            numbers = [entry["score"]]
        else:
            numbers = entry["probs"]
            names = entry.get("labels") or [f"LABEL_{n}" for n in range(len(numbers))]
            if entry.get("label") and not entry.get("labels"):
                names[numbers.index(max(numbers))] = entry["label"]
        if not all(isinstance(name, str) for name in names):
            raise ValueError
        data = _decoded(numbers) if isinstance(numbers, str) else _packed(numbers)
        if not math.isfinite(sum(floats_of(data))):
            raise ValueError
    except (ArithmeticError, LookupError, TypeError, ValueError, AttributeError) as error:
        raise Broken(f"no {kind} result: {body!r:.200}") from error
    return Completion([], [], usage_of(body.get("usage")), data=data, labels=names)


def _decoded(text: str) -> bytes:
    data = base64.b64decode(text, validate=True)
    if not data or len(data) % 4:
        raise ValueError
    return data


def _packed(numbers: Sequence[float]) -> bytes:
    if not numbers:
        raise ValueError
    values = array("f", numbers)
    if sys.byteorder == "big":
        values.byteswap()
    return values.tobytes()


def completion_of(body: Any, n: int) -> Completion:
    """Read a response of `/chat/completions` or `/completions`.

    Args:
        body: The response.
        n: How many choices were requested.

    Raises:
        Broken: It has no choices, or one without text.
        PromptError: It has another number of choices.
    """
    choices = body.get("choices") if isinstance(body, dict) else None
    if not isinstance(choices, list) or not choices:
        raise Broken(f"a response without choices: {body!r:.200}")
    if len(choices) != n:
        raise PromptError(
            f"the endpoint sent {len(choices)} response{'s' * (len(choices) > 1)} with n={n}; some "
            "servers do not take the parameter 'n'",
            502,
            "BadGatewayError",
            "n",
        )
    texts, reasons, logprobs = [], [], []
    for choice in choices:
        if not isinstance(choice, dict):
            raise Broken(f"a choice that is no object: {choice!r:.200}")
        message = choice.get("message")
        text = message.get("content") if isinstance(message, dict) else choice.get("text")
        if text is None and isinstance(message, dict):  # a tool call, or a refusal
            text = message.get("refusal") or ""
        if not isinstance(text, str):
            raise Broken(f"a choice without text: {choice!r:.200}")
        texts.append(text)
        reasons.append(str(choice.get("finish_reason") or "stop"))
        logprobs.append(logprobs_of(choice))
    known = [entries for entries in logprobs if entries is not None]
    first = choices[0].get("message")
    return Completion(
        texts,
        reasons,
        usage_of(body.get("usage")),
        known if len(known) == len(texts) else None,
        message=first if isinstance(first, dict) else None,
    )


def logprobs_of(choice: Any) -> list[dict[str, Any]] | None:
    """Return the log probabilities of a choice, one entry for each token; None without them."""
    found = choice.get("logprobs") if isinstance(choice, dict) else None
    content = found.get("content") if isinstance(found, dict) else None
    return content if isinstance(content, list) else None


def usage_of(usage: Any) -> dict[str, int]:
    """Return the token counts of a response; what is missing or no count is 0."""
    found = usage if isinstance(usage, dict) else {}

    def count(name: str) -> int:
        value = found.get(name)
        return value if isinstance(value, int) and 0 <= value <= MAX_TOKENS else 0

    prompt, completion = count("prompt_tokens"), count("completion_tokens")
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    }


def error_of(status: int, text: str) -> PromptError:
    """Return the error of a refused request.

    Args:
        status: The HTTP status.
        text: The body: OpenAI's error object, an error object of another server, or any text.
    """
    kind, param, message = "BadRequestError", None, ""
    try:
        body = json.loads(text)
    except (ValueError, RecursionError):
        body = None
    if isinstance(body, dict):
        error = body.get("error", body)
        if isinstance(error, dict):
            detail = error.get("message") or error.get("detail") or ""
            message = detail if isinstance(detail, str) else json.dumps(detail)
            kind = str(error.get("type") or kind)
            param = error.get("param") if isinstance(error.get("param"), str) else None
        elif isinstance(error, str):
            message = error
    if not message:
        message = " ".join(text.split())[:300] or f"HTTP status {status}"
    return PromptError(message, status, kind, param)


def error_in(body: Mapping[str, Any]) -> PromptError:
    """Return the error in a response with the status 200. Without a `code`, it is the server's."""
    error = body["error"]
    code = str(error.get("code")) if isinstance(error, dict) else ""
    return error_of(int(code) if ERROR_CODE.match(code) else 500, json.dumps(body))


async def stream_events(lines: AsyncIterator[bytes]) -> AsyncIterator[dict[str, Any]]:
    """Yield the events of a streamed response, up to `[DONE]`.

    Args:
        lines: The lines of the response.

    Raises:
        Broken: An event is not a JSON object.
        NoEvents: There are no events, but other text.
    """
    found, other = False, bytearray()
    async for line in lines:
        if not line.startswith(b"data:"):  # a comment, an event name, or the end of an event
            if not found and not line.startswith(OTHER_FIELDS):
                other += line
            continue
        found = True
        data = line[5:].strip()
        if data == b"[DONE]":
            return
        try:
            event = json.loads(data)
        except (ValueError, RecursionError):
            raise Broken(f"an event that is no JSON: {data!r:.200}") from None
        if not isinstance(event, dict) or not isinstance(event.get("choices") or [], list):
            raise Broken(f"an event that is no object: {data!r:.200}")
        yield event
    if not found and other.strip():
        raise NoEvents(bytes(other))
