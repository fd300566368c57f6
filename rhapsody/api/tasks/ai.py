"""AI tasks: a prompt for a model."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

from rhapsody.api.tasks.base import BaseTask, brief
from rhapsody.sampling import SAMPLING_FIELDS, is_model_class
from rhapsody.streaming import OnText

__all__ = ["AITask", "Prompt"]

Message = Mapping[str, Any]
Prompt = str | Sequence[str] | Sequence[Message] | Sequence[Sequence[Message]]
"""One text, several texts, one chat (a list of messages), or several chats."""


class AITask(BaseTask):
    """A prompt for a model.

    Results: `response` (a str for one prompt, a list for several), with `usage` (tokens) and
    `finish_reason`; with `response_format` also `parsed`, the object that the response describes,
    and with `logprobs` also `response_logprobs`.

    Args:
        prompt: One text, a list of texts, a chat (a list of messages, each with "role" and
            "content"), or a list of chats.
        model: Only needed where several backends serve different models: picks the one.
        system_prompt: Goes before the prompt as a message of its own.
        temperature: At least 0; 0 takes the likeliest token every time.
        max_tokens: Most tokens in the response.
        top_p: Above 0, at most 1: sample among the likeliest tokens of this total probability.
        top_k: Sample among this many likeliest tokens; 0 or -1 for all.
        stop: Strings that end the response and are not part of it.
        seed: For the same response every time.
        n: Responses per prompt; with more than one, each response is a list.
        uid: Unique name; made where None.
        backend: Name of the inference backend; the session's first where None.
        timeout: Longest time it may take, in seconds, waiting included.
        on_text: Called with each piece of the response while it is written, on the loop that
            submitted the task. For one response to one prompt.
        stop_sequences: Another name for `stop`.
        **extra: More sampling parameters of the engine, among them `logprobs` (how many of the
            likeliest tokens to tell of) and `response_format` (a pydantic model class, or a dict
            as OpenAI's API has it), or fields of your own.

    Raises:
        TaskValidationError: Names the field, its value and what was expected.
    """

    __slots__ = ()

    foreign_fields = frozenset({"arguments", "args", "executable", "function", "kwargs"})

    known_fields = (
        BaseTask.known_fields
        | SAMPLING_FIELDS
        | {"inference_endpoint", "model", "on_text", "prompt"}
        | {"stop_sequences", "system_prompt"}
    )

    def __init__(
        self,
        prompt: Prompt,
        model: str | None = None,
        *,
        system_prompt: str | None = None,
        temperature: float | None = None,
        max_tokens: int | None = None,
        top_p: float | None = None,
        top_k: int | None = None,
        stop: str | Sequence[str] | None = None,
        seed: int | None = None,
        n: int | None = None,
        uid: str | None = None,
        backend: str | None = None,
        timeout: float | None = None,
        on_text: OnText | None = None,
        stop_sequences: Sequence[str] | None = None,
        **extra: Any,
    ) -> None:
        fields: dict[str, Any] = {
            "uid": uid,
            "prompt": prompt,
            "model": model,
            "system_prompt": system_prompt,
            "temperature": temperature,
            "max_tokens": max_tokens,
            "top_p": top_p,
            "top_k": top_k,
            "stop": stop if stop is not None else stop_sequences,
            "seed": seed,
            "n": n,
            "backend": backend,
            "timeout": timeout,
            "on_text": on_text,
        }
        super().__init__({k: v for k, v in fields.items() if v is not None}, extra)
        self._check_prompt()
        for field in self.keys() & _AI_CHECKS.keys():
            _AI_CHECKS[field](self)

    def __missing__(self, field: str) -> Any:
        return self["stop"] if field == "stop_sequences" else super().__missing__(field)

    def _refuse_foreign(self, field: str) -> NoReturn:
        self._refuse(field, "left out: it is for a ComputeTask")

    def _check_prompt(self) -> None:
        prompt = self.get("prompt")
        if isinstance(prompt, str) and prompt:
            return
        if isinstance(prompt, (list, tuple)) and prompt:
            if all(isinstance(item, str) and item for item in prompt):
                return
            if _is_chat(prompt) or all(_is_chat(item) for item in prompt):
                return
        self._refuse(
            "prompt",
            "a non-empty string, a list of them, or chat messages such as "
            '[{"role": "user", "content": "..."}]',
        )

    def _check_count(self, field: str, low: int) -> None:
        value = self[field]
        if isinstance(value, bool) or not isinstance(value, int) or value < low:
            self._refuse(field, f"a whole number of at least {low}")

    def _check_top_k(self) -> None:
        value = self["top_k"]
        if isinstance(value, bool) or not isinstance(value, int) or value < -1:
            self._refuse("top_k", "a whole number of at least 1, or 0 or -1 for all tokens")

    def _check_on_text(self) -> None:
        if not callable(self["on_text"]) or inspect.iscoroutinefunction(self["on_text"]):
            self._refuse("on_text", "a plain function that takes a string, such as print")
        if not (isinstance(self["prompt"], str) or _is_chat(self["prompt"])) or self["n"] not in (
            None,
            1,
        ):
            self._refuse("on_text", "left out: a stream is one response to one prompt")

    def _check_response_format(self) -> None:
        value = self["response_format"]
        if is_model_class(value):
            return
        if not isinstance(value, Mapping) or not isinstance(value.get("type"), str):
            self._refuse(
                "response_format",
                'a pydantic model class, or a dict such as {"type": "json_schema", "json_schema": '
                '{"name": ..., "schema": ...}}',
            )

    def _check_stop(self) -> None:
        stop = self["stop"]
        if isinstance(stop, str) and stop:
            return
        if not isinstance(stop, (list, tuple)) or not all(isinstance(s, str) and s for s in stop):
            self._refuse("stop", "a string or a list of strings")

    def _subject(self) -> str:
        return f"prompt={brief(self['prompt'])}"


def _is_chat(value: Any) -> bool:
    return (
        isinstance(value, (list, tuple))
        and len(value) > 0
        and all(isinstance(message, Mapping) and "role" in message for message in value)
    )


_AI_CHECKS: dict[str, Callable[[AITask], None]] = {
    "max_tokens": lambda task: task._check_count("max_tokens", 1),
    "model": lambda task: task._check_type("model", str, "the name of a model"),
    "n": lambda task: task._check_count("n", 1),
    "on_text": AITask._check_on_text,
    "response_format": AITask._check_response_format,
    "seed": lambda task: task._check_type("seed", int, "a whole number"),
    "stop": AITask._check_stop,
    "system_prompt": lambda task: task._check_type("system_prompt", str, "a string"),
    "temperature": lambda task: task._check_number("temperature", 0, None),
    "top_k": AITask._check_top_k,
    "top_p": lambda task: task._check_number("top_p", 0, 1, above=True),
}
