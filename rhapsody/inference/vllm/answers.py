"""Prompts to vLLM's engine, and its outputs as events of the batch route."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import AsyncGenerator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import Any

from rhapsody.inference.vllm.versions import (
    chat_options,
    engine_prompt,
    error_status,
    tokenizer_of,
)

__all__ = ["Answers", "Event", "error_event"]

Event = dict[str, Any]

PROMPTS_PER_CALL = 64
"""Prompts that a thread makes tokens of before the first of them go on to the engine."""
INLINE_CHARACTERS = 2000
"""So much text costs less than to hand it to a thread."""


@dataclass(frozen=True)
class Prepared:
    """A prompt as the engine takes it."""

    token_ids: list[int]
    params: Any
    stream: bool


class BadPrompt(ValueError):
    """A prompt, or a parameter of it, that no engine could take.

    Args:
        message: What is wrong with it.
        param: The field at fault.
    """

    def __init__(self, message: str, param: str) -> None:
        super().__init__(message)
        self.param = param


class Answers:
    """Puts prompts to the engine of one server.

    Args:
        engine: The server's engine client, an AsyncLLM.
        tokenizer: The model's tokenizer, for this only.
        chat_template: The template that the server was given; None is the tokenizer's own.
        template_arguments: What the server always gives to the template.
    """

    def __init__(
        self,
        engine: Any,
        tokenizer: Any,
        chat_template: str | None,
        template_arguments: Mapping[str, Any],
    ) -> None:
        self._engine = engine
        self._tokenizer = tokenizer
        # A fast tokenizer that two threads use at a time says "Already borrowed".
        self._tokenizer_of_thread = copy.deepcopy(tokenizer)
        self._template = chat_template
        self._template_arguments = dict(template_arguments)
        config = engine.model_config
        self._max_model_len = int(config.max_model_len)
        self._defaults = dict(config.get_diff_sampling_param() or {})
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="rhapsody-tokens")

    @classmethod
    async def of(cls, state: Any) -> Answers:
        """Make one for the server whose application has this state."""
        # A copy, since threads of vLLM's use the original.
        tokenizer = copy.deepcopy(await tokenizer_of(state.engine_client))
        return cls(state.engine_client, tokenizer, *chat_options(state))

    async def prepare(
        self, items: Sequence[Mapping[str, Any]]
    ) -> AsyncGenerator[list[Prepared | Exception], None]:
        """Yield what the engine takes for each prompt, or why it cannot, some prompts at a time.

        Args:
            items: Prompts of the batch route.
        """
        if len(items) == 1 and _is_short(items[0].get("prompt")):
            yield self._prepare_all(items, self._tokenizer)
            return
        loop = asyncio.get_running_loop()
        for begin in range(0, len(items), PROMPTS_PER_CALL):
            part = items[begin : begin + PROMPTS_PER_CALL]
            preparing = partial(self._prepare_all, part, self._tokenizer_of_thread)
            yield await loop.run_in_executor(self._thread, preparing)

    def _prepare_all(
        self, items: Sequence[Mapping[str, Any]], tokenizer: Any
    ) -> list[Prepared | Exception]:
        prepared: list[Prepared | Exception] = []
        for item in items:
            try:
                prepared.append(self._prepare(item, tokenizer))
            except Exception as error:
                prepared.append(error)
        return prepared

    def _prepare(self, item: Mapping[str, Any], tokenizer: Any) -> Prepared:
        prompt, messages = item.get("prompt"), item.get("messages")
        if (prompt is None) == (messages is None):
            raise BadPrompt("exactly one of prompt and messages must be given", "prompt")
        stream = bool(item.get("stream"))
        token_ids = self._tokens_of(tokenizer, prompt, messages)
        params = self._params_of(item.get("sampling") or {}, len(token_ids), stream)
        return Prepared(token_ids, params, stream)

    def _tokens_of(self, tokenizer: Any, prompt: Any, messages: Any) -> list[int]:
        if prompt is not None:
            if not isinstance(prompt, str) or not prompt:
                raise BadPrompt(f"prompt must be a non-empty string, not {prompt!r:.80}", "prompt")
            if self._has_template():
                messages = [{"role": "user", "content": prompt}]
            else:
                return [int(token) for token in tokenizer.encode(prompt)]
        if not isinstance(messages, list) or not messages:
            raise BadPrompt("messages must be a non-empty list", "messages")
        if not self._has_template():
            raise BadPrompt(
                "this model has no chat template, so it takes texts but neither messages nor a "
                "system prompt; give it one with the key chat-template",
                "messages",
            )
        tokens = tokenizer.apply_chat_template(
            [_plain(message, position) for position, message in enumerate(messages)],
            chat_template=self._template,
            tokenize=True,
            add_generation_prompt=True,
            **self._template_arguments,
        )
        if isinstance(tokens, Mapping):  # transformers 5: a BatchEncoding
            tokens = tokens["input_ids"]
        return [int(token) for token in tokens]

    def _has_template(self) -> bool:
        # A tokenizer without the attribute (Mistral's own) writes chats by itself.
        return bool(self._template or getattr(self._tokenizer, "chat_template", True))

    def _params_of(self, sampling: Mapping[str, Any], prompt_tokens: int, stream: bool) -> Any:
        from vllm.sampling_params import RequestOutputKind, SamplingParams

        values = {**self._defaults, **{k: v for k, v in sampling.items() if v is not None}}
        # As /v1 does: what the context has room for, and no more than a default of the model's.
        room = self._max_model_len - prompt_tokens
        given = values.get("max_tokens", room)
        if not isinstance(given, int):
            raise BadPrompt(f"max_tokens={given!r:.80} is of the wrong type", "max_tokens")
        # A prompt without room for an answer is refused by the engine, in its own words.
        values["max_tokens"] = min(given, max(room, 1), self._defaults.get("max_tokens", given))
        if values.get("logprobs") is True:
            values["logprobs"] = 1
        elif values.get("logprobs") is False:
            del values["logprobs"]
        response_format = values.pop("response_format", None)
        if response_format is not None:
            values["structured_outputs"] = _structured_outputs(response_format)
        kind = RequestOutputKind.DELTA if stream else RequestOutputKind.FINAL_ONLY
        try:
            return SamplingParams(**values, output_kind=kind)
        except TypeError as error:  # vLLM's comparisons do not say of what
            raise _of_wrong_type(values, error) from error

    async def events(self, name: str, prepared: Prepared) -> AsyncGenerator[Event, None]:
        """Yield the events of one prompt: pieces of a stream, then the end.

        Args:
            name: The prompt's id.
            prepared: The prompt.

        Raises:
            Exception: As the engine does; `error_event` puts it into words.
        """
        outputs = self._engine.generate(
            engine_prompt(prepared.token_ids), prepared.params, f"rhapsody-{name}"
        )
        end = _End(len(prepared.token_ids), prepared.params.n)
        async with aclosing(outputs):
            async for output in outputs:
                for choice in output.outputs:
                    end.add(choice)
                    if prepared.stream and choice.text:
                        yield {
                            "id": name,
                            "type": "delta",
                            "index": choice.index,
                            "text": choice.text,
                        }
        yield end.event(name)


def _is_short(prompt: Any) -> bool:
    return isinstance(prompt, str) and len(prompt) < INLINE_CHARACTERS


class _End:
    """What has come of one prompt: whole outputs, or the pieces of a stream."""

    def __init__(self, prompt_tokens: int, choices: int) -> None:
        self._prompt_tokens = prompt_tokens
        self._texts: list[list[str]] = [[] for _ in range(choices)]
        self._reasons = ["stop"] * choices
        self._logprobs: list[list[Event]] = [[] for _ in range(choices)]
        self._has_logprobs = False
        self._tokens = 0

    def add(self, choice: Any) -> None:
        self._texts[choice.index].append(choice.text)
        self._tokens += len(choice.token_ids)
        if choice.finish_reason is not None:
            self._reasons[choice.index] = choice.finish_reason
        if choice.logprobs is not None:
            self._has_logprobs = True
            for token, found in zip(choice.token_ids, choice.logprobs, strict=False):
                self._logprobs[choice.index].append(_logprob_of(token, found))

    def event(self, name: str) -> Event:
        event: Event = {
            "id": name,
            "type": "done",
            "texts": ["".join(parts) for parts in self._texts],
            "finish_reasons": self._reasons,
            "usage": {
                "prompt_tokens": self._prompt_tokens,
                "completion_tokens": self._tokens,
                "total_tokens": self._prompt_tokens + self._tokens,
            },
        }
        if self._has_logprobs:
            event["logprobs"] = self._logprobs
        return event


def _plain(message: Any, position: int) -> dict[str, Any]:
    """A message whose content is one text: templates need not know of lists of parts."""
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise BadPrompt(f"messages[{position}] must be an object with a role", "messages")
    content = message.get("content")
    if isinstance(content, list):
        parts = [p.get("text") if isinstance(p, Mapping) else None for p in content]
        if not all(isinstance(part, str) for part in parts):
            raise BadPrompt(
                f"messages[{position}] has content that is no text; send images and the like to "
                "/v1/chat/completions",
                "messages",
            )
        content = "\n".join(str(part) for part in parts)
    elif content is None and "tool_calls" not in message:
        raise BadPrompt(f"messages[{position}] has no content", "messages")
    return {**message, "content": content}


def _structured_outputs(response_format: Any) -> Any:
    from vllm.sampling_params import StructuredOutputsParams

    kind = response_format.get("type") if isinstance(response_format, Mapping) else None
    if kind == "text":
        return None
    if kind == "json_object":
        return StructuredOutputsParams(json_object=True)
    if kind == "json_schema" and isinstance(response_format.get("json_schema"), Mapping):
        return StructuredOutputsParams(json=response_format["json_schema"].get("schema"))
    raise BadPrompt(
        'response_format must be {"type": "text"}, {"type": "json_object"} or {"type": '
        f'"json_schema", "json_schema": {{"name": ..., "schema": ...}}}}, not '
        f"{response_format!r:.80}",
        "response_format",
    )


def _of_wrong_type(values: Mapping[str, Any], error: TypeError) -> Exception:
    """Find the parameter that has the wrong type."""
    from vllm.sampling_params import SamplingParams

    for name, value in values.items():
        try:
            SamplingParams(**{name: value})
        except TypeError:
            return BadPrompt(f"{name}={value!r:.80} is of the wrong type", name)
        except Exception:
            continue
    return error


def _logprob_of(token: int, found: Mapping[int, Any]) -> Event:
    """One token's log probabilities, in the shape that OpenAI gives them."""

    def one(token_id: int) -> Event:
        entry = found[token_id]
        return {"token": entry.decoded_token, "token_id": token_id, "logprob": entry.logprob}

    likeliest = sorted(found, key=lambda token_id: found[token_id].rank or 0)
    return {**one(token), "top_logprobs": [one(token_id) for token_id in likeliest]}


def error_event(name: str, error: BaseException) -> Event:
    """Put an error into the last event of a prompt.

    Args:
        name: The prompt's id.
        error: What was raised for it.
    """
    code, kind = error_status(error)
    cause = error.__cause__
    if not str(error) and cause is not None:  # EngineGenerateError has no words of its own
        code, kind = error_status(cause)
        error = cause
    param = getattr(error, "param", getattr(error, "parameter", None))
    return {
        "id": name,
        "type": "error",
        "message": str(error) or type(error).__name__,
        "param": param if isinstance(param, str) else None,
        "code": code,
        "kind": kind,
    }
