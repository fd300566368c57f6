"""The gateway in front of a real vLLM server, with the real `openai` client."""

import asyncio
import tempfile
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest

from rhapsody.backends import DragonVllmInferenceBackend as Backend
from tests.support.vllm_servers import GREEDY

MESSAGES: Any = [{"role": "user", "content": "What is heat?"}]


async def test_chat(served: Backend, client: openai.AsyncOpenAI) -> None:
    made = await client.chat.completions.create(
        model=served.model_name, messages=MESSAGES, **GREEDY
    )
    assert made.choices[0].message.content
    assert made.usage is not None
    assert made.usage.completion_tokens <= 12


async def test_streamed_chat_joins_to_the_plain_one(
    served: Backend, client: openai.AsyncOpenAI
) -> None:
    options: Any = {"model": served.model_name, "messages": MESSAGES, **GREEDY}
    plain = await client.chat.completions.create(**options)
    stream = await client.chat.completions.create(**options, stream=True)
    pieces = [chunk.choices[0].delta.content or "" async for chunk in stream]
    assert len(pieces) > 2
    assert "".join(pieces) == plain.choices[0].message.content


async def test_completion(served: Backend, client: openai.AsyncOpenAI) -> None:
    made = await client.completions.create(model=served.model_name, prompt="Once", max_tokens=8)
    assert made.choices[0].text


async def test_structured_output(served: Backend, client: openai.AsyncOpenAI) -> None:
    schema: Any = {
        "type": "json_schema",
        "json_schema": {"name": "c", "schema": {"enum": ["a", "b"]}},
    }
    made = await client.chat.completions.create(
        model=served.model_name, messages=MESSAGES, response_format=schema, max_tokens=30
    )
    assert made.choices[0].message.content in ('"a"', '"b"')


async def test_models_are_listed(served: Backend, client: openai.AsyncOpenAI) -> None:
    assert [model.id async for model in client.models.list()] == [served.model_name]
    assert (await client.models.retrieve(served.model_name)).id == served.model_name
    with pytest.raises(openai.NotFoundError):
        await client.models.retrieve("another")


async def test_blocking_client_in_a_thread(served: Backend, url: str) -> None:
    def ask() -> str | None:
        with openai.OpenAI(base_url=f"{url}/v1", api_key="open-sesame") as client:
            made = client.chat.completions.create(
                model=served.model_name, messages=MESSAGES, max_tokens=8
            )
            return made.choices[0].message.content

    assert await asyncio.to_thread(ask)


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"model": "another"}, openai.NotFoundError),
        ({"temperature": -1}, openai.BadRequestError),
        ({"messages": [{"role": "user", "content": "x " * 3000}]}, openai.BadRequestError),
        ({"messages": []}, openai.BadRequestError),
    ],
)
async def test_invalid_request_raises_the_matching_class(
    served: Backend,
    client: openai.AsyncOpenAI,
    changes: dict[str, Any],
    error: type[openai.APIStatusError],
) -> None:
    options: Any = {"model": served.model_name, "messages": MESSAGES, "max_tokens": 5, **changes}
    with pytest.raises(error) as raised:
        await client.chat.completions.create(**options)
    assert isinstance(raised.value.body, dict)
    assert raised.value.body["message"]


@pytest.mark.parametrize("path", ["/v1/models", "/metrics", "/generate", "/v1/tokenize", "/x"])
async def test_only_health_works_without_the_key(url: str, path: str) -> None:
    async with aiohttp.ClientSession(url) as session:
        async with session.get(path) as response:
            assert response.status == 401
            assert (await response.json())["error"]["type"] == "AuthenticationError"
        async with session.get("/health") as response:
            assert response.status == 200


async def test_routes_of_the_server_require_its_own_key(served: Backend) -> None:
    [replica] = served.replicas
    path = replica["address"].removeprefix("unix:")
    connector = aiohttp.UnixConnector(path)
    async with aiohttp.ClientSession("http://replica", connector=connector) as session:
        for route in ("/health", "/v1/models", "/metrics", "/invocations", "/openapi.json"):
            async with session.get(route) as response:
                assert response.status == 401


async def test_generate_returns_results_and_errors_by_prompt(http: aiohttp.ClientSession) -> None:
    body = {"prompts": ["What is heat?", "x " * 3000], "max_tokens": 5}
    async with http.post("/generate", json=body) as response:
        results = await response.json()
    assert results["status"] == "partial"
    assert isinstance(results["results"][0], str)
    assert results["errors"][1]["type"] == "BadRequestError"


async def test_metrics_include_vllm(http: aiohttp.ClientSession) -> None:
    async with http.get("/metrics") as response:
        text = await response.text()
    for name in ("rhapsody_batch_size_bucket", "rhapsody_queue_seconds", "rhapsody_tokens_total"):
        assert name in text
    assert 'vllm:time_to_first_token_seconds_count{engine="0"' in text
    assert 'replica="0"' in text


async def test_unknown_route_returns_a_json_error(http: aiohttp.ClientSession) -> None:
    for method, path in (("GET", "/v1/nothing"), ("GET", "/v1/chat/completions"), ("GET", "/x")):
        async with http.request(method, path) as response:
            assert response.status in (404, 405)
            assert set((await response.json())["error"]) >= {"message", "type", "param", "code"}


async def test_server_error_does_not_affect_other_requests(
    served: Backend, http: aiohttp.ClientSession
) -> None:
    # vLLM 0.32 does not expect a message without content, and closes the connection after it.
    empty = {"type": "message", "role": "assistant", "id": "m", "status": "completed"}
    bad = {"model": served.model_name, "input": [{**empty, "content": []}]}
    good = {"model": served.model_name, "prompt": "Once", "max_tokens": 1}
    for _ in range(20):
        async with http.post("/v1/responses", json=bad) as response:
            assert response.status in (400, 500)
        async with http.post("/v1/completions", json=good) as response:
            assert response.status == 200


async def test_sockets_are_in_the_private_directory(served: Backend) -> None:
    assert served.replicas[0]["state"] == "READY"
    assert [path for path in Path(tempfile.gettempdir()).iterdir() if path.is_socket()] == []
