"""Several models behind one gateway, with the real `openai` client and the embedded model."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import aiohttp
import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families

from rhapsody import InferenceGateway
from rhapsody.backends.core.service_loop import service_loop
from rhapsody.errors import ResourceError
from tests.support.inference import embedded
from tests.support.waiting import until

MESSAGES: Any = [{"role": "user", "content": "What is heat?"}]


def gateway_of(*names: str, **options: Any) -> InferenceGateway:
    backends = [embedded(model_name=name, name=name) for name in names]
    return InferenceGateway(backends, **{"host": "127.0.0.1", "port": 0, **options})


async def status_of(request: Any) -> int:
    async with request as response:
        return int(response.status)


@pytest.fixture(scope="module")
def gateway() -> Iterator[InferenceGateway]:
    gateway = gateway_of("small", "large")
    service_loop().run_blocking(gateway.initialize())
    yield gateway
    service_loop().run_blocking(gateway.shutdown())


@pytest.fixture
def url(gateway: InferenceGateway) -> str:
    endpoint = gateway.get_endpoint()
    assert endpoint is not None
    return endpoint


@pytest.fixture
async def client(url: str) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as client:
        yield client


@pytest.fixture
async def http(url: str) -> AsyncIterator[aiohttp.ClientSession]:
    timeout = aiohttp.ClientTimeout(total=50)
    async with aiohttp.ClientSession(base_url=url, timeout=timeout) as session:
        yield session


async def test_models_lists_all(client: openai.AsyncOpenAI) -> None:
    assert [model.id async for model in client.models.list()] == ["small", "large"]
    assert (await client.models.retrieve("large")).id == "large"
    with pytest.raises(openai.NotFoundError, match="this server has large, small"):
        await client.models.retrieve("other")


async def test_requests_go_to_the_model_that_they_name(
    client: openai.AsyncOpenAI, gateway: InferenceGateway
) -> None:
    for name in ("small", "large"):
        chat = await client.chat.completions.create(model=name, messages=MESSAGES, max_tokens=4)
        assert chat.model == name
        stream = await client.chat.completions.create(
            model=name, messages=MESSAGES, max_tokens=4, stream=True
        )
        assert {chunk.model async for chunk in stream} == {name}
        vectors = await client.embeddings.create(model=name, input=["heat", "light"])
        assert (vectors.model, len(vectors.data)) == (name, 2)


async def test_unknown_model_is_not_found(client: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        await client.chat.completions.create(model="other", messages=MESSAGES)
    assert caught.value.body == {
        "message": "The model `other` does not exist; this server has large, small",
        "type": "NotFoundError",
        "param": "model",
        "code": 404,
    }


@pytest.mark.parametrize(
    ("path", "body", "status", "message"),
    [
        ("/v1/chat/completions", {"messages": MESSAGES}, 400, "'model' is missing; this server"),
        ("/generate", {"prompts": ["Hello"]}, 400, "'model' is missing; this server has"),
        ("/generate", {"prompts": ["Hello"], "model": "other"}, 404, "The model `other`"),
        ("/score", {"model": "other", "text_1": "a", "text_2": "b"}, 404, "The model `other`"),
        ("/v1/embeddings", {"model": 3, "input": "a"}, 400, "'model' must be a string, got 3"),
        ("/v1/embeddings", [], 400, "the body must be a JSON object"),
    ],
)
async def test_invalid_model_is_refused(
    http: aiohttp.ClientSession, path: str, body: Any, status: int, message: str
) -> None:
    async with http.post(path, json=body) as response:
        assert response.status == status
        assert (await response.json())["error"]["message"].startswith(message)


async def test_generate_and_score_take_a_model(http: aiohttp.ClientSession) -> None:
    body = {"prompts": ["Hello", "World"], "model": "large", "max_tokens": 2}
    async with http.post("/generate", json=body) as response:
        assert (await response.json())["status"] == "success"
    pair = {"model": "small", "text_1": "heat", "text_2": "heat"}
    async with http.post("/score", json=pair) as response:
        assert response.status == 200
        assert (await response.json())["model"] == "small"


async def test_health_has_each_model(http: aiohttp.ClientSession) -> None:
    async with http.get("/health") as response:
        body = await response.json()
    assert response.status == 200
    assert body["status"] == "healthy"
    assert [(one["model"], one["status"]) for one in body["models"]] == [
        ("small", "healthy"),
        ("large", "healthy"),
    ]


async def test_metrics_have_a_label_for_the_model(http: aiohttp.ClientSession) -> None:
    async with http.get("/metrics") as response:
        families = list(text_string_to_metric_families(await response.text()))
    names = [family.name for family in families]
    assert len(set(names)) == len(names), "a family appears twice"
    replicas = next(family for family in families if family.name == "rhapsody_replicas")
    assert {sample.labels["model"] for sample in replicas.samples} == {"small", "large"}
    assert "rhapsody_client_prompts" in names


async def test_routes_are_described(http: aiohttp.ClientSession) -> None:
    async with http.get("/openapi.json") as response:
        assert "/v1/chat/completions" in (await response.json())["paths"]


async def test_keys_and_rates_hold_for_all_models() -> None:
    keys = {"alice": "secret", "bob": {"key": "other", "rate": 1}}
    async with (
        gateway_of("small", "large", api_keys=keys) as gateway,
        aiohttp.ClientSession(gateway.get_endpoint()) as http,
    ):
        assert await status_of(http.get("/v1/models")) == 401
        bob = {"Authorization": "Bearer other"}
        body = {"model": "small", "messages": MESSAGES, "max_tokens": 1}
        assert await status_of(http.post("/v1/chat/completions", json=body, headers=bob)) == 200
        body["model"] = "large"
        assert await status_of(http.post("/v1/chat/completions", json=body, headers=bob)) == 429
        await gateway.set_api_keys({"bob": "new"})
        assert await status_of(http.get("/v1/models", headers=bob)) == 401


async def test_stopped_model_is_unavailable_and_the_others_work() -> None:
    own = await embedded(model_name="own").initialize()
    other = embedded(model_name="other", name="other")
    gateway = await InferenceGateway([own, other], host="127.0.0.1", port=0)
    async with aiohttp.ClientSession(gateway.get_endpoint()) as http:
        await other.shutdown()
        async with http.get("/health") as response:
            assert response.status == 200
            assert (await response.json())["status"] == "degraded"
        async with http.get("/v1/models") as response:
            assert [one["id"] for one in (await response.json())["data"]] == ["own", "other"]
        body = {"model": "other", "messages": MESSAGES, "max_tokens": 1}
        async with http.post("/v1/chat/completions", json=body) as response:
            assert response.status == 503
            assert "the model 'other' is stopped" in await response.text()
        await other.initialize()
        assert await status_of(http.post("/v1/chat/completions", json=body)) == 200
    await gateway.shutdown()
    assert (own.state(), other.state()) == ("RUNNING", "STOPPED")
    await own.shutdown()


async def test_pending_prompts_finish_at_a_shutdown_that_drains() -> None:
    gateway = await gateway_of("small", "large")
    large = gateway.backends[1]
    asking = asyncio.ensure_future(large.generate("Hello", max_tokens=300, ignore_eos=True))
    await until(lambda: asking.done() or gateway.get_statistics()["pending_prompts"] == 1)
    await gateway.shutdown(drain_seconds=60)
    assert len(await asking) == 1
    assert gateway.get_endpoint() is None
    assert {backend.state() for backend in gateway.backends} == {"STOPPED"}


async def test_failed_start_stops_what_has_started() -> None:
    async with gateway_of("first") as running:
        endpoint = running.get_endpoint() or ""
        taken = gateway_of("small", "large", port=int(endpoint.rpartition(":")[2]))
        with pytest.raises(ResourceError, match="choose another port="):
            await taken.initialize()
        assert {backend.state() for backend in taken.backends} == {"STOPPED"}
