"""One prompt on its way to a model and its response on the way back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

from rhapsody.api.errors import PromptError

__all__ = ["Completion", "PromptRequest", "as_messages"]

Message = Mapping[str, Any]

_ids = count(1)


@dataclass(frozen=True)
class Completion:
    """What a model made of one prompt.

    Attributes:
        texts: One text per response asked for (`n`).
        finish_reasons: Why each ended: "stop" or "length".
        usage: `prompt_tokens`, `completion_tokens` and `total_tokens`.
        logprobs: Per response, one entry per token; None where they were not asked for.
    """

    texts: list[str]
    finish_reasons: list[str]
    usage: dict[str, int]
    logprobs: list[list[dict[str, Any]]] | None = None

    @property
    def response(self) -> str | list[str]:
        """The text, or the list of texts where more than one was asked for."""
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


def as_messages(prompt: str | Sequence[Message], system_prompt: str | None) -> dict[str, Any]:
    """Put a prompt the way the batch route takes it.

    Args:
        prompt: A text, which the server makes one user message of, or chat messages.
        system_prompt: Goes first, as a message of its own.

    Returns:
        `prompt` and `messages`, one of them None.
    """
    if isinstance(prompt, str):
        if system_prompt is None:
            return {"prompt": prompt, "messages": None}
        messages: list[Message] = [{"role": "user", "content": prompt}]
    else:
        messages = list(prompt)
    if system_prompt is not None:
        messages.insert(0, {"role": "system", "content": system_prompt})
    return {"prompt": None, "messages": messages}


class PromptRequest:
    """One prompt from its arrival to its one outcome: a completion, an error, or cancelled.

    Args:
        prompt: A text or chat messages.
        system_prompt: Goes before it.
        sampling: The engine's sampling parameters.
        on_text: Called with pieces of the text as they come. It may not block: the connection is
            the whole batch's.
        on_sent: Called with the server that gets the prompt, each time.
    """

    __slots__ = ("_future", "_on_sent", "_on_text", "attempts", "body", "first_at", "id", "replica")

    def __init__(
        self,
        prompt: str | Sequence[Message],
        system_prompt: str | None = None,
        sampling: Mapping[str, Any] | None = None,
        on_text: Callable[[str], Any] | None = None,
        on_sent: Callable[[Any], None] | None = None,
    ) -> None:
        self.id = f"p{next(_ids)}"
        self.body = {
            "id": self.id,
            **as_messages(prompt, system_prompt),
            "sampling": dict(sampling or {}),
            "stream": on_text is not None,
        }
        self.attempts = 0
        self.replica: Any = None
        self._on_sent = on_sent
        self._on_text = on_text
        self.first_at: float | None = None
        """When the first text was handed out, by `time.monotonic`."""
        self._future: asyncio.Future[Completion] = asyncio.get_running_loop().create_future()

    def sent_to(self, replica: Any) -> None:
        """Note which server has the prompt now."""
        self.replica = replica
        if self._on_sent is not None:
            self._on_sent(replica)

    @property
    def done(self) -> bool:
        """Whether the outcome is known, or nobody waits for it any more."""
        return self._future.done()

    @property
    def can_retry(self) -> bool:
        """Whether another replica may start over: not once text has been handed out."""
        return self.first_at is None

    def add_piece(self, text: str) -> None:
        """Hand out a piece of the text, unless nobody waits any more."""
        if self._on_text is None or not text or self.done:
            return
        if self.first_at is None:
            self.first_at = time.monotonic()
        self._on_text(text)

    def finish(self, completion: Completion) -> None:
        """Set the outcome, unless there is one."""
        if not self._future.done():
            self._future.set_result(completion)

    def fail(self, error: Exception) -> None:
        """Set an error as the outcome, unless there is one."""
        if not self._future.done():
            self._future.set_exception(error)

    def abandon(self) -> None:
        """Nobody waits for the outcome any more."""
        if not self._future.cancel() and not self._future.cancelled():
            self._future.exception()  # looked at, so that asyncio does not complain

    async def completion(self) -> Completion:
        """Wait for the outcome.

        Raises:
            PromptError: The server refused the prompt.
            ReplicaError: No replica could answer it.
        """
        return await self._future

    def take_event(self, event: Mapping[str, Any]) -> None:
        """Take one line of the batch route's answer."""
        kind = event["type"]
        if kind == "delta":
            self.add_piece(event["text"])
        elif kind == "done":
            self.finish(
                Completion(
                    event["texts"],
                    event["finish_reasons"],
                    event["usage"],
                    event.get("logprobs"),
                )
            )
        else:
            self.fail(
                PromptError(event["message"], event["code"], event["kind"], event.get("param"))
            )
