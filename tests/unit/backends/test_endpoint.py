"""The endpoint backend: tasks, batches and streams over a server of the OpenAI API."""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from pydantic import BaseModel

from rhapsody import AITask, Session
from rhapsody.backends import EndpointInferenceBackend, get_backend
from rhapsody.errors import ConfigurationError
from tests.support.openai_server import MODEL, OpenAIServer


@pytest_asyncio.fixture
async def server() -> AsyncIterator[OpenAIServer]:
    async with OpenAIServer().running() as running:
        yield running


async def test_tasks_are_completed(server: OpenAIServer) -> None:
    async with Session([EndpointInferenceBackend(server.url)]) as session:
        one = AITask(prompt="hi", system_prompt="be brief", max_tokens=5)
        many = AITask(prompt=["a", "b"], model=MODEL)
        await session.submit_tasks([one, many])
        await session.wait_tasks([one, many])
        assert (one.response, many.response) == ("HI", ["A", "B"])
        assert one.usage == {"prompt_tokens": 2, "completion_tokens": 3, "total_tokens": 5}
    roles = [message["role"] for message in server.bodies[0]["messages"]]
    assert roles == ["system", "user"]


async def test_task_of_another_model_fails(server: OpenAIServer) -> None:
    async with Session([EndpointInferenceBackend(server.url)]) as session:
        task = AITask(prompt="hi", model="other")
        await session.submit_tasks(task)
        await session.wait_tasks([task])
        assert "serves the model 'scripted', not 'other'" in str(task.exception)


async def test_adapter_is_sent_as_the_model(server: OpenAIServer) -> None:
    async with Session([EndpointInferenceBackend(server.url)]) as session:
        task = AITask(prompt="hi", adapter="tuned")
        await session.submit_tasks(task)
        assert (await task).response == "HI"
    assert server.bodies[-1]["model"] == "tuned"


async def test_generate_and_stream_need_no_session(server: OpenAIServer) -> None:
    backend = EndpointInferenceBackend(server.url)
    try:
        assert await backend.generate(["a", "b"]) == ["A", "B"]
        assert [piece async for piece in backend.stream("hi")] == ["H", "I"]
    finally:
        await backend.shutdown()


async def test_response_is_parsed_by_its_format(server: OpenAIServer) -> None:
    class Point(BaseModel):
        X: int

    backend = EndpointInferenceBackend(server.url)
    try:
        assert await backend.generate('{"x": 3}', response_format=Point) == [Point(X=3)]
    finally:
        await backend.shutdown()
    sent = server.bodies[0]["response_format"]
    assert sent["type"] == "json_schema"
    assert sent["json_schema"]["name"] == "Point"


async def test_text_can_be_sent_without_a_chat(server: OpenAIServer) -> None:
    backend = EndpointInferenceBackend(server.url, chat=False)
    server_answer = server.upper

    async def text(request: object, body: dict[str, object]) -> object:
        from aiohttp import web

        return web.json_response({"choices": [{"text": str(body["prompt"]).upper()}]})

    server.answer = text  # type: ignore[assignment]  # a coroutine function of the same shape
    try:
        assert await backend.generate("hi") == ["HI"]
    finally:
        server.answer = server_answer
        await backend.shutdown()
    assert server.bodies == [{"model": MODEL, "prompt": "hi"}]


async def test_key_defaults_to_the_environment_variable(
    server: OpenAIServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RHAPSODY_ENDPOINT_KEY", "from-variable")
    backend = EndpointInferenceBackend(server.url)
    try:
        await backend.generate("hi")
    finally:
        await backend.shutdown()
    assert server.headers[0]["Authorization"] == "Bearer from-variable"


def test_invalid_parameter_is_refused_by_the_constructor() -> None:
    with pytest.raises(ConfigurationError, match="'base_url' must be like"):
        EndpointInferenceBackend("localhost:8000")
    with pytest.raises(ConfigurationError, match="'max_concurrency' must be"):
        get_backend("endpoint", "http://localhost:8000/v1", max_concurrency=0)


async def test_statistics_show_the_servers(server: OpenAIServer) -> None:
    backend = EndpointInferenceBackend(server.url)
    assert backend.replicas == []
    try:
        await backend.generate("hi")
        shown = backend.replicas[0]
        assert shown["address"] == server.url
        assert (shown["state"], shown["in_flight"], shown["completed"]) == ("READY", 0, 1)
    finally:
        await backend.shutdown()
