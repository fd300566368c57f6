"""Lines of OpenAI's batch format: requests as tasks, and results as lines of the output."""

from __future__ import annotations

import base64
import json
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rhapsody.errors import PartialFailureError, PromptError
from rhapsody.inference.kinds import EMBED, is_prompt
from rhapsody.sampling import SAMPLING_FIELDS
from rhapsody.suggest import unknown_name

__all__ = [
    "CHAT",
    "EMBEDDINGS",
    "LineError",
    "Request",
    "error_line",
    "read_request",
    "response_line",
    "unknown_model",
]

CHAT, EMBEDDINGS = "/v1/chat/completions", "/v1/embeddings"
IGNORED = frozenset({"metadata", "model", "store", "user"})
CHAT_FIELDS = SAMPLING_FIELDS | {
    "max_completion_tokens",
    "messages",
    "tool_choice",
    "tools",
    "top_logprobs",
}
EMBEDDING_FIELDS = frozenset({"encoding_format", "input"})


class LineError(ValueError):
    """A line is no request that can be sent.

    Args:
        message: What is wrong with it, and what was expected.
        code: The HTTP status that OpenAI's API gives such a request.
        kind: The code of the error in that API.
    """

    def __init__(self, message: str, code: int = 400, kind: str = "invalid_request") -> None:
        super().__init__(message)
        self.code = code
        self.kind = kind


def unknown_model(message: str) -> LineError:
    """Return the error of a line that names a model which is not served."""
    return LineError(message, 404, "model_not_found")


@dataclass(frozen=True)
class Request:
    """The request of one line.

    Attributes:
        custom_id: Identifies it in the output.
        url: Its route.
        task: The fields of the task that it becomes.
        encoding: The `encoding_format` of embeddings.
    """

    custom_id: str
    url: str
    task: dict[str, Any]
    encoding: str = "float"


def read_request(custom_id: str, line: Mapping[str, Any], model: str) -> Request:
    """Return the request of a line.

    Args:
        custom_id: Its id.
        line: The JSON object.
        model: The model that is served.

    Raises:
        LineError: A field is missing, unknown or wrong.
    """
    url, body = line.get("url"), line.get("body")
    if line.get("method", "POST") != "POST" or url not in (CHAT, EMBEDDINGS):
        raise LineError(
            f"'url' must be '{CHAT}' or '{EMBEDDINGS}' with the method POST, got {url!r:.80}"
        )
    if not isinstance(body, dict):
        raise LineError(f"'body' must be an object, got {body!r:.80}")
    if body.get("model") not in (None, model):
        raise unknown_model(
            f"the model {body['model']!r:.80} is not served; the served one is '{model}'"
        )
    given = {k: v for k, v in body.items() if v is not None and k not in IGNORED}
    if given.pop("stream", False):
        raise LineError("'stream' must be false in a batch")
    known = CHAT_FIELDS if url == CHAT else EMBEDDING_FIELDS
    for name in given:
        if name not in known:
            raise LineError(unknown_name("field", name, known, "'body'"))
    if url == EMBEDDINGS:
        encoding = given.get("encoding_format", "float")
        if encoding not in ("float", "base64"):
            raise LineError(f"'encoding_format' must be 'float' or 'base64', got {encoding!r:.80}")
        texts = given.get("input")
        if not texts or not is_prompt(EMBED, texts):
            raise LineError(f"'input' must be a text or a list of texts, got {texts!r:.80}")
        task = {"prompt": [texts] if isinstance(texts, str) else texts, "kind": EMBED}
        return Request(custom_id, url, task, encoding)
    if "max_completion_tokens" in given:
        given["max_tokens"] = given.pop("max_completion_tokens")
    if "top_logprobs" in given:
        if given.get("logprobs") is not True:
            raise LineError("'top_logprobs' requires 'logprobs' to be true")
        given["logprobs"] = given.pop("top_logprobs")  # their number, as vLLM has it
    messages = given.pop("messages", None)
    if not (isinstance(messages, list) and messages and all(isinstance(m, dict) for m in messages)):
        raise LineError(f"'messages' must be a non-empty list of messages, got {messages!r:.80}")
    if given.get("tools") and given.get("n", 1) != 1:
        raise LineError(f"'n' must be 1 in a request with 'tools', got {given['n']!r:.80}")
    return Request(custom_id, url, {**given, "prompt": messages})


def response_line(request: Request, fields: Mapping[str, Any], model: str) -> str:
    """Return the line of a request that succeeded.

    Args:
        request: The request.
        fields: The result fields of its task.
        model: The model that is served.
    """
    body: dict[str, Any]
    if request.url == CHAT:
        choices = _choices(fields)
        body = {"object": "chat.completion", "id": _id("chatcmpl"), "choices": choices}
    else:
        data = [
            {"object": "embedding", "index": index, "embedding": _embedding(row, request.encoding)}
            for index, row in enumerate(fields["response"])
        ]
        body = {"object": "list", "id": _id("embd"), "data": data}
    body.update(created=int(time.time()), model=model, usage=fields["usage"])
    return _line(
        request.custom_id, {"status_code": 200, "request_id": _id("req"), "body": body}, None
    )


def error_line(custom_id: str, error: Exception) -> str:
    """Return the line of a request that failed."""
    if isinstance(error, PartialFailureError):
        error = next(one for one in error.errors if isinstance(one, Exception))
    code, kind = 400, "invalid_request"
    if isinstance(error, (LineError, PromptError)):
        code, kind = error.code, error.kind
    response = {
        "status_code": code,
        "request_id": _id("req"),
        "body": {"error": {"message": str(error), "type": kind, "param": None, "code": code}},
    }
    return _line(custom_id, response, {"code": kind, "message": str(error)})


def _choices(fields: Mapping[str, Any]) -> list[dict[str, Any]]:
    response, reasons = fields["response"], fields["finish_reason"]
    texts = [response] if isinstance(response, str) else list(response)
    reasons = [reasons] if isinstance(reasons, str) else list(reasons)
    messages: list[Any] = [{"role": "assistant", "content": text} for text in texts]
    if fields.get("message") is not None:
        messages = [fields["message"]]
    logprobs = fields.get("response_logprobs")
    each = [logprobs] if len(texts) == 1 else (logprobs or [None] * len(texts))
    return [
        {
            "index": index,
            "message": message,
            "finish_reason": reason,
            "logprobs": {"content": found} if found is not None else None,
        }
        for index, (message, reason, found) in enumerate(zip(messages, reasons, each, strict=True))
    ]


def _embedding(row: Any, encoding: str) -> Sequence[float] | str:
    if encoding == "base64":
        return base64.b64encode(bytes(memoryview(row).cast("B"))).decode("ascii")
    numbers: Sequence[float] = row.tolist()
    return numbers


def _id(prefix: str) -> str:
    return f"{prefix}-{uuid.uuid4().hex}"


def _line(custom_id: str, response: Any, error: Any) -> str:
    fields = {"id": _id("batch_req"), "custom_id": custom_id, "response": response, "error": error}
    return json.dumps(fields, separators=(",", ":")) + "\n"
