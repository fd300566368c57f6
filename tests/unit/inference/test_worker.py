"""The batch route inside a vLLM server: requests and lines, with an engine that does as told."""

import asyncio
import json
from collections.abc import AsyncGenerator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from rhapsody.inference import worker
from rhapsody.inference.vllm.answers import error_event
from rhapsody.inference.worker import BatchRoute

KEY = "key"


class ScriptedAnswers:
    """Stands in for the engine: a prompt says what becomes of it."""

    def __init__(self) -> None:
        self.preparing = asyncio.Event()
        self.prepare_on = asyncio.Event()
        self.prepare_on.set()
        self.begun: list[str] = []
        self.ended: list[str] = []

    async def prepare(self, items: Sequence[Mapping[str, Any]]) -> AsyncGenerator[Any, None]:
        for item in items:
            self.preparing.set()
            await self.prepare_on.wait()
            bad = item["prompt"] == "bad"
            yield [ValueError("too long") if bad else SimpleNamespace(text=item["prompt"])]

    async def events(self, name: str, prepared: Any) -> AsyncGenerator[Any, None]:
        self.begun.append(name)
        try:
            if prepared.text == "endless":
                await asyncio.Event().wait()
            if prepared.text == "fails":
                raise ValueError("cannot")
            yield {"id": name, "type": "done", "texts": [prepared.text]}
        finally:
            self.ended.append(name)


class Client:
    """An ASGI server's side of one request."""

    def __init__(self, path: str, body: bytes, key: str = KEY, method: str = "POST") -> None:
        self.scope = {
            "type": "http",
            "path": path,
            "method": method,
            "headers": [(b"x-rhapsody-key", key.encode())],
            "app": SimpleNamespace(state=SimpleNamespace(engine_client=Engine())),
        }
        self.status = 0
        self.body = b""
        self.got_line = asyncio.Event()
        self.leave = asyncio.Event()
        self._messages = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive(self) -> dict[str, Any]:
        if self._messages:
            return self._messages.pop()
        await self.leave.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        self.status = message.get("status", self.status)
        self.body += message.get("body", b"")
        if b"\n" in self.body:
            self.got_line.set()

    @property
    def lines(self) -> dict[str, dict[str, Any]]:
        return {line["id"]: line for line in map(json.loads, self.body.splitlines())}


class Engine:
    """An engine that reacts, or not."""

    def __init__(self) -> None:
        self.reacts = True
        self.vllm_config = SimpleNamespace(scheduler_config=SimpleNamespace(max_num_seqs=7))

    async def is_sleeping(self) -> bool:
        if not self.reacts:
            await asyncio.Event().wait()
        return False


class Service:
    """The route with its engine."""

    def __init__(self) -> None:
        self.passed: list[str] = []
        self.answers = ScriptedAnswers()
        self.route = BatchRoute(self.app)
        self.route._answers = self.answers  # type: ignore[assignment]

    async def app(self, scope: Any, receive: Any, send: Any) -> None:
        self.passed.append(scope.get("path", scope["type"]))

    async def call(self, client: Client) -> Client:
        await asyncio.wait_for(self.route(client.scope, client.receive, client.send), 10)
        return client

    async def batch(self, *prompts: tuple[str, str]) -> Client:
        return await self.call(batch_of(*prompts))

    async def cancel(self, *ids: str) -> int:
        client = await self.call(Client("/rhapsody/cancel", json.dumps({"ids": ids}).encode()))
        cancelled: int = json.loads(client.body)["cancelled"]
        return cancelled


def batch_of(*prompts: tuple[str, str]) -> Client:
    items = [{"id": name, "prompt": text} for name, text in prompts]
    return Client("/rhapsody/batch", json.dumps({"prompts": items}).encode())


@pytest.fixture
async def service(monkeypatch: pytest.MonkeyPatch) -> Service:
    monkeypatch.setenv("RHAPSODY_REPLICA_KEY", KEY)
    monkeypatch.setenv("RHAPSODY_HANG_SECONDS", "0.2")
    monkeypatch.setattr(worker, "is_engine_dead", lambda error: False)
    return Service()


async def test_every_prompt_has_its_own_line(service: Service) -> None:
    client = await service.batch(("a", "one"), ("b", "bad"), ("c", "fails"), ("d", "two"))
    assert client.status == 200
    assert client.lines["a"]["texts"] == ["one"]
    assert client.lines["b"] == error_event("b", ValueError("too long"))
    assert client.lines["c"]["message"] == "cannot"
    assert client.lines["d"]["texts"] == ["two"]


async def test_a_response_does_not_wait_for_its_neighbours(service: Service) -> None:
    client = batch_of(("long", "endless"), ("short", "one"))
    answering = asyncio.ensure_future(service.call(client))
    await asyncio.wait_for(client.got_line.wait(), 10)
    assert list(client.lines) == ["short"]
    assert await service.cancel("long") == 1
    await answering
    assert client.lines["long"]["code"] == 499


async def test_a_prompt_can_be_cancelled_while_its_batch_is_taken_in(service: Service) -> None:
    service.answers.prepare_on.clear()
    client = batch_of(("a", "one"), ("b", "two"))
    answering = asyncio.ensure_future(service.call(client))
    await asyncio.wait_for(service.answers.preparing.wait(), 10)
    assert await service.cancel("b", "b", "unknown") == 1
    service.answers.prepare_on.set()
    await answering
    assert client.lines["b"]["kind"] == "Cancelled"
    assert service.answers.begun == ["a"]


async def test_a_client_that_leaves_takes_its_prompts_with_it(service: Service) -> None:
    client = batch_of(("long", "endless"), ("short", "one"))
    answering = asyncio.ensure_future(service.call(client))
    await asyncio.wait_for(client.got_line.wait(), 10)
    client.leave.set()
    await answering
    assert sorted(service.answers.ended) == ["long", "short"]
    assert await service.cancel("long") == 0


async def test_an_id_that_is_being_answered_is_refused(service: Service) -> None:
    first = batch_of(("a", "endless"), ("b", "one"))
    answering = asyncio.ensure_future(service.call(first))
    await asyncio.wait_for(first.got_line.wait(), 10)
    second = await service.batch(("a", "one"))
    assert "is being answered" in second.lines["a"]["message"]
    assert await service.cancel("a") == 1
    await answering


async def test_an_empty_batch_has_no_lines(service: Service) -> None:
    client = await service.batch()
    assert (client.status, client.body) == (200, b"")


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"\xff", "codec"),
        (b"{", "Expecting"),
        (b"[]", "the body must be a JSON object"),
        (b'{"prompts": 1}', "prompts must be a list"),
        (b'{"prompts": [{"prompt": "x"}]}', "must be an object with a str id"),
    ],
)
async def test_a_body_that_is_none_is_refused(service: Service, body: bytes, says: str) -> None:
    client = await service.call(Client("/rhapsody/batch", body))
    assert client.status == 400
    assert says in json.loads(client.body)["error"]["message"]


@pytest.mark.parametrize("path", ["/health", "/v1/models", "/rhapsody/batch", "/metrics"])
async def test_without_the_key_no_path_is_answered(service: Service, path: str) -> None:
    client = await service.call(Client(path, b"{}", key="wrong"))
    assert client.status == 401
    assert service.passed == []


async def test_a_websocket_without_the_key_is_closed(service: Service) -> None:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    client = Client("/v1/realtime", b"")
    scope = {"type": "websocket", "path": "/v1/realtime", "headers": []}
    await service.route(scope, client.receive, send)
    assert sent == [{"type": "websocket.close", "code": 1008}]


async def test_everything_else_is_the_servers(service: Service) -> None:
    await service.call(Client("/v1/models", b"", method="GET"))
    await service.route({"type": "lifespan"}, None, None)  # type: ignore[arg-type]
    assert service.passed == ["/v1/models", "lifespan"]


async def test_the_limit_is_the_engines(service: Service) -> None:
    client = await service.call(Client("/rhapsody/limit", b"", method="GET"))
    assert json.loads(client.body) == {"max_num_seqs": 7}


async def test_an_engine_that_does_not_react_is_not_healthy(service: Service) -> None:
    client = Client("/health", b"", method="GET")
    engine = client.scope["app"].state.engine_client  # type: ignore[attr-defined]
    await service.call(client)
    assert service.passed == ["/health"]
    await asyncio.sleep(0)  # the engine reacts
    engine.reacts = False
    await service.call(client)
    await asyncio.sleep(0.3)  # longer than RHAPSODY_HANG_SECONDS
    await service.call(client)
    assert client.status == 503
    assert service.route._reaction is not None
    service.route._reaction.cancel()
