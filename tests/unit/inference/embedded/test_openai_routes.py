"""The OpenAI routes of the embedded server, with the real `openai` client."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import aiohttp
import openai
import pytest

from tests.support.embedded_servers import Server, Servers, until_metric

try:
    import httpx2 as httpx  # used by openai >= 3
except ImportError:
    import httpx  # type: ignore[no-redef]

MESSAGES: Any = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.fixture
def sync_openai(server: Server) -> Iterator[openai.OpenAI]:
    transport = httpx.HTTPTransport(uds=str(server.uds) if server.uds else None)
    with openai.OpenAI(
        base_url=f"{server.url}/v1",
        api_key="unused",
        default_headers=server.headers,
        http_client=httpx.Client(transport=transport),
        max_retries=0,
        timeout=20,
    ) as client:
        yield client


@pytest.fixture
async def async_openai(server: Server) -> AsyncIterator[openai.AsyncOpenAI]:
    transport = httpx.AsyncHTTPTransport(uds=str(server.uds) if server.uds else None)
    async with openai.AsyncOpenAI(
        base_url=f"{server.url}/v1",
        api_key="unused",
        default_headers=server.headers,
        http_client=httpx.AsyncClient(transport=transport),
        max_retries=0,
        timeout=20,
    ) as client:
        yield client


async def post(client: aiohttp.ClientSession, path: str, body: Any) -> tuple[int, Any]:
    async with client.post(path, json=body) as response:
        return response.status, await response.json()


def test_chat_has_text_role_reason_and_usage(sync_openai: openai.OpenAI) -> None:
    response = sync_openai.chat.completions.create(
        model="tiny", messages=MESSAGES, temperature=0, max_tokens=50, user="someone"
    )
    [choice] = response.choices
    assert "France" in (choice.message.content or "")
    assert choice.message.role == "assistant"
    assert choice.finish_reason == "stop"
    assert response.system_fingerprint == "rhapsody-embedded-ngram"
    usage = response.usage
    assert usage is not None
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert usage.prompt_tokens > 5


async def test_streamed_chat_joins_to_the_plain_one(async_openai: openai.AsyncOpenAI) -> None:
    options: Any = {"model": "tiny", "messages": MESSAGES, "seed": 3, "max_tokens": 20, "n": 2}
    plain = await async_openai.chat.completions.create(**options)
    stream = await async_openai.chat.completions.create(
        **options, stream=True, stream_options={"include_usage": True}
    )
    texts, reasons, roles, usage, pieces = ["", ""], {}, {}, None, 0
    async for chunk in stream:
        usage = chunk.usage or usage
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            pieces += bool(choice.delta.content)
            if choice.delta.role:
                roles[choice.index] = choice.delta.role
            if choice.finish_reason:
                reasons[choice.index] = choice.finish_reason
    assert texts == [choice.message.content for choice in plain.choices]
    assert reasons == {choice.index: choice.finish_reason for choice in plain.choices}
    assert roles == {0: "assistant", 1: "assistant"}
    assert usage == plain.usage
    assert pieces > 10


def test_chat_streams_to_the_synchronous_client(sync_openai: openai.OpenAI) -> None:
    with sync_openai.chat.completions.create(
        model="tiny", messages=MESSAGES, temperature=0, stream=True
    ) as stream:
        text = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
    assert "France" in text


def test_completions_of_several_prompts_with_echo(sync_openai: openai.OpenAI) -> None:
    response = sync_openai.completions.create(
        model="tiny", prompt=["The sum of 2 and 2 is", "Once upon a"], temperature=0, n=2, echo=True
    )
    assert [choice.index for choice in response.choices] == [0, 1, 2, 3]
    assert response.choices[0].text.startswith("The sum of 2 and 2 is 4.")
    assert response.choices[3].text.startswith("Once upon a time")


@pytest.mark.parametrize("echo", [True, False])
def test_streamed_completions_join_to_the_plain_ones(
    sync_openai: openai.OpenAI, echo: bool
) -> None:
    options: Any = {"model": "tiny", "prompt": ["One", "Two"], "seed": 1, "n": 2, "echo": echo}
    plain = sync_openai.completions.create(**options)
    texts = [""] * 4
    for chunk in sync_openai.completions.create(**options, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    assert texts == [choice.text for choice in plain.choices]


def test_stop_string_ends_the_stream(sync_openai: openai.OpenAI) -> None:
    stream = sync_openai.chat.completions.create(
        model="tiny", messages=MESSAGES, temperature=0, stop=["capital of"], stream=True
    )
    text, reason = "", None
    for chunk in stream:
        text += chunk.choices[0].delta.content or ""
        reason = chunk.choices[0].finish_reason or reason
    assert reason == "stop"
    assert text.endswith(" ")
    assert "capital of" not in text


def test_models_describe_the_embedded_model(sync_openai: openai.OpenAI) -> None:
    [model] = sync_openai.models.list().data
    assert (model.id, model.owned_by) == ("tiny", "rhapsody")
    extra = model.model_extra or {}
    assert extra["embedded"] is True
    assert "not a real model" in extra["description"]
    assert extra["max_model_len"] == 256
    assert sync_openai.models.retrieve("tiny") == model
    with pytest.raises(openai.NotFoundError, match="does not exist"):
        sync_openai.models.retrieve("other/model")


def test_unknown_model_is_not_found(sync_openai: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="`gpt` does not exist") as caught:
        sync_openai.chat.completions.create(model="gpt", messages=MESSAGES)
    assert isinstance(caught.value.body, dict)
    assert caught.value.body["type"] == "NotFoundError"


def test_overlong_prompt_is_a_bad_request(sync_openai: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="maximum context length is 256 tokens"):
        sync_openai.completions.create(model="tiny", prompt="word " * 300)


async def test_max_completion_tokens_limits_tokens(client: aiohttp.ClientSession) -> None:
    body = {"messages": MESSAGES, "max_completion_tokens": 3}
    status, response = await post(client, "/v1/chat/completions", body)
    assert status == 200
    assert response["usage"]["completion_tokens"] == 3
    assert response["choices"][0]["finish_reason"] == "length"


async def test_ignored_and_neutral_fields_change_nothing(client: aiohttp.ClientSession) -> None:
    ignored = {
        "user": "me",
        "metadata": {"a": "b"},
        "store": False,
        "service_tier": "auto",
        "tools": [],
        "tool_choice": "none",
        "response_format": {"type": "text"},
        "logprobs": False,
        "top_logprobs": None,
        "logit_bias": {},
        "presence_penalty": 0,
        "whatever": None,
    }
    body = {"messages": MESSAGES, "temperature": 0}
    _, plain = await post(client, "/v1/chat/completions", body)
    status, response = await post(client, "/v1/chat/completions", {**body, **ignored})
    assert status == 200, response
    assert response["choices"] == plain["choices"]


@pytest.mark.parametrize(
    ("extra", "param"),
    [
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"response_format": {"type": "json_schema"}}, "response_format"),
        ({"logprobs": True}, "logprobs"),
        ({"logit_bias": {"5": 1}}, "logit_bias"),
        ({"presence_penalty": 1}, "presence_penalty"),
        ({"temperature": -1}, "temperature"),
        ({"n": 0}, "n"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "stream_options": 3}, "stream_options"),
        ({"stream": True, "temperature": -1}, "temperature"),
        ({"max_tokens": 3, "max_completion_tokens": 4}, "max_completion_tokens"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"guided_json": {}}, "guided_json"),
    ],
)
async def test_unsupported_field_is_refused_by_name(
    client: aiohttp.ClientSession, extra: dict[str, Any], param: str
) -> None:
    body = {"messages": MESSAGES, **extra}
    status, response = await post(client, "/v1/chat/completions", body)
    assert status == 400
    assert response["error"]["param"] == param
    assert response["error"]["type"] == "BadRequestError"
    assert response["error"]["code"] == 400
    assert param.partition("[")[0] in response["error"]["message"]


@pytest.mark.parametrize("prompt", [None, [], "", [""], [1, 2], [[1, 2]], {"a": 1}])
async def test_completions_require_str_or_list_of_str(
    client: aiohttp.ClientSession, prompt: Any
) -> None:
    status, response = await post(client, "/v1/completions", {"prompt": prompt})
    assert status == 400
    assert response["error"]["param"] == "prompt"


@pytest.mark.parametrize(
    "body", [b"{", b"\xff\xfe", b"[1]", b"", b"[" * 100_000, '{"a": "é"}'.encode("utf-16")]
)
async def test_body_without_json_object_is_a_bad_request(
    client: aiohttp.ClientSession, body: Any
) -> None:
    async with client.post("/v1/chat/completions", data=body) as response:
        assert response.status == 400
        error = (await response.json())["error"]
    assert error["message"].startswith("The body")
    assert set(error) == {"message", "type", "param", "code"}


async def test_lone_surrogate_is_echoed_unchanged(client: aiohttp.ClientSession) -> None:
    body = {"prompt": "\ud800 word", "echo": True, "max_tokens": 2}
    status, response = await post(client, "/v1/completions", body)
    assert status == 200
    assert response["choices"][0]["text"].startswith("\ud800 word")


async def test_stream_consists_of_server_sent_events(client: aiohttp.ClientSession) -> None:
    body = {"messages": MESSAGES, "stream": True, "max_tokens": 3}
    async with client.post("/v1/chat/completions", json=body) as response:
        assert response.content_type == "text/event-stream"
        events = (await response.text()).split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    frames = [json.loads(event.removeprefix("data: ")) for event in events[:-2]]
    assert {frame["object"] for frame in frames} == {"chat.completion.chunk"}
    assert len({frame["id"] for frame in frames}) == 1


async def test_disconnect_cancels_the_request(servers: Servers) -> None:
    slow = servers.start("--token-delay-ms", "100")
    async with slow.client() as client:
        for stream in (False, True):
            body = {"messages": MESSAGES, "max_tokens": 500, "ignore_eos": True, "stream": stream}
            request = asyncio.create_task(post(client, "/v1/chat/completions", body))
            await until_metric(client, "requests_running", 1)
            request.cancel()
            await asyncio.gather(request, return_exceptions=True)
            await until_metric(client, "requests_running", 0)


TOOL = {
    "type": "function",
    "function": {
        "name": "simulate",
        "parameters": {"type": "object", "properties": {"n": {"type": "integer"}}},
    },
}


async def test_tool_is_called_and_its_result_repeated(client: aiohttp.ClientSession) -> None:
    messages: list[dict[str, Any]] = [{"role": "user", "content": "simulate 42"}]
    body = {"messages": messages, "tools": [TOOL]}
    async with client.post("/v1/chat/completions", json=body) as response:
        [choice] = (await response.json())["choices"]
    assert choice["finish_reason"] == "tool_calls"
    [call] = choice["message"]["tool_calls"]
    assert json.loads(call["function"]["arguments"]) == {"n": 42}
    messages.append(choice["message"])
    messages.append({"role": "tool", "tool_call_id": call["id"], "content": "it boils"})
    async with client.post("/v1/chat/completions", json=body) as response:
        [choice] = (await response.json())["choices"]
    assert choice["message"]["content"].startswith("The tools returned: it boils.")


async def test_streamed_tool_call_is_one_delta(client: aiohttp.ClientSession) -> None:
    body = {
        "messages": [{"role": "user", "content": "hi"}],
        "tools": [TOOL],
        "tool_choice": "required",
        "stream": True,
    }
    async with client.post("/v1/chat/completions", json=body) as response:
        text = await response.text()
    events = [json.loads(line[6:]) for line in text.split("\n\n") if line[6:7] == "{"]
    deltas = [event["choices"][0]["delta"] for event in events]
    called = [delta["tool_calls"] for delta in deltas if "tool_calls" in delta]
    assert [[call["function"]["name"] for call in calls] for calls in called] == [["simulate"]]
    assert events[-1]["choices"][0]["finish_reason"] == "tool_calls"


async def test_response_is_json_for_the_schema(client: aiohttp.ClientSession) -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer", "minimum": 5}}}
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    body = {"messages": [{"role": "user", "content": "hi"}], "response_format": wanted}
    async with client.post("/v1/chat/completions", json=body) as response:
        [choice] = (await response.json())["choices"]
    assert json.loads(choice["message"]["content"])["n"] >= 5
    assert choice["finish_reason"] == "stop"
