"""A prompt as a request to a model server, and its completion."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

from rhapsody.errors import PromptError
from rhapsody.inference.kinds import CHAT, ChatTurn, PoolingInput
from rhapsody.inference.prefix_keys import LONGEST_PREFIX, Keys, prefix_keys

__all__ = ["Completion", "Prompt", "PromptRequest", "as_messages", "is_urgent", "order_of"]

AGEING_SECONDS = 60.0
"""A step of priority counts as much as a wait of this time, so that no prompt waits forever."""

Message = Mapping[str, Any]
Prompt = str | Sequence[Message] | PoolingInput | ChatTurn
"""A text or chat messages to respond to, an input of another kind, or a chat with tools."""

_ids = count(1)


@dataclass(frozen=True)
class Completion:
    """The result of one prompt.

    Attributes:
        texts: The text of each response (`n`).
        finish_reasons: Why each response ended: "stop" or "length".
        usage: `prompt_tokens`, `completion_tokens` and `total_tokens`.
        logprobs: One entry per token for each response; None if they were not requested.
        data: The numbers of a `PoolingInput`, float32 in little-endian order. It has no texts.
        labels: The labels of these numbers, for "classify".
        message: The message of the model, if it was a chat with tools.
        model_version: The version of the weights that responded; None if it is not known.
    """

    texts: list[str]
    finish_reasons: list[str]
    usage: dict[str, int]
    logprobs: list[list[dict[str, Any]]] | None = None
    data: bytes = b""
    labels: Sequence[str] = ()
    message: Mapping[str, Any] | None = None
    model_version: str | None = None

    @property
    def response(self) -> str | list[str]:
        """The text, or the list of texts if there are several."""
        return self.texts[0] if len(self.texts) == 1 else self.texts

    @property
    def finish_reason(self) -> str | list[str]:
        """The finish reason, in the shape of `response`."""
        reasons = self.finish_reasons
        return reasons[0] if len(reasons) == 1 else reasons

    @property
    def response_logprobs(self) -> Any:
        """The log probabilities, in the shape of `response`."""
        if self.logprobs is None:
            return None
        return self.logprobs[0] if len(self.logprobs) == 1 else self.logprobs


def as_messages(prompt: Prompt, system_prompt: str | None) -> dict[str, Any]:
    """Return a prompt in the form that the batch route takes.

    Args:
        prompt: A text, which the server turns into one user message, chat messages, or an input of
            another kind.
        system_prompt: The first message, if given.

    Returns:
        `prompt` and `messages`, one of them None; for an input, also its `kind` and `document`.
    """
    if isinstance(prompt, PoolingInput):
        fields = {"prompt": prompt.text, "messages": None, "kind": prompt.kind}
        return {**fields, "document": prompt.document}
    if isinstance(prompt, ChatTurn):
        chat = {"prompt": None, "messages": list(prompt.messages), "kind": CHAT}
        return {**chat, "options": dict(prompt.options)}
    if isinstance(prompt, str):
        if system_prompt is None:
            return {"prompt": prompt, "messages": None}
        messages: list[Message] = [{"role": "user", "content": prompt}]
    else:
        messages = list(prompt)
    if system_prompt is not None:
        messages.insert(0, {"role": "system", "content": system_prompt})
    return {"prompt": None, "messages": messages}


def is_urgent(priority: int) -> bool:
    """Return whether slots of the servers are kept free for prompts of a priority."""
    return priority > 0


def order_of(priority: int, arrival: float | None = None) -> int:
    """Return the place of a prompt: those with lower numbers are handled first.

    It is the time of arrival in milliseconds, earlier by a minute for each step of priority.

    Args:
        priority: Its priority; higher is first.
        arrival: When it arrived, by `time.monotonic`; None: now.
    """
    since = time.monotonic() if arrival is None else arrival
    return int((since - priority * AGEING_SECONDS) * 1000)


def _beginning(content: Any) -> str:
    """Return the beginning of a message's content. An image of many MB is not copied."""
    shown = []
    for part in content if isinstance(content, (list, tuple)) else [content]:
        value = part.get("text", part.get("image_url")) if isinstance(part, Mapping) else part
        value = value.get("url") if isinstance(value, Mapping) else value
        shown.append(value[:LONGEST_PREFIX] if isinstance(value, str) else "")
    return "\0".join(shown)


class PromptRequest:
    """One prompt with its outcome: a completion, an error, or cancelled.

    Args:
        prompt: A text, chat messages, or an input of another kind.
        system_prompt: The system message before it.
        sampling: The engine's sampling parameters.
        on_text: Called with each piece of the text as it arrives. It must not block, since all
            prompts of a batch share one connection.
        on_sent: Called with the replica each time the prompt is sent to one.
        priority: Prompts of higher priority are handled first.
        order: Its place among others; None: by its priority and arrival.
        adapter: The LoRA adapter to respond with; None: the model itself.
    """

    __slots__ = (
        "_future",
        "_on_sent",
        "_on_text",
        "attempts",
        "body",
        "first_text_at",
        "id",
        "order",
        "priority",
        "replica",
    )

    def __init__(
        self,
        prompt: Prompt,
        system_prompt: str | None = None,
        sampling: Mapping[str, Any] | None = None,
        on_text: Callable[[str], Any] | None = None,
        on_sent: Callable[[Any], None] | None = None,
        priority: int = 0,
        order: int | None = None,
        adapter: str | None = None,
    ) -> None:
        self.priority = priority
        self.order = order_of(priority) if order is None else order
        self.id = f"p{next(_ids)}"
        self.body = {
            "id": self.id,
            **as_messages(prompt, system_prompt),
            "sampling": dict(sampling or {}),
            "stream": on_text is not None,
            "order": self.order,
        }
        if adapter is not None:
            self.body["adapter"] = adapter
        self.attempts = 0
        self.replica: Any = None
        self._on_sent = on_sent
        self._on_text = on_text
        self.first_text_at: float | None = None
        """Time of the first call of `on_text`, by `time.monotonic`."""
        self._future: asyncio.Future[Completion] = asyncio.get_running_loop().create_future()

    def prefix_keys(self) -> Keys:
        """Return the hashes of the prompt's beginnings; none for a kind that does not gain."""
        if "document" in self.body:
            return ()
        if isinstance(self.body["prompt"], str):
            return prefix_keys(self.body["prompt"])
        parts: list[str] = []
        size = 0
        for message in self.body["messages"] or ():
            parts.append(f"{message.get('role')}\0{_beginning(message.get('content'))}\0")
            size += len(parts[-1])
            if size >= LONGEST_PREFIX:
                break
        return prefix_keys("".join(parts))

    def sent_to(self, replica: Any) -> None:
        """Record the replica that has the prompt now."""
        self.replica = replica
        if self._on_sent is not None:
            self._on_sent(replica)

    @property
    def urgent(self) -> bool:
        """Whether slots of the servers are kept free for prompts like this one."""
        return is_urgent(self.priority)

    @property
    def done(self) -> bool:
        """Whether it has its outcome, or is closed."""
        return self._future.done()

    @property
    def can_retry(self) -> bool:
        """Whether another replica may start over; False once text has been passed on."""
        return self.first_text_at is None

    def add_piece(self, text: str) -> None:
        """Pass a piece of the text on, unless the prompt is done."""
        if self._on_text is None or not text or self.done:
            return
        if self.first_text_at is None:
            self.first_text_at = time.monotonic()
        self._on_text(text)

    def complete(self, completion: Completion) -> None:
        """Set the completion, unless there is an outcome."""
        if not self._future.done():
            self._future.set_result(completion)

    def fail(self, error: Exception) -> None:
        """Set the error, unless there is an outcome."""
        if not self._future.done():
            self._future.set_exception(error)

    def close(self) -> None:
        """Drop the outcome: nothing waits for it."""
        if not self._future.cancel() and not self._future.cancelled():
            self._future.exception()  # marked as retrieved, so that asyncio logs no warning

    async def completion(self) -> Completion:
        """Wait for the outcome and return the completion.

        Raises:
            PromptError: The server refused the prompt.
            ReplicaError: No replica could complete it.
        """
        return await self._future

    def handle_event(self, event: Mapping[str, Any]) -> None:
        """Apply one event of the batch route's response."""
        kind = event["type"]
        if kind == "delta":
            self.add_piece(event["text"])
        elif kind == "done" and "data" in event:
            data, labels = base64.b64decode(event["data"]), event["labels"]
            usage, version = event["usage"], self._version()
            self.complete(
                Completion([], [], usage, data=data, labels=labels, model_version=version)
            )
        elif kind == "done":
            self.complete(
                Completion(
                    event["texts"],
                    event["finish_reasons"],
                    event["usage"],
                    event.get("logprobs"),
                    message=event.get("message"),
                    model_version=self._version(),
                )
            )
        else:
            self.fail(
                PromptError(event["message"], event["code"], event["kind"], event.get("param"))
            )

    def _version(self) -> str | None:
        return getattr(self.replica, "version", None) or None
