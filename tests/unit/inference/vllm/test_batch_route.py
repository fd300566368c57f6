"""The batch route in a vLLM server: key, requests and events, with a scripted engine."""

import asyncio
import json
from collections.abc import AsyncGenerator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from rhapsody.inference.protocol.batch import error_event
from rhapsody.inference.protocol.errors import RequestError
from rhapsody.inference.vllm import batch_route
from rhapsody.inference.vllm.batch_route import BatchRoute
from rhapsody.inference.vllm.engine_adapter import request_error

KEY = "key"
HANG_SECONDS = 30


class ScriptedEngine:
    """Replaces the engine adapter: the text of a prompt decides what happens to it."""

    def __init__(self) -> None:
        self.preparing = asyncio.Event()
        self.prepare_on = asyncio.Event()
        self.prepare_on.set()
        self.begun: list[str] = []
        self.ended: list[str] = []

    async def prepare(self, items: Sequence[Mapping[str, Any]]) -> AsyncGenerator[Any, None]:
        for position, item in enumerate(items):
            self.preparing.set()
            await self.prepare_on.wait()
            bad = item["prompt"] == "bad"
            prompt = ValueError("too long") if bad else SimpleNamespace(text=item["prompt"])
            yield [(position, prompt)]

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
    """An engine that reacts unless told otherwise."""

    def __init__(self) -> None:
        self.reacts = True
        self.vllm_config = SimpleNamespace(scheduler_config=SimpleNamespace(max_num_seqs=7))

    async def get_supported_tasks(self) -> tuple[str, ...]:
        return ("generate",)

    async def is_sleeping(self) -> bool:
        if not self.reacts:
            await asyncio.Event().wait()
        return False


class Service:
    """The route with its engine."""

    def __init__(self) -> None:
        self.passed: list[str] = []
        self.engine = ScriptedEngine()
        self.route = BatchRoute(self.app)
        self.route._engine = self.engine  # type: ignore[assignment]

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
    monkeypatch.setenv("RHAPSODY_HANG_SECONDS", str(HANG_SECONDS))
    monkeypatch.setattr(batch_route, "is_engine_dead", lambda error: False)
    return Service()


async def test_every_prompt_has_its_own_last_event(service: Service) -> None:
    client = await service.batch(("a", "one"), ("b", "bad"), ("c", "fails"), ("d", "two"))
    assert client.status == 200
    assert client.lines["a"]["texts"] == ["one"]
    assert client.lines["b"] == error_event("b", request_error(ValueError("too long")))
    assert client.lines["c"]["message"] == "cannot"
    assert client.lines["d"]["texts"] == ["two"]


async def test_short_prompt_ends_before_long_neighbour(service: Service) -> None:
    client = batch_of(("long", "endless"), ("short", "one"))
    serving = asyncio.ensure_future(service.call(client))
    await asyncio.wait_for(client.got_line.wait(), 10)
    assert list(client.lines) == ["short"]
    assert await service.cancel("long") == 1
    await serving
    assert client.lines["long"]["code"] == 499


async def test_cancel_works_while_the_batch_is_prepared(service: Service) -> None:
    service.engine.prepare_on.clear()
    client = batch_of(("a", "one"), ("b", "two"))
    serving = asyncio.ensure_future(service.call(client))
    await asyncio.wait_for(service.engine.preparing.wait(), 10)
    assert await service.cancel("b", "b", "unknown") == 1
    service.engine.prepare_on.set()
    await serving
    assert client.lines["b"]["kind"] == "Cancelled"
    assert service.engine.begun == ["a"]


async def test_disconnect_cancels_prompts(service: Service) -> None:
    client = batch_of(("long", "endless"), ("short", "one"))
    serving = asyncio.ensure_future(service.call(client))
    await asyncio.wait_for(client.got_line.wait(), 10)
    client.leave.set()
    await serving
    assert sorted(service.engine.ended) == ["long", "short"]
    assert await service.cancel("long") == 0


async def test_duplicate_id_is_refused(service: Service) -> None:
    first = batch_of(("a", "endless"), ("b", "one"))
    serving = asyncio.ensure_future(service.call(first))
    await asyncio.wait_for(first.got_line.wait(), 10)
    second = await service.batch(("a", "one"))
    assert "already in progress" in second.lines["a"]["message"]
    assert await service.cancel("a") == 1
    await serving


async def test_empty_batch_has_no_events(service: Service) -> None:
    client = await service.batch()
    assert (client.status, client.body) == (200, b"")


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"\xff", "codec"),
        (b"{", "Expecting"),
        (b"[]", "The body must be a JSON object"),
        (b'{"prompts": 1}', "prompts must be a list"),
        (b'{"prompts": [{"prompt": "x"}]}', "must be an object with a str id"),
    ],
)
async def test_malformed_body_is_refused(service: Service, body: bytes, says: str) -> None:
    client = await service.call(Client("/rhapsody/batch", body))
    assert client.status == 400
    assert says in json.loads(client.body)["error"]["message"]


@pytest.mark.parametrize("path", ["/health", "/v1/models", "/rhapsody/batch", "/metrics"])
async def test_every_path_requires_the_key(service: Service, path: str) -> None:
    client = await service.call(Client(path, b"{}", key="wrong"))
    assert client.status == 401
    assert service.passed == []


async def test_websocket_without_the_key_is_closed(service: Service) -> None:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    client = Client("/v1/realtime", b"")
    scope = {"type": "websocket", "path": "/v1/realtime", "headers": []}
    await service.route(scope, client.receive, send)
    assert sent == [{"type": "websocket.close", "code": 1008}]


async def test_other_requests_go_to_vllm(service: Service) -> None:
    await service.call(Client("/v1/models", b"", method="GET"))
    await service.route({"type": "lifespan"}, None, None)  # type: ignore[arg-type]
    assert service.passed == ["/v1/models", "lifespan"]


async def test_limit_and_kinds_come_from_the_engine(service: Service) -> None:
    client = await service.call(Client("/rhapsody/limit", b"", method="GET"))
    assert json.loads(client.body) == {"max_num_seqs": 7, "kinds": ["generate"]}


async def test_engine_without_reaction_is_unhealthy(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = Client("/health", b"", method="GET")
    engine = client.scope["app"].state.engine_client  # type: ignore[attr-defined]
    await service.call(client)
    assert service.passed == ["/health"]
    await asyncio.sleep(0)  # the probe ends
    engine.reacts = False
    await service.call(client)
    assert client.status == 0  # passed to vLLM
    loop = asyncio.get_running_loop()
    later = loop.time() + HANG_SECONDS + 1
    monkeypatch.setattr(loop, "time", lambda: later)
    await service.route(client.scope, client.receive, client.send)
    monkeypatch.undo()
    assert client.status == 503
    assert service.route._probe is not None
    service.route._probe.cancel()


def weights_of(path: Any) -> Client:
    return Client("/rhapsody/weights", json.dumps({"path": path}).encode())


async def test_server_counts_as_healthy_while_it_loads_weights(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    loading, loaded = asyncio.Event(), asyncio.Event()

    async def load_weights(engine: Any, path: str) -> None:
        assert path == "/weights"
        loading.set()
        await loaded.wait()

    monkeypatch.setattr(batch_route, "load_weights", load_weights)
    health = Client("/health", b"", method="GET")
    health.scope["app"].state.engine_client.reacts = False  # type: ignore[attr-defined]
    await service.call(health)
    reloading = asyncio.ensure_future(service.call(weights_of("/weights")))
    await loading.wait()
    loop = asyncio.get_running_loop()
    later = loop.time() + HANG_SECONDS + 1
    with monkeypatch.context() as patch:
        patch.setattr(loop, "time", lambda: later)
        await service.route(health.scope, health.receive, health.send)
    assert health.status == 0  # passed to vLLM
    loaded.set()
    assert (await reloading).status == 200
    assert service.route._probe is not None
    service.route._probe.cancel()


@pytest.mark.parametrize(
    ("error", "status"), [(RequestError("no weights", "path"), 400), (OSError("damaged"), 500)]
)
async def test_status_says_whether_weights_may_be_damaged(
    service: Service, monkeypatch: pytest.MonkeyPatch, error: Exception, status: int
) -> None:
    async def load_weights(engine: Any, path: str) -> None:
        raise error

    monkeypatch.setattr(batch_route, "load_weights", load_weights)
    client = await service.call(weights_of("/weights"))
    assert client.status == status
    assert str(error) in client.body.decode()
    assert (await service.call(weights_of(3))).status == 400
