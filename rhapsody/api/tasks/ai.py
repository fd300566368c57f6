"""AI tasks: a prompt for a model, or texts to embed, score or classify."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from rhapsody.api.tasks.base import BaseTask
from rhapsody.api.tasks.fields import AI_FIELDS, is_chat
from rhapsody.api.tasks.tools import make_agent
from rhapsody.errors import ConfigurationError
from rhapsody.inference.agents.agent import AGENT_OPTIONS, first_messages
from rhapsody.inference.kinds import EXPECTED_PROMPTS, GENERATE, is_prompt
from rhapsody.sampling import SAMPLING_FIELDS
from rhapsody.streaming import OnText
from rhapsody.validation import brief, must_be

__all__ = ["AITask", "Prompt"]

Message = Mapping[str, Any]
Pair = tuple[str, str] | tuple[str, Sequence[str]]
Prompt = (
    str | Sequence[str] | Sequence[Message] | Sequence[Sequence[Message]] | Pair | Sequence[Pair]
)
"""One text, several texts, one chat (a list of messages), or several chats; to score, pairs."""

GENERATE_ONLY = ("on_text", "system_prompt", "tools", *sorted(SAMPLING_FIELDS))
"""Fields that have no meaning for the other kinds."""


class AITask(BaseTask, described_by=("prompt",)):
    """A prompt for a model.

    Results: `response` (a str for one prompt, a list for several), with `usage` (tokens) and
    `finish_reason`; with `response_format` also `parsed`, the object that the response describes,
    and with `logprobs` also `response_logprobs`, and with `tools` the conversation as `messages`,
    and the calls with their whole results as `tool_calls`. `model_version` is the version of the
    model's weights, if its backend knows it. For the other kinds, `response` is

    - "embed": float32 numbers, of shape `(d,)` for one text and `(n, d)` for a list;
    - "score": a float for one pair, and float32 numbers of shape `(n,)` for several;
    - "classify": a `Classification` with `label` and `probabilities`, or a list of them.

    Args:
        prompt: One text, a list of texts, a chat (a list of messages, each with "role" and
            "content"), or a list of chats. The content of a message may be a list of parts, with
            images made by `rhapsody.image_part`. To embed or classify, a text or a list of texts.
            To score, `(query, document)`, `(query, [document, ...])`, or a list of
            `(query, document)`.
        model: Name of a model: selects the backend that serves it, if backends serve several.
        system_prompt: A system message that precedes the prompt.
        temperature: At least 0; 0 always takes the most likely token.
        max_tokens: Largest number of tokens in the response.
        top_p: Sample among the most likely tokens with this total probability, above 0 and at
            most 1.
        top_k: Sample among this many most likely tokens; 0 or -1: all.
        stop: Strings that end the response and are not part of it.
        seed: Seed of the sampling; the same seed gives the same response.
        n: Responses per prompt; with more than one, each response is a list.
        kind: "generate", "embed", "score" or "classify". None: "generate". The other kinds take no
            sampling parameters.
        adapter: Name of a LoRA adapter of the model, which responds then. None: the model itself.
        uid: Unique name. None: a generated name.
        backend: Name of the inference backend. None: the session's first one.
        timeout: Longest time from submission to the response, in seconds.
        priority: Prompts of higher priority are sent first. A waiting prompt gains one step of
            priority a minute. None: 0.
        on_text: Called with each piece of the response while the model writes it, on the loop that
            submitted the task. Only for one response to one prompt.
        stop_sequences: Another name for `stop`.
        tools: What the model may call: functions, ComputeTasks with a function whose calls have
            their options, and functions annotated to return the ComputeTask of a call. In a
            session each call runs as a task, and its result goes back to the model, until the
            model responds without a call.
        max_rounds: How often the model may respond; its last response must call no tool. None: 8.
        on_tool_error: "tell" to tell the model of a tool that failed, "fail" to fail the task.
            None: "tell".
        tool_choice: What the first response calls: "auto", as the model decides; "required", a
            tool; or the name of one. None: "auto".
        max_result_chars: How many characters of a tool's result the model gets. A longer one is
            cut, and the text says so. None: 20,000.
        **extra: More sampling parameters of the engine, such as `logprobs` (the number of most
            likely tokens to return) and `response_format` (a pydantic model class, or a dict as in
            OpenAI's API). Unknown fields are refused, since the model would never see them.

    Raises:
        TaskValidationError: A field is invalid; the message names it and the expected value.
    """

    __slots__ = ()

    foreign_fields: Mapping[str, str] = {
        **dict.fromkeys(
            ("arguments", "args", "executable", "function", "kwargs", "resources"),
            "it is a field of ComputeTask",
        ),
        "guided_json": "did you mean 'response_format'?",
        "queue_timeout": "the 'timeout' of a prompt includes the time in the queue; set that",
        "max_length": "did you mean 'max_tokens'?",
    }
    _validator = AI_FIELDS
    takes_own_fields = False
    known_fields = (
        BaseTask.known_fields
        | SAMPLING_FIELDS
        | {"adapter", "inference_endpoint", "kind", "model", "on_text", "prompt"}
        | {"stop_sequences", "system_prompt"}
        | set(AGENT_OPTIONS)
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
        kind: str | None = None,
        adapter: str | None = None,
        uid: str | None = None,
        backend: str | None = None,
        timeout: float | None = None,
        priority: int | None = None,
        on_text: OnText | None = None,
        stop_sequences: Sequence[str] | None = None,
        tools: Sequence[Any] | None = None,
        max_rounds: int | None = None,
        on_tool_error: str | None = None,
        tool_choice: str | None = None,
        max_result_chars: int | None = None,
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
            "kind": kind,
            "adapter": adapter,
            "backend": backend,
            "timeout": timeout,
            "priority": priority,
            "on_text": on_text,
            "tools": tools,
            "max_rounds": max_rounds,
            "on_tool_error": on_tool_error,
            "tool_choice": tool_choice,
            "max_result_chars": max_result_chars,
        }
        given = {k: v for k, v in fields.items() if v is not None}
        given["prompt"] = prompt
        super().__init__(given, extra)
        self._check_kind()
        if on_text is not None:
            self._check_on_text()
        if any(self[name] is not None for name in AGENT_OPTIONS):
            self._check_tools()

    def __missing__(self, field: str) -> Any:
        return self["stop"] if field == "stop_sequences" else super().__missing__(field)

    def _check_kind(self) -> None:
        kind, prompt = self["kind"] or GENERATE, self["prompt"]
        if not is_prompt(kind, prompt):
            self._refuse("prompt", prompt, must_be("prompt", EXPECTED_PROMPTS[kind], prompt))
        if kind == GENERATE:
            return
        for field in GENERATE_ONLY:
            if self[field] is not None:
                text = f"'{field}' has no meaning for the kind '{kind}'; leave it out"
                self._refuse(field, self[field], text)

    def _check_tools(self) -> None:
        tools = self["tools"]
        if tools is None:
            name = next(name for name in AGENT_OPTIONS if self[name] is not None)
            self._refuse(name, self[name], f"'{name}' needs 'tools'")
        try:
            make_agent(self, _not_run)
        except (ConfigurationError, TypeError) as error:
            self._refuse("tools", tools, str(error))
        first_messages(self)

    def _check_on_text(self) -> None:
        on_text = self["on_text"]
        if not callable(on_text) or inspect.iscoroutinefunction(on_text):
            expected = "a plain function that takes a string, such as print"
            self._refuse("on_text", on_text, must_be("on_text", expected, on_text))
        if self["n"] not in (None, 1) or not (
            isinstance(self["prompt"], str) or is_chat(self["prompt"])
        ):
            self._refuse(
                "on_text", on_text, "'on_text' needs one response to one prompt; leave it out"
            )

    def _subject(self) -> str:
        return f"prompt={brief(self['prompt'])}"


async def _not_run(task: BaseTask) -> None:
    """Take the place of a session, while a task is checked."""
