"""The real `openai` client against server mode."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest

from tests.support.inference import MODEL

MESSAGES: Any = [{"role": "user", "content": "What is heat?"}]


@pytest.fixture
async def client(url: str) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as client:
        yield client


async def test_chat(client: openai.AsyncOpenAI) -> None:
    chat = await client.chat.completions.create(model=MODEL, messages=MESSAGES, max_tokens=8)
    assert chat.choices[0].message.content
    assert chat.usage is not None
    assert chat.usage.completion_tokens == 8


async def test_stream_joins_to_the_plain_response(client: openai.AsyncOpenAI) -> None:
    options: Any = {"model": MODEL, "messages": MESSAGES, "temperature": 0}
    plain = await client.chat.completions.create(**options)
    stream = await client.chat.completions.create(**options, stream=True)
    pieces = [chunk.choices[0].delta.content or "" async for chunk in stream]
    assert "".join(pieces) == plain.choices[0].message.content


async def test_completion(client: openai.AsyncOpenAI) -> None:
    response = await client.completions.create(model=MODEL, prompt="Once", max_tokens=8)
    assert response.choices[0].text


async def test_models(client: openai.AsyncOpenAI) -> None:
    assert [model.id async for model in client.models.list()] == [MODEL]
    assert (await client.models.retrieve(MODEL)).id == MODEL


async def test_blocking_client_in_a_thread(url: str) -> None:
    def ask() -> str | None:
        with openai.OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as client:
            chat = client.chat.completions.create(model=MODEL, messages=MESSAGES, max_tokens=8)
            return chat.choices[0].message.content

    assert await asyncio.to_thread(ask)


async def test_many_chats_at_once(client: openai.AsyncOpenAI) -> None:
    requests = (
        client.chat.completions.create(model=MODEL, messages=MESSAGES, max_tokens=4)
        for _ in range(30)
    )
    chats = await asyncio.gather(*requests)
    assert all(chat.choices[0].message.content for chat in chats)


async def test_unknown_model_is_not_found(client: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="does not exist"):
        await client.chat.completions.create(model="another", messages=MESSAGES)


async def test_invalid_parameter_is_a_bad_request(client: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        await client.chat.completions.create(model=MODEL, messages=MESSAGES, temperature=-1)
    assert refused.value.param == "temperature"


async def test_wrong_key_is_an_authentication_error(start: Any) -> None:
    guarded = await start(use_service=True, api_key="right")
    base = f"{guarded.get_endpoint()}/v1"
    async with openai.AsyncOpenAI(base_url=base, api_key="wrong", max_retries=0) as client:
        with pytest.raises(openai.AuthenticationError):
            await client.models.list()
    async with openai.AsyncOpenAI(base_url=base, api_key="right", max_retries=0) as client:
        assert (await client.models.list()).data


async def test_client_retries_after_overload(start: Any) -> None:
    full = await start(use_service=True, max_pending=1)
    admission = full._service.admission
    admission.try_enter()
    refused: list[Any] = []

    async def free_place(response: Any) -> None:
        if response.status_code == 503:
            refused.append(response)
            admission.leave()

    http = openai.DefaultAsyncHttpxClient(event_hooks={"response": [free_place]})
    base = f"{full.get_endpoint()}/v1"
    async with openai.AsyncOpenAI(base_url=base, api_key="any", http_client=http) as client:
        assert (await client.models.retrieve(MODEL)).id == MODEL
    assert [response.headers["Retry-After"] for response in refused] == ["1"]


async def test_lasting_overload_is_a_server_error(start: Any) -> None:
    full = await start(use_service=True, max_pending=1)
    full._service.admission.try_enter()
    base = f"{full.get_endpoint()}/v1"
    async with openai.AsyncOpenAI(base_url=base, api_key="any", max_retries=0) as client:
        with pytest.raises(openai.InternalServerError) as refused:
            await client.models.list()
    assert refused.value.status_code == 503
