import asyncio
import json
from collections.abc import Iterator

import openai
import pytest

try:
    import httpx2 as httpx  # what openai >= 3 is built on
except ImportError:
    import httpx

MESSAGES = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.fixture
def sync_openai(server) -> Iterator[openai.OpenAI]:
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
async def async_openai(server):
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


async def post(client, path, body):
    async with client.post(path, json=body) as response:
        return response.status, await response.json()


def test_chat_with_the_openai_client(sync_openai):
    answer = sync_openai.chat.completions.create(
        model="tiny", messages=MESSAGES, temperature=0, max_tokens=50, user="someone"
    )
    [choice] = answer.choices
    assert "France" in choice.message.content
    assert choice.message.role == "assistant"
    assert choice.finish_reason == "stop"
    assert answer.system_fingerprint == "rhapsody-embedded-ngram"
    usage = answer.usage
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert usage.prompt_tokens > 5


async def test_streamed_chat_is_the_plain_one_in_pieces(async_openai):
    asked = {"model": "tiny", "messages": MESSAGES, "seed": 3, "max_tokens": 20, "n": 2}
    plain = await async_openai.chat.completions.create(**asked)
    stream = await async_openai.chat.completions.create(
        **asked, stream=True, stream_options={"include_usage": True}
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


def test_streamed_chat_with_the_synchronous_client(sync_openai):
    with sync_openai.chat.completions.create(
        model="tiny", messages=MESSAGES, temperature=0, stream=True
    ) as stream:
        text = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
    assert "France" in text


def test_completions_with_the_openai_client(sync_openai):
    answer = sync_openai.completions.create(
        model="tiny", prompt=["The sum of 2 and 2 is", "Once upon a"], temperature=0, n=2, echo=True
    )
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert answer.choices[0].text.startswith("The sum of 2 and 2 is 4.")
    assert answer.choices[3].text.startswith("Once upon a time")


@pytest.mark.parametrize("echo", [True, False])
def test_streamed_completions_are_the_plain_ones_in_pieces(sync_openai, echo):
    asked = {"model": "tiny", "prompt": ["One", "Two"], "seed": 1, "n": 2, "echo": echo}
    plain = sync_openai.completions.create(**asked)
    texts = [""] * 4
    for chunk in sync_openai.completions.create(**asked, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    assert texts == [choice.text for choice in plain.choices]


def test_a_stop_string_ends_the_stream_before_it(sync_openai):
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


def test_the_models_say_that_they_are_not_real(sync_openai):
    [model] = sync_openai.models.list().data
    assert (model.id, model.owned_by) == ("tiny", "rhapsody")
    extra = model.model_extra
    assert extra["embedded"] is True
    assert "not a real model" in extra["description"]
    assert extra["max_model_len"] == 256
    assert sync_openai.models.retrieve("tiny") == model
    with pytest.raises(openai.NotFoundError, match="does not exist"):
        sync_openai.models.retrieve("other/model")


def test_another_model_is_not_found(sync_openai):
    with pytest.raises(openai.NotFoundError, match="`gpt` does not exist") as caught:
        sync_openai.chat.completions.create(model="gpt", messages=MESSAGES)
    assert caught.value.body["type"] == "NotFoundError"


def test_a_prompt_that_is_too_long_is_a_bad_request(sync_openai):
    with pytest.raises(openai.BadRequestError, match="maximum context length is 256 tokens"):
        sync_openai.completions.create(model="tiny", prompt="word " * 300)


async def test_max_completion_tokens_is_max_tokens(client):
    body = {"messages": MESSAGES, "max_completion_tokens": 3}
    status, answer = await post(client, "/v1/chat/completions", body)
    assert status == 200
    assert answer["usage"]["completion_tokens"] == 3
    assert answer["choices"][0]["finish_reason"] == "length"


async def test_harmless_and_neutral_fields_change_nothing(client):
    harmless = {
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
    status, answer = await post(client, "/v1/chat/completions", {**body, **harmless})
    assert status == 200, answer
    assert answer["choices"] == plain["choices"]


@pytest.mark.parametrize(
    ("extra", "param"),
    [
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
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
async def test_what_cannot_be_done_is_refused_by_name(client, extra, param):
    body = {"messages": MESSAGES, **extra}
    status, answer = await post(client, "/v1/chat/completions", body)
    assert status == 400
    assert answer["error"]["param"] == param
    assert answer["error"]["type"] == "BadRequestError"
    assert answer["error"]["code"] == 400
    assert param.split("[")[0] in answer["error"]["message"]


@pytest.mark.parametrize("prompt", [None, [], "", [""], [1, 2], [[1, 2]], {"a": 1}])
async def test_completions_take_a_str_or_a_list_of_str(client, prompt):
    status, answer = await post(client, "/v1/completions", {"prompt": prompt})
    assert status == 400
    assert answer["error"]["param"] == "prompt"


@pytest.mark.parametrize(
    "body", [b"{", b"\xff\xfe", b"[1]", b"", b"[" * 100_000, '{"a": "é"}'.encode("utf-16")]
)
async def test_a_body_that_is_not_a_json_object_is_a_bad_request(client, body):
    async with client.post("/v1/chat/completions", data=body) as response:
        assert response.status == 400
        error = (await response.json())["error"]
    assert error["message"].startswith("The body")
    assert set(error) == {"message", "type", "param", "code"}


async def test_half_a_surrogate_pair_is_echoed_as_it_came(client):
    body = {"prompt": "\ud800 word", "echo": True, "max_tokens": 2}
    status, answer = await post(client, "/v1/completions", body)
    assert status == 200
    assert answer["choices"][0]["text"].startswith("\ud800 word")


async def test_the_stream_is_server_sent_events(client):
    body = {"messages": MESSAGES, "stream": True, "max_tokens": 3}
    async with client.post("/v1/chat/completions", json=body) as response:
        assert response.content_type == "text/event-stream"
        events = (await response.text()).split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    frames = [json.loads(event.removeprefix("data: ")) for event in events[:-2]]
    assert {frame["object"] for frame in frames} == {"chat.completion.chunk"}
    assert len({frame["id"] for frame in frames}) == 1


async def test_a_client_that_goes_away_takes_its_request_with_it(servers, helpers):
    slow = servers.start("--token-delay-ms", "100")
    async with slow.client() as client:
        for stream in (False, True):
            body = {"messages": MESSAGES, "max_tokens": 500, "ignore_eos": True, "stream": stream}
            request = asyncio.create_task(post(client, "/v1/chat/completions", body))
            await helpers.until_gauge(client, "requests_running", 1)
            request.cancel()
            await asyncio.gather(request, return_exceptions=True)
            await helpers.until_gauge(client, "requests_running", 0)
