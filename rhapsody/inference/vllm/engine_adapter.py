"""The engine adapter: prompts of the batch route for vLLM's engine, its outputs as events."""

from __future__ import annotations

import asyncio
import copy
import threading
from collections.abc import AsyncGenerator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from rhapsody.inference.kinds import CHAT
from rhapsody.inference.protocol.batch import Event, delta_event, done_event, token_usage
from rhapsody.inference.protocol.errors import RequestError
from rhapsody.inference.vllm.chat_route import (
    MediaPolicy,
    chat_event,
    chat_sampling,
    media_parts,
)
from rhapsody.inference.vllm.pairs import AskRoute
from rhapsody.inference.vllm.pooling import Pooler, PreparedInput
from rhapsody.inference.vllm.versions import (
    adapters_of,
    ai_kinds,
    chat_options,
    engine_prompt,
    error_status,
    tokenizer_of,
)

__all__ = ["AnyPrepared", "EngineAdapter", "PreparedChat", "PreparedPrompt", "request_error"]

PROMPTS_PER_CALL = 64
"""Prompts that are tokenized in a thread before the first of them go to the engine."""
CHARACTERS_PER_CALL = 100_000
"""Characters of those prompts, unless a single prompt has more."""
THREADS = 4
"""Threads that tokenize, so that a long prompt holds up only the prompts of its part."""
INLINE_CHARACTERS = 2000
"""Tokenizing a shorter prompt costs less than handing it to a thread."""


@dataclass(frozen=True)
class PreparedPrompt:
    """A prompt in the form that the engine takes."""

    token_ids: list[int]
    params: Any
    stream: bool
    order: int = 0
    adapter: Any = None
    """The engine's request of a LoRA adapter; None: the model itself."""


@dataclass(frozen=True)
class PreparedChat:
    """A chat for vLLM's own route: how calls of tools and media are read depends on the model."""

    body: dict[str, Any]
    has_tools: bool = True
    stream: bool = False


AnyPrepared = PreparedPrompt | PreparedInput | PreparedChat

Prepared = tuple[int, AnyPrepared | Exception]
"""The position of a prompt in its batch, and the prompt or its error."""


class EngineAdapter:
    """Runs prompts of the batch route on a server's engine.

    Args:
        engine: The server's engine client, an AsyncLLM.
        tokenizer: The model's tokenizer; the adapter is its only user.
        chat_template: The server's chat template; None: the tokenizer's own.
        template_arguments: The server's default arguments for the template.
        pooler: Handles the other kinds than generate; None: there are none.
        adapters: The engine's requests of the loaded LoRA adapters, by name.
    """

    def __init__(
        self,
        engine: Any,
        tokenizer: Any,
        chat_template: str | None,
        template_arguments: Mapping[str, Any],
        pooler: Pooler | None = None,
        adapters: Mapping[str, Any] | None = None,
    ) -> None:
        self._adapters = {} if adapters is None else adapters
        self._engine = engine
        self._tokenizer = tokenizer
        # A fast tokenizer raises "Already borrowed" if two threads use it at a time, so each
        # thread copies this one, which is not used otherwise.
        self._original = copy.deepcopy(tokenizer)
        self._copying = threading.Lock()
        self._of_thread = threading.local()
        self._pooler = pooler or Pooler(engine, ["generate"], False, None)
        self._template = chat_template
        self._template_arguments = dict(template_arguments)
        config = engine.model_config
        scheduler = getattr(getattr(engine, "vllm_config", None), "scheduler_config", None)
        self._media = MediaPolicy(config)
        self._has_priorities = getattr(scheduler, "policy", "fcfs") == "priority"
        self._max_model_len = int(config.max_model_len)
        longest = _longest_token(tokenizer)
        self._max_characters = self._max_model_len * longest if longest else None
        self._defaults = dict(config.get_diff_sampling_param() or {})
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="rhapsody-tokens")

    @classmethod
    async def of(cls, state: Any, ask: AskRoute) -> EngineAdapter:
        """Return the adapter for a server.

        Args:
            state: The state of the server's application.
            ask: Sends a body to one of the server's own routes.
        """
        # A copy: threads of vLLM use the original.
        tokenizer = copy.deepcopy(await tokenizer_of(state.engine_client))
        pooler = Pooler(state.engine_client, *await ai_kinds(state.engine_client), ask)
        adapters = adapters_of(state)
        return cls(state.engine_client, tokenizer, *chat_options(state), pooler, adapters)

    async def prepare(
        self, items: Sequence[Mapping[str, Any]]
    ) -> AsyncGenerator[list[Prepared], None]:
        """Yield each prompt in the engine's form, or its error, a few prompts at a time.

        Args:
            items: Prompts of a batch request.

        Yields:
            The positions of some prompts, and what they have become.
        """
        if len(items) == 1 and _is_short(items[0].get("prompt")):
            yield self._prepare_all(list(enumerate(items)), self._tokenizer)
            return
        loop = asyncio.get_running_loop()
        preparing = [
            loop.run_in_executor(self._threads, self._prepare_in_thread, part)
            for part in _parts(items)
        ]
        try:
            for prepared in asyncio.as_completed(preparing):
                yield await prepared
        finally:
            for part in preparing:
                part.cancel()

    def _prepare_in_thread(self, part: Sequence[tuple[int, Mapping[str, Any]]]) -> list[Prepared]:
        if not hasattr(self._of_thread, "tokenizer"):
            with self._copying:
                self._of_thread.tokenizer = copy.deepcopy(self._original)
        return self._prepare_all(part, self._of_thread.tokenizer)

    def _prepare_all(
        self, part: Sequence[tuple[int, Mapping[str, Any]]], tokenizer: Any
    ) -> list[Prepared]:
        prepared: list[Prepared] = []
        for position, item in part:
            try:
                prepared.append((position, self._prepare(item, tokenizer)))
            except Exception as error:
                prepared.append((position, error))
        return prepared

    def _prepare(self, item: Mapping[str, Any], tokenizer: Any) -> AnyPrepared:
        kind = item.get("kind") or "generate"
        self._pooler.check_kind("generate" if kind == CHAT else kind)
        prompt, messages = item.get("prompt"), item.get("messages")
        if (prompt is None) == (messages is None):
            raise RequestError("Exactly one of prompt and messages must be given.", "prompt")
        characters = _characters_of(item)
        if self._max_characters is not None and characters > self._max_characters:
            raise RequestError(
                f"The prompt has {characters} characters. The context of {self._max_model_len} "
                f"tokens has room for at most {self._max_characters}; shorten the prompt.",
                "prompt",
            )
        order = item.get("order") or 0
        if not isinstance(order, int):
            raise RequestError(f"order must be an integer, got {order!r:.80}.", "order")
        order = order if self._has_priorities else 0
        has_media = False
        for where, part in media_parts(messages):
            self._media.check(where, part)
            has_media = True
        if kind == CHAT or (kind == "generate" and has_media):
            has_tools = kind == CHAT
            options = item.get("options") if has_tools else chat_sampling(item.get("sampling"))
            body = {**(options or {}), "messages": messages}
            if order:
                body["priority"] = order
            if item.get("adapter") is not None:
                body["model"] = item["adapter"]
            return PreparedChat(body, has_tools, bool(item.get("stream")))
        adapter = self._adapter_of(item)
        if kind != "generate":
            return self._pooler.prepare(item, tokenizer, order, adapter)
        stream = bool(item.get("stream"))
        token_ids = self._tokens_of(tokenizer, prompt, messages)
        params = self._params_of(item.get("sampling") or {}, len(token_ids), stream)
        return PreparedPrompt(token_ids, params, stream, order, adapter)

    def _adapter_of(self, item: Mapping[str, Any]) -> Any:
        """Return the engine's request of a prompt's adapter. Raises RequestError if unknown."""
        name = item.get("adapter")
        if name is None:
            return None
        if name not in self._adapters:
            known = ", ".join(sorted(self._adapters)) or "none"
            raise RequestError(
                f"The adapter {name!r:.80} is not loaded; loaded: {known}.", "adapter", code=404
            )
        return self._adapters[name]

    def _tokens_of(self, tokenizer: Any, prompt: Any, messages: Any) -> list[int]:
        if prompt is not None:
            if not isinstance(prompt, str) or not prompt:
                raise RequestError(f"prompt must be a non-empty str, got {prompt!r:.80}.", "prompt")
            if self._has_template():
                messages = [{"role": "user", "content": prompt}]
            else:
                return [int(token) for token in tokenizer.encode(prompt)]
        if not isinstance(messages, list) or not messages:
            raise RequestError(
                f"messages must be a non-empty list, got {messages!r:.80}.", "messages"
            )
        if not self._has_template():
            raise RequestError(
                "This model has no chat template, so it takes texts but neither messages nor a "
                "system prompt. Set the key chat-template to give it one.",
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
        # As on /v1: at most the room in the context and the model's own default.
        room = self._max_model_len - prompt_tokens
        given = values.get("max_tokens", room)
        if not isinstance(given, int):
            raise RequestError(f"max_tokens must be an integer, got {given!r:.80}.", "max_tokens")
        # The engine itself refuses a prompt without room for a completion.
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
        except TypeError as error:  # vLLM's comparison does not name the parameter
            raise _wrong_type(values, error) from error

    async def events(self, prompt_id: str, prepared: AnyPrepared) -> AsyncGenerator[Event, None]:
        """Yield the events of one prompt: its deltas if it streams, then its last event.

        Args:
            prompt_id: The prompt's id.
            prepared: The prompt.

        Raises:
            Exception: The engine's error, see `request_error`.
        """
        if isinstance(prepared, PreparedChat):
            assert self._pooler.ask is not None
            answer = await self._pooler.ask("/v1/chat/completions", prepared.body)
            event = chat_event(prompt_id, answer, has_tools=prepared.has_tools)
            if prepared.stream:  # in one piece: the route is asked for the whole response
                yield delta_event(prompt_id, 0, event["texts"][0])
            yield event
            return
        if isinstance(prepared, PreparedInput):
            yield await self._pooler.event(prompt_id, prepared)
            return
        outputs = self._engine.generate(
            engine_prompt(prepared.token_ids),
            prepared.params,
            f"rhapsody-{prompt_id}",
            priority=prepared.order,
            **({} if prepared.adapter is None else {"lora_request": prepared.adapter}),
        )
        completions = _Completions(len(prepared.token_ids), prepared.params.n)
        async with aclosing(outputs):
            async for output in outputs:
                for choice in output.outputs:
                    completions.add(choice)
                    if prepared.stream and choice.text:
                        yield delta_event(prompt_id, choice.index, choice.text)
        yield completions.event(prompt_id)


def _parts(items: Sequence[Mapping[str, Any]]) -> list[list[tuple[int, Mapping[str, Any]]]]:
    """Divide prompts into parts for the threads."""
    parts: list[list[tuple[int, Mapping[str, Any]]]] = []
    left = 0
    for position, item in enumerate(items):
        characters = _characters_of(item)
        if not parts or len(parts[-1]) == PROMPTS_PER_CALL or characters > left:
            parts.append([])
            left = CHARACTERS_PER_CALL
        parts[-1].append((position, item))
        left -= characters
    return parts


def _characters_of(item: Mapping[str, Any]) -> int:
    """Return the number of characters in a prompt, which is not checked yet."""
    prompt, messages, document = item.get("prompt"), item.get("messages"), item.get("document")
    if isinstance(prompt, str):
        return len(prompt) + (len(document) if isinstance(document, str) else 0)
    if not isinstance(messages, list):
        return 0
    characters = 0
    for message in messages:
        content = message.get("content") if isinstance(message, Mapping) else None
        for part in content if isinstance(content, list) else [content]:
            text = part.get("text") if isinstance(part, Mapping) else part
            characters += len(text) if isinstance(text, str) else 0
    return characters


def _longest_token(tokenizer: Any) -> int | None:
    """Return the most characters of one token; None if the tokenizer does not tell."""
    known = getattr(tokenizer, "max_chars_per_token", None)  # set by vLLM
    if isinstance(known, int):
        return known
    vocabulary: Mapping[Any, int] = getattr(tokenizer, "get_vocab", dict)()
    return max(map(len, vocabulary), default=None)


def _is_short(prompt: Any) -> bool:
    return isinstance(prompt, str) and len(prompt) < INLINE_CHARACTERS


class _Completions:
    """The completions of one prompt, joined from the engine's outputs."""

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

    def event(self, prompt_id: str) -> Event:
        texts = ["".join(parts) for parts in self._texts]
        usage = token_usage(self._prompt_tokens, self._tokens)
        event = done_event(prompt_id, texts, self._reasons, usage)
        if self._has_logprobs:
            event["logprobs"] = self._logprobs
        return event


def _plain(message: Any, position: int) -> dict[str, Any]:
    """Return a message with its text parts joined: not all templates take lists of parts."""
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise RequestError(f"messages[{position}] must be an object with a role.", "messages")
    content = message.get("content")
    if isinstance(content, list):
        parts = [p.get("text") if isinstance(p, Mapping) else None for p in content]
        if not all(isinstance(part, str) for part in parts):
            raise RequestError(
                f"messages[{position}].content must be a text or a list of parts such as "
                '{"type": "text", "text": ...}.',
                "messages",
            )
        content = "\n".join(str(part) for part in parts)
    elif content is None and "tool_calls" not in message:
        raise RequestError(f"messages[{position}] must have content or tool_calls.", "messages")
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
    raise RequestError(
        'response_format must be {"type": "text"}, {"type": "json_object"} or {"type": '
        f'"json_schema", "json_schema": {{"name": ..., "schema": ...}}}}, got '
        f"{response_format!r:.80}.",
        "response_format",
    )


def _wrong_type(values: Mapping[str, Any], error: TypeError) -> Exception:
    """Return an error that names the parameter of the wrong type."""
    from vllm.sampling_params import SamplingParams

    for name, value in values.items():
        try:
            SamplingParams(**{name: value})
        except TypeError:
            return RequestError(f"{name}={value!r:.80} has the wrong type.", name)
        except Exception:
            continue
    return error


def _logprob_of(token: int, found: Mapping[int, Any]) -> Event:
    """Return one token's log probabilities in OpenAI's format."""

    def one(token_id: int) -> Event:
        entry = found[token_id]
        return {"token": entry.decoded_token, "token_id": token_id, "logprob": entry.logprob}

    likeliest = sorted(found, key=lambda token_id: found[token_id].rank or 0)
    return {**one(token), "top_logprobs": [one(token_id) for token_id in likeliest]}


def request_error(error: BaseException) -> RequestError:
    """Return the error of a prompt for an exception that the engine raised for it.

    Args:
        error: The exception.
    """
    if isinstance(error, RequestError):
        return error
    code, kind = error_status(error)
    cause = error.__cause__
    if not str(error) and cause is not None:  # vLLM's EngineGenerateError has no message
        code, kind = error_status(cause)
        error = cause
    param = getattr(error, "param", getattr(error, "parameter", None))
    param = param if isinstance(param, str) else None
    return RequestError(str(error) or type(error).__name__, param, code, kind)
