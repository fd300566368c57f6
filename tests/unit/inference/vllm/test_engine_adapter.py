"""The engine adapter: prompts as tokens and parameters, outputs as events, and errors.

vLLM is replaced: its import takes ten seconds. The real one is in tests/integration/vllm.
"""

import asyncio
import sys
import threading
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from rhapsody.inference.protocol.errors import RequestError
from rhapsody.inference.vllm.engine_adapter import (
    INLINE_CHARACTERS,
    PROMPTS_PER_CALL,
    EngineAdapter,
    PreparedChat,
    PreparedPrompt,
    request_error,
)
from rhapsody.inference.vllm.pooling import Pooler
from tests.support.images import chat_about, png, url_of

CONTEXT = 100
DEFAULTS = {"temperature": 0.7}


class SamplingParams:
    """vLLM's class as far as the adapter uses it."""

    n = 1

    def __init__(self, **values: Any) -> None:
        if not isinstance(values.get("top_p", 1.0), float):
            raise TypeError("'<' not supported between instances of 'str' and 'int'")
        self.values = values
        self.n = values.get("n", 1)


class StructuredOutputsParams(SimpleNamespace):
    pass


class Tokenizer:
    """One token per character; a chat is the contents of its messages."""

    def __init__(self, chat_template: str | None = "template") -> None:
        self.chat_template = chat_template

    def encode(self, text: str) -> list[int]:
        return [ord(character) for character in text]

    def apply_chat_template(self, messages: list[dict[str, Any]], **options: Any) -> Any:
        assert options["add_generation_prompt"]
        text = "".join(f"<{message['role']}>{message['content']}" for message in messages)
        if options.get("as_mapping"):  # transformers 5
            return {"input_ids": self.encode(text)}
        return self.encode(text)


@dataclass
class Output:
    index: int
    text: str
    token_ids: list[int]
    finish_reason: str | None = None
    logprobs: Any = None


@dataclass
class Engine:
    """An engine with scripted outputs."""

    outputs: list[list[Output]] = field(default_factory=list)
    error: Exception | None = None
    requests: list[tuple[Any, Any, str]] = field(default_factory=list)
    closed: bool = False
    policy: str = "priority"
    priorities: list[int] = field(default_factory=list)
    adapters: list[Any] = field(default_factory=list)
    takes_images: bool = False

    @property
    def vllm_config(self) -> Any:
        return SimpleNamespace(scheduler_config=SimpleNamespace(policy=self.policy))

    @property
    def model_config(self) -> Any:
        return SimpleNamespace(
            max_model_len=CONTEXT,
            get_diff_sampling_param=lambda: dict(DEFAULTS),
            is_multimodal_model=self.takes_images,
            allowed_media_domains=None,
        )

    async def generate(
        self, prompt: Any, params: Any, name: str, priority: int, lora_request: Any = None
    ) -> AsyncGenerator[Any, None]:
        self.adapters.append(lora_request)
        self.requests.append((prompt, params, name))
        self.priorities.append(priority)
        try:
            for outputs in self.outputs:
                yield SimpleNamespace(outputs=outputs)
            if self.error is not None:
                raise self.error
        finally:
            self.closed = True


@pytest.fixture(autouse=True)
def vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("vllm.sampling_params")
    module.__dict__.update(
        SamplingParams=SamplingParams,
        StructuredOutputsParams=StructuredOutputsParams,
        RequestOutputKind=SimpleNamespace(DELTA="delta", FINAL_ONLY="final"),
    )
    monkeypatch.setitem(sys.modules, "vllm", ModuleType("vllm"))
    monkeypatch.setitem(sys.modules, "vllm.sampling_params", module)


def adapter(
    engine: Engine | None = None,
    chat_template: str | None = "template",
    ask: Any = None,
    **template_arguments: Any,
) -> EngineAdapter:
    engine = engine or Engine()
    pooler = Pooler(engine, ["generate"], False, ask)
    return EngineAdapter(engine, Tokenizer(chat_template), None, template_arguments, pooler)


async def prepare(on: EngineAdapter, *items: Mapping[str, Any]) -> list[Any]:
    prepared = [one async for part in on.prepare(items) for one in part]
    return [one for _, one in sorted(prepared, key=lambda pair: pair[0])]


async def prepare_one(on: EngineAdapter | None = None, **item: Any) -> PreparedPrompt:
    [prepared] = await prepare(on or adapter(), item)
    assert isinstance(prepared, PreparedPrompt), prepared
    return prepared


async def refusal(on: EngineAdapter | None = None, **item: Any) -> RequestError:
    [error] = await prepare(on or adapter(), item)
    assert isinstance(error, RequestError), error
    return error


def text_of(prepared: PreparedPrompt) -> str:
    return "".join(map(chr, prepared.token_ids))


async def events(engine: Engine, prepared: PreparedPrompt) -> list[dict[str, Any]]:
    return [event async for event in adapter(engine).events("p", prepared)]


async def test_text_prompt_becomes_one_user_message() -> None:
    assert text_of(await prepare_one(prompt="Why?")) == "<user>Why?"


async def test_text_prompt_is_encoded_unchanged_without_template() -> None:
    assert text_of(await prepare_one(adapter(chat_template=None), prompt="Why?")) == "Why?"


async def test_messages_go_through_the_template() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": parts}]
    assert text_of(await prepare_one(messages=messages)) == "<system>Be brief.<user>a\nb"


async def test_tokens_may_come_as_a_mapping() -> None:
    assert text_of(await prepare_one(adapter(as_mapping=True), prompt="x")) == "<user>x"


async def test_messages_need_a_template() -> None:
    error = await refusal(
        adapter(chat_template=None), messages=[{"role": "user", "content": "Why?"}]
    )
    assert "has no chat template" in str(error)


@pytest.mark.parametrize(
    ("item", "param"),
    [
        ({}, "prompt"),
        ({"prompt": "a", "messages": []}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": 3}, "prompt"),
        ({"messages": []}, "messages"),
        ({"messages": ["a"]}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages"),
        ({"messages": [{"role": "user"}]}, "messages"),
        ({"prompt": "a", "sampling": {"max_tokens": "many"}}, "max_tokens"),
        ({"prompt": "a", "sampling": {"top_p": "high"}}, "top_p"),
        ({"prompt": "a", "sampling": {"response_format": {"type": "xml"}}}, "response_format"),
    ],
)
async def test_invalid_prompt_names_its_field(item: dict[str, Any], param: str) -> None:
    error = await refusal(**item)
    assert (error.param, error.code) == (param, 400)


async def test_chat_with_an_image_goes_to_the_route_of_chats() -> None:
    asked: list[Any] = []

    async def ask(path: str, body: dict[str, Any]) -> dict[str, Any]:
        asked.append((path, body))
        return {"choices": [{"message": {"content": "white"}, "finish_reason": "stop"}]}

    on = adapter(Engine(takes_images=True), ask=ask)
    chat = chat_about(url_of(png(4, 3)))
    sampling = {"max_tokens": 5, "logprobs": 2}
    [prepared] = await prepare(on, {"messages": chat, "sampling": sampling, "order": 7})
    assert isinstance(prepared, PreparedChat)
    events = [event async for event in on.events("p", prepared)]
    body = {"messages": chat, "max_tokens": 5, "logprobs": True, "top_logprobs": 2, "priority": 7}
    assert asked == [("/v1/chat/completions", body)]
    assert [(event["type"], event["texts"]) for event in events] == [("done", ["white"])]

    [prepared] = await prepare(on, {"messages": chat, "stream": True})
    events = [event async for event in on.events("p", prepared)]
    assert [event["type"] for event in events] == ["delta", "done"]
    assert events[0]["text"] == "white"


@pytest.mark.parametrize("kind", ["generate", "chat"])
async def test_model_that_reads_text_only_refuses_an_image(kind: str) -> None:
    error = await refusal(messages=chat_about(url_of(png(4, 3))), kind=kind)
    assert "messages[0].content[1] is of type 'image_url', but the model reads text only" in str(
        error
    )


async def test_invalid_prompt_does_not_affect_its_neighbours() -> None:
    found = await prepare(adapter(), {"prompt": "a"}, {"prompt": ""}, {"prompt": "b"})
    assert [type(one) for one in found] == [PreparedPrompt, RequestError, PreparedPrompt]


async def test_prompts_are_prepared_in_parts() -> None:
    items = [{"prompt": str(number)} for number in range(PROMPTS_PER_CALL + 1)]
    sizes = [len(part) async for part in adapter().prepare(items)]
    assert sizes == [PROMPTS_PER_CALL, 1]


async def test_long_prompt_is_prepared_like_a_short_one() -> None:
    text = "x" * INLINE_CHARACTERS
    assert text_of(await prepare_one(prompt=text)) == f"<user>{text}"


async def test_parameters_extend_the_defaults_of_the_model() -> None:
    prepared = await prepare_one(prompt="a", sampling={"seed": 3, "stop": None}, stream=True)
    assert prepared.stream
    values = prepared.params.values
    assert (values["temperature"], values["seed"], values["output_kind"]) == (0.7, 3, "delta")
    assert "stop" not in values


@pytest.mark.parametrize(("given", "limit"), [(None, 93), (5, 5), (1000, 93)])
async def test_max_tokens_fits_the_context(given: int | None, limit: int) -> None:
    prepared = await prepare_one(prompt="x", sampling={"max_tokens": given})
    assert len(prepared.token_ids) == 7
    assert prepared.params.values["max_tokens"] == limit


@pytest.mark.parametrize(("given", "used"), [(True, 1), (4, 4)])
async def test_logprobs_may_be_true_or_a_number(given: Any, used: int) -> None:
    prepared = await prepare_one(prompt="x", sampling={"logprobs": given})
    assert prepared.params.values["logprobs"] == used


async def test_response_format_becomes_structured_outputs() -> None:
    schema = {"type": "object"}
    for response_format, expected in (
        ({"type": "json_object"}, {"json_object": True}),
        ({"type": "json_schema", "json_schema": {"schema": schema}}, {"json": schema}),
    ):
        sampling = {"response_format": response_format}
        values = (await prepare_one(prompt="x", sampling=sampling)).params.values
        assert vars(values["structured_outputs"]) == expected
        assert "response_format" not in values


async def test_outputs_join_to_a_last_event() -> None:
    engine = Engine([[Output(0, "a", [1])], [Output(0, "b", [2, 3], "length")]])
    [event] = await events(engine, await prepare_one(prompt="x"))
    assert event == {
        "id": "p",
        "type": "done",
        "texts": ["ab"],
        "finish_reasons": ["length"],
        "usage": {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10},
    }
    assert engine.requests[0][0] == {"prompt_token_ids": [ord(c) for c in "<user>x"]}
    assert engine.requests[0][2] == "rhapsody-p"


async def test_streamed_prompt_has_a_delta_per_output() -> None:
    engine = Engine([[Output(1, "b", [1])], [Output(0, "", [2])], [Output(0, "a", [3], "stop")]])
    found = await events(engine, await prepare_one(prompt="x", stream=True, sampling={"n": 2}))
    assert [(e["index"], e["text"]) for e in found[:-1]] == [(1, "b"), (0, "a")]
    assert found[-1]["texts"] == ["a", "b"]


async def test_logprobs_are_sorted_by_rank() -> None:
    logprobs = [
        {
            5: SimpleNamespace(decoded_token="x", logprob=-2.0, rank=2),
            6: SimpleNamespace(decoded_token="y", logprob=-0.5, rank=1),
        }
    ]
    engine = Engine([[Output(0, "x", [5], "stop", logprobs)]])
    [event] = await events(engine, await prepare_one(prompt="x"))
    [[token]] = event["logprobs"]
    assert (token["token"], token["token_id"], token["logprob"]) == ("x", 5, -2.0)
    assert [top["token"] for top in token["top_logprobs"]] == ["y", "x"]


async def test_closing_the_events_closes_the_engine_request() -> None:
    engine = Engine([[Output(0, "a", [1])], [Output(0, "b", [2])]])
    stream = adapter(engine).events("p", await prepare_one(prompt="x", stream=True))
    assert (await anext(stream))["text"] == "a"
    await stream.aclose()
    assert engine.closed


async def test_error_of_the_engine_is_raised() -> None:
    engine = Engine(error=ValueError("too long"))
    prepared = await prepare_one(prompt="x")
    with pytest.raises(ValueError, match="too long"):
        await events(engine, prepared)


def test_engine_error_becomes_a_request_error() -> None:
    error = request_error(ValueError("too long"))
    assert (error.message, error.code, error.kind) == ("too long", 400, "BadRequestError")


def test_request_error_is_kept() -> None:
    error = RequestError("no", "top_p")
    assert request_error(error) is error


def test_error_without_message_is_described_by_its_cause() -> None:
    error = RuntimeError()
    error.__cause__ = ValueError("the cause")
    found = request_error(error)
    assert (found.message, found.code) == ("the cause", 400)


def test_error_without_message_and_cause_is_described_by_its_class() -> None:
    assert request_error(RuntimeError()).message == "RuntimeError"


def test_parameter_of_an_engine_error_is_kept() -> None:
    error = ValueError("bad")
    error.parameter = "top_k"  # type: ignore[attr-defined]
    assert request_error(error).param == "top_k"


class Vocabulary(Tokenizer):
    """A tokenizer whose longest token has three characters."""

    def __init__(self, chat_template: str | None = "template") -> None:
        super().__init__(chat_template)
        self.encoded: list[str] = []

    def get_vocab(self) -> dict[str, int]:
        return {"a": 0, "abc": 1}

    def encode(self, text: str) -> list[int]:
        assert len(text) <= 3 * CONTEXT + len("<user>"), "it must be refused before it is tokenized"
        return super().encode(text)


@pytest.mark.parametrize(
    "item",
    [
        {"prompt": "x" * (3 * CONTEXT + 1)},
        {"messages": [{"role": "user", "content": "x" * 3 * CONTEXT}] * 2},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "x" * 999}]}]},
    ],
)
async def test_overlong_prompt_is_refused_before_it_is_tokenized(item: dict[str, Any]) -> None:
    error = await refusal(EngineAdapter(Engine(), Vocabulary(), None, {}), **item)
    assert "has room for at most 300" in error.message
    assert (error.code, error.param) == (400, "prompt")


async def test_prompt_that_may_fit_is_tokenized() -> None:
    on = EngineAdapter(Engine(), Vocabulary(), None, {})
    assert len((await prepare_one(on, prompt="x" * 3 * CONTEXT)).token_ids) > 3 * CONTEXT


async def test_long_prompt_does_not_hold_up_later_ones() -> None:
    class Slow(Tokenizer):
        release = threading.Event()

        def encode(self, text: str) -> list[int]:
            if len(text) > 50_000:
                assert self.release.wait(20)
            return super().encode(text)

    on = EngineAdapter(Engine(), Slow(), None, {})
    items = [{"prompt": "x" * 60_000}, *[{"prompt": "hi"}] * 99]
    parts = on.prepare(items)
    first = await asyncio.wait_for(parts.__anext__(), 10)
    assert 0 not in [position for position, _ in first]
    Slow.release.set()
    rest = [one async for part in parts for one in part]
    assert sorted(position for position, _ in [*first, *rest]) == list(range(100))


@pytest.mark.parametrize(("policy", "priority"), [("priority", -7), ("fcfs", 0)])
async def test_order_is_the_priority_of_the_engine_if_it_has_priorities(
    policy: str, priority: int
) -> None:
    engine = Engine([[Output(0, "a", [1], "stop")]], policy=policy)
    on = adapter(engine)
    prepared = await prepare_one(on, prompt="hi", order=-7)
    assert [event["type"] async for event in on.events("p", prepared)] == ["done"]
    assert engine.priorities == [priority]


async def test_order_must_be_an_integer() -> None:
    assert (await refusal(prompt="hi", order="first")).param == "order"


async def test_adapter_of_a_prompt_goes_to_the_engine() -> None:
    loaded = SimpleNamespace(lora_name="tuned")
    engine = Engine([[Output(0, "text", [1], "stop")]])
    on = EngineAdapter(engine, Tokenizer(), None, {}, adapters={"tuned": loaded})
    for name in ("tuned", None):
        prepared = await prepare_one(on, prompt="hi", adapter=name)
        assert [event["type"] async for event in on.events("p", prepared)] == ["done"]
    assert engine.adapters == [loaded, None]
    error = await refusal(on, prompt="hi", adapter="other")
    assert (error.code, error.message) == (404, "The adapter 'other' is not loaded; loaded: tuned.")


async def test_chat_with_tools_names_its_adapter_as_the_model() -> None:
    messages = [{"role": "user", "content": "hi"}]
    [prepared] = await prepare(
        adapter(), {"messages": messages, "kind": "chat", "options": {}, "adapter": "tuned"}
    )
    assert prepared.body["model"] == "tuned"
