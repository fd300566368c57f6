"""The gateway over HTTP, with a scripted service."""

import asyncio
import contextlib
import logging
import socket
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from prometheus_client.parser import text_string_to_metric_families

from rhapsody.errors import PromptError, ReplicaError, ResourceError
from rhapsody.inference.admission import Admission
from rhapsody.inference.clients import parse_keys
from rhapsody.inference.config import InferenceConfig
from rhapsody.inference.http import gateway as module
from rhapsody.inference.http.gateway import Gateway, is_public_without_key
from rhapsody.inference.http.listener import ConnectionLimits
from rhapsody.inference.http.proxy import FORWARDED
from rhapsody.inference.http.served_model import ServedModel
from rhapsody.inference.metrics import Metrics
from rhapsody.inference.prompts import Completion
from tests.support.replicas import FakeReplica, ScriptedServer, pool_of, started_replica
from tests.support.waiting import until

USAGE = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}


class EchoService:
    """Completes each prompt with itself, fails "bad" ones, and never completes "slow" ones."""

    def __init__(self) -> None:
        self.replica = FakeReplica(0)
        self.pool = pool_of(self.replica)
        self.admission = Admission(4)
        self.metrics = Metrics()
        self.fetches_media = False
        self.has_priorities = True
        self.priorities: list[int] = []
        self.adapters_used: list[str | None] = []
        self.healthy = True
        self.open = True
        self.seen: list[tuple[Any, str | None, dict[str, Any]]] = []

    def check_open(self) -> None:
        if not self.open:
            raise ReplicaError("the service is draining")

    window = 4

    class adapters:  # noqa: N801
        names = ("tuned",)

    async def complete(self, prompt: Any, *_: Any, **__: Any) -> Completion:
        return await self.complete_admitted(prompt)

    def get_statistics(self) -> dict[str, Any]:
        return {}

    async def complete_admitted(
        self,
        prompt: str | Sequence[Mapping[str, Any]],
        system_prompt: str | None = None,
        sampling: Mapping[str, Any] | None = None,
        *,
        priority: int = 0,
        order: int | None = None,
        adapter: str | None = None,
    ) -> Completion:
        self.priorities.append(priority)
        self.adapters_used.append(adapter)
        self.seen.append((prompt, system_prompt, dict(sampling or {})))
        if prompt == "bad":
            raise PromptError("it is bad", 400, "BadRequestError")
        if prompt == "lost":
            raise ReplicaError("the server was lost", "log")
        if prompt == "bug":
            raise RuntimeError("a secret")
        if prompt == "slow":
            await asyncio.Event().wait()
        return Completion([str(prompt)], ["stop"], USAGE)


def config(**changes: Any) -> InferenceConfig:
    return InferenceConfig(
        **{"model_name": "tiny", "host": "127.0.0.1", "port": 0, "engine": "embedded", **changes}
    )


def served(service: EchoService, **changes: Any) -> ServedModel:
    return ServedModel(config(**changes), lambda: service)


@pytest.fixture
async def service() -> EchoService:
    return EchoService()


@pytest.fixture
async def http(service: EchoService) -> AsyncIterator[aiohttp.ClientSession]:
    async for session in serve(service):
        yield session


async def serve(service: EchoService, **changes: Any) -> AsyncIterator[aiohttp.ClientSession]:
    gateway = Gateway(config(**changes), [served(service)])
    await gateway.start()
    async with aiohttp.ClientSession(gateway.endpoint) as session:
        yield session
    await gateway.stop()


async def generate(http: aiohttp.ClientSession, **body: Any) -> tuple[int, dict[str, Any]]:
    async with http.post("/generate", json=body) as response:
        return response.status, await response.json()


async def test_endpoint_is_known_while_it_listens(service: EchoService) -> None:
    gateway = Gateway(config(), [served(service)])
    assert gateway.endpoint is None
    await gateway.start()
    assert gateway.endpoint is not None
    assert gateway.endpoint.startswith("http://127.0.0.1:")
    await gateway.stop()
    assert gateway.endpoint is None


async def test_port_in_use_is_an_error(service: EchoService) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(ResourceError, match="choose another port="):
            await Gateway(config(port=taken.getsockname()[1]), [served(service)]).start()


async def test_public_server_without_key_is_logged(
    service: EchoService, caplog: pytest.LogCaptureFixture
) -> None:
    async for _ in serve(service, host="0.0.0.0"):
        assert "can be reached from other machines and requires no key" in caplog.text


async def test_health_describes_the_service(
    http: aiohttp.ClientSession, service: EchoService
) -> None:
    async with http.get("/health") as response:
        body = await response.json()
    assert response.status == 200
    assert body["status"] == "healthy"
    assert body["replicas"] == [{"index": 0, "state": "READY", "in_flight": 0, "restarts": 0}]
    assert body["batch_config"]["pending_prompts"] == 0
    service.healthy = False
    async with http.get("/health") as response:
        assert response.status == 503
        assert (await response.json())["status"] == "unavailable"


async def test_generate_returns_results_in_order(
    http: aiohttp.ClientSession, service: EchoService
) -> None:
    status, body = await generate(http, prompts=["a", "b"], system_prompt="Be brief.", max_tokens=4)
    assert status == 200
    assert (body["status"], body["results"], body["errors"]) == ("success", ["a", "b"], [None] * 2)
    assert body["usage"] == {kind: 2 * tokens for kind, tokens in USAGE.items()}
    assert service.seen[0] == ("a", "Be brief.", {"max_tokens": 4})
    assert service.admission.pending == 0


async def test_generate_reports_each_failed_prompt(
    http: aiohttp.ClientSession, caplog: pytest.LogCaptureFixture
) -> None:
    _, body = await generate(http, prompts=["bad", "lost", "bug", "a"])
    assert body["status"] == "partial"
    assert body["results"] == [None, None, None, "a"]
    assert [error and error["code"] for error in body["errors"]] == [400, 503, 500, None]
    assert "secret" not in str(body)
    assert "a prompt of /generate failed" in caplog.text


async def test_generate_without_results_is_an_error_status(http: aiohttp.ClientSession) -> None:
    _, body = await generate(http, prompts=["bad"])
    assert body["status"] == "error"


async def test_generate_times_out_single_prompts(
    http: aiohttp.ClientSession, service: EchoService
) -> None:
    _, body = await generate(http, prompts=["slow", "a"], timeout=0.5)
    assert body["results"] == [None, "a"]
    assert body["errors"][0]["code"] == 504
    assert service.admission.pending == 0


async def test_generate_refuses_more_prompts_than_max_pending(http: aiohttp.ClientSession) -> None:
    status, body = await generate(http, prompts=["a"] * 5)
    assert status == 400
    assert "at most max_pending=4 prompts, got 5" in body["error"]["message"]


async def test_generate_is_overloaded_while_prompts_are_pending(
    http: aiohttp.ClientSession, service: EchoService
) -> None:
    service.admission.try_enter(3)
    status, _ = await generate(http, prompts=["a", "b"])
    assert status == 503
    assert service.seen == []


async def test_generate_fails_with_the_failure_of_the_pool(
    http: aiohttp.ClientSession, service: EchoService
) -> None:
    service.pool.close(ReplicaError("no model server is left"))
    status, body = await generate(http, prompts=["a"])
    assert (status, body["error"]["message"]) == (503, "no model server is left")


async def test_disconnected_client_frees_its_places(
    http: aiohttp.ClientSession, service: EchoService
) -> None:
    asking = asyncio.ensure_future(generate(http, prompts=["slow"] * 3))
    await until(lambda: len(service.seen) == 3)
    asking.cancel()
    await asyncio.wait([asking])
    await until(lambda: service.admission.pending == 0)


async def test_upload_that_is_cut_off_leaves_nothing_and_is_no_error(
    service: EchoService, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "rhapsody")
    gateway = Gateway(config(), [served(service)])
    await gateway.start()
    assert gateway.endpoint is not None
    port = int(gateway.endpoint.rpartition(":")[2])
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    head = "POST /v1/files HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n"
    writer.write(f"{head}Content-Type: multipart/form-data; boundary=x\r\n\r\n".encode())
    writer.write(b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\ntext')
    await until(lambda: bool(files_of(gateway)))
    writer.close()
    await until(lambda: not files_of(gateway))
    await gateway.stop()
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def files_of(gateway: Gateway) -> Any:
    return gateway._batch_routes._files._files


async def test_closed_service_refuses_prompts_but_reports_health(
    http: aiohttp.ClientSession, service: EchoService
) -> None:
    service.open = False
    assert (await generate(http, prompts=["a"]))[0] == 503
    for path in ("/health", "/metrics"):
        async with http.get(path) as response:
            assert response.status == 200


async def test_metrics_include_ready_replicas(
    http: aiohttp.ClientSession, service: EchoService
) -> None:
    service.admission.try_enter(2)
    async with http.get("/metrics") as response:
        families = list(text_string_to_metric_families(await response.text()))
    samples = {s.name: (s.labels, s.value) for family in families for s in family.samples}
    assert samples["rhapsody_pending_prompts"] == ({}, 2)
    assert samples["fake_prompts"] == ({"replica": "0"}, 7)


async def test_key_is_required_except_for_health(service: EchoService) -> None:
    async for http in serve(service, api_key="key"):
        for path, key, status in (
            ("/health", "", 200),
            ("/metrics", "", 401),
            ("/metrics", "Bearer other", 401),
            ("/metrics", "key", 401),
            ("/metrics", "Bearer key", 200),
        ):
            async with http.get(path, headers={"Authorization": key}) as response:
                assert response.status == status


PREFLIGHT = {
    "Origin": "https://app.example",
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "authorization,content-type",
}


@pytest.mark.parametrize("origin", ["https://app.example", "*"])
async def test_allowed_web_page_needs_no_key_for_a_preflight(
    service: EchoService, origin: str
) -> None:
    async for http in serve(service, api_key="key", cors_origins=[origin]):
        async with http.options("/generate", headers=PREFLIGHT) as response:
            assert response.status == 204
            assert response.headers["Access-Control-Allow-Origin"] == "https://app.example"
            assert response.headers["Access-Control-Allow-Methods"] == "POST"
            asked = PREFLIGHT["Access-Control-Request-Headers"]
            assert response.headers["Access-Control-Allow-Headers"] == asked
        async with http.get("/metrics", headers={"Origin": "https://app.example"}) as response:
            assert response.status == 401
            assert response.headers["Access-Control-Allow-Origin"] == "https://app.example"
            assert "Origin" in response.headers["Vary"]


@pytest.mark.parametrize("origins", [[], ["https://other.example"]])
async def test_preflight_of_another_web_page_is_forbidden(
    service: EchoService, origins: list[str]
) -> None:
    async for http in serve(service, api_key="key", cors_origins=origins):
        async with http.options("/generate", headers=PREFLIGHT) as response:
            assert response.status == 403
            assert "cors_origins=[...]" in (await response.json())["error"]["message"]
            assert "Access-Control-Allow-Origin" not in response.headers


async def test_options_that_is_no_preflight_needs_the_key(service: EchoService) -> None:
    async for http in serve(service, api_key="key", cors_origins=["*"]):
        async with http.options("/generate") as response:
            assert response.status == 401


@pytest.mark.parametrize("path", FORWARDED)
async def test_route_of_vllm_is_forwarded(
    service: EchoService, http: aiohttp.ClientSession, path: str
) -> None:
    service.replica.state = "DEAD"
    async with http.post(path, json={}) as response:
        assert response.status == 503
        assert "no model server is ready" in await response.text()


async def test_routes_for_administrators_are_not_forwarded(http: aiohttp.ClientSession) -> None:
    for path in ("/sleep", "/collective_rpc", "/invocations"):
        async with http.post(path, json={}) as response:
            assert response.status == 404


async def test_unexpected_error_is_logged_and_not_shown(
    http: aiohttp.ClientSession, service: EchoService, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> None:
        raise RuntimeError("a secret")

    service.check_open = fail  # type: ignore[method-assign]
    status, body = await generate(http, prompts=["a"])
    assert status == 500
    assert "secret" not in str(body)
    assert "POST /generate failed" in caplog.text


async def test_health_without_key_does_not_make_a_connection_known(service: EchoService) -> None:
    gateway = Gateway(config(api_key="key"), [served(service)], ConnectionLimits(8, 1))
    await gateway.start()
    assert gateway.endpoint is not None
    port = int(gateway.endpoint.rpartition(":")[2])
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /health HTTP/1.1\r\nHost: test\r\n\r\n")
    assert b"200 OK" in await asyncio.wait_for(reader.readline(), 20)
    other = (await asyncio.open_connection("127.0.0.1", port))[1]
    with contextlib.suppress(ConnectionResetError):
        await asyncio.wait_for(reader.read(), 20)
    assert reader.at_eof() or reader.exception() is not None
    for open_writer in (writer, other):
        open_writer.close()
    await gateway.stop()


@pytest.mark.parametrize(
    ("key", "addresses", "public"),
    [
        (None, ["127.0.0.1"], False),
        (None, ["127.0.0.1", "::1"], False),
        (None, ["10.0.0.4"], True),
        (None, ["127.0.0.1", "0.0.0.0"], True),
        (None, ["::"], True),
        ("secret", ["0.0.0.0"], False),
    ],
)
def test_server_beyond_loopback_without_key_is_public(
    key: str | None, addresses: list[str], public: bool
) -> None:
    assert is_public_without_key(key, addresses) is public


async def test_routes_are_described_without_those_of_administrators(
    http: aiohttp.ClientSession,
) -> None:
    async with http.get("/openapi.json") as response:
        document = await response.json()
    assert {"/health", "/generate", "/v1/fakes"} <= document["paths"].keys()
    assert "/shutdown" not in document["paths"]
    async with http.get("/docs") as response:
        page = await response.text()
    assert "<code>/v1/fakes</code>" in page


async def test_routes_require_the_key(service: EchoService) -> None:
    async for http in serve(service, api_key="secret"):
        for path in ("/openapi.json", "/docs"):
            async with http.get(path) as response:
                assert response.status == 401


async def test_url_of_an_image_is_refused_if_the_server_would_fetch_any(
    service: EchoService,
) -> None:
    service.fetches_media = True
    part = {"type": "image_url", "image_url": {"url": "http://10.0.0.1/a.png"}}
    body = {"messages": [{"role": "user", "content": [part]}]}
    async for http in serve(service):
        async with http.post("/v1/chat/completions", json=body) as response:
            error = (await response.json())["error"]
    assert (response.status, error["param"]) == (400, "messages")
    assert "send a data: URL instead" in error["message"]


async def test_priority_of_generate_is_in_the_body_or_in_the_header(
    http: aiohttp.ClientSession, service: EchoService
) -> None:
    headers = {"X-Rhapsody-Priority": "3"}
    for body in ({}, {"priority": 5}, {"priority": None}):
        data = {"prompts": ["hi"], **body}
        async with http.post("/generate", json=data, headers=headers) as response:
            assert response.status == 200
    assert (await generate(http, prompts=["hi"]))[0] == 200
    assert service.priorities == [3, 5, 3, 0]


@pytest.mark.parametrize("priority", [1000, 1.5, "high", True])
async def test_invalid_priority_is_refused(http: aiohttp.ClientSession, priority: Any) -> None:
    status, body = await generate(http, prompts=["hi"], priority=priority)
    assert (status, body["error"]["param"]) == (400, "priority")


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


async def test_each_client_has_its_key_its_rate_and_its_usage(service: EchoService) -> None:
    keys = {"alice": "key-a", "bob": {"key": "key-b", "rate": 1}}
    body = {"prompts": ["hi"]}
    async for http in serve(service, api_keys=keys, api_key="key-d"):
        for key, status in (("key-a", 200), ("key-b", 200), ("key-d", 200), ("key-c", 401)):
            async with http.post("/generate", json=body, headers=bearer(key)) as response:
                assert response.status == status
        async with http.post("/generate", json=body, headers=bearer("key-b")) as response:
            assert response.status == 429
            assert 50 < int(response.headers["Retry-After"]) <= 60
            assert (await response.json())["error"]["type"] == "RateLimitError"
        async with http.get("/metrics", headers=bearer("key-a")) as response:
            families = text_string_to_metric_families(await response.text())
        usage = {
            (sample.name, *sample.labels.values()): sample.value
            for family in families
            if family.name.startswith("rhapsody_client")
            for sample in family.samples
        }
        assert usage["rhapsody_client_prompts", "alice", "accepted"] == 1
        assert usage["rhapsody_client_prompts", "bob", "refused"] == 1
        assert usage["rhapsody_client_tokens", "bob", "completion"] == 2
        assert service.admission.pending == 0


@pytest.mark.parametrize("limits", [{}, {"rate": 1}])
async def test_request_that_no_model_gets_is_no_prompt_of_its_client(
    service: EchoService, limits: dict[str, int]
) -> None:
    listening = config(api_keys={"alice": {"key": "key", **limits}})
    service.admission = Admission(0)
    gateway = Gateway(listening, [served(service), served(service, model_name="other")])
    await gateway.start()
    async with aiohttp.ClientSession(gateway.endpoint, headers=bearer("key")) as http:
        for body, status in (({"model": "unknown"}, 404), ({}, 400), ({"model": "other"}, 503)):
            async with http.post("/v1/completions", json=body) as response:
                assert response.status == status
    (alice,) = gateway.usage()
    assert (alice["prompts"], alice["refused"]) == (0, 0)
    await gateway.stop()


async def test_keys_can_be_replaced_while_the_server_runs(service: EchoService) -> None:
    gateway = Gateway(config(api_keys={"alice": "old"}), [served(service)])
    await gateway.start()
    async with aiohttp.ClientSession(gateway.endpoint) as http:
        await gateway.replace_keys(parse_keys({"alice": "new"}))
        for key, status in (("old", 401), ("new", 200)):
            async with http.get("/metrics", headers=bearer(key)) as response:
                assert response.status == status
    await gateway.stop()


async def test_adapter_is_chosen_by_the_field_model(
    http: aiohttp.ClientSession, service: EchoService
) -> None:
    for model in ("tuned", "tiny"):
        assert (await generate(http, prompts=["a"], model=model))[0] == 200
    assert service.adapters_used == ["tuned", None]
    status, body = await generate(http, prompts=["a"], model="other")
    assert status == 404
    assert "this server has tiny, tuned" in body["error"]["message"]


async def test_request_that_runs_at_the_stop_gets_an_error(
    service: EchoService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "STOP_SECONDS", 0.1)
    gateway = Gateway(config(), [served(service)])
    await gateway.start()
    async with aiohttp.ClientSession(gateway.endpoint) as http:
        running = asyncio.ensure_future(generate(http, prompts=["slow"]))
        await until(lambda: service.seen)
        await gateway.stop()
        status, body = await running
    assert (status, body["error"]["message"]) == (503, "the server was shut down")
    assert service.admission.pending == 0


async def test_stream_that_runs_at_the_stop_ends_with_an_error(
    service: EchoService, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def endless(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b"data: 1\n\n")
        await asyncio.Event().wait()
        return response

    monkeypatch.setattr(module, "STOP_SECONDS", 0.1)
    server = ScriptedServer()
    server.routes = [web.post("/v1/completions", endless)]
    async with started_replica(server) as replica:
        service.pool = pool_of(replica)
        gateway = Gateway(config(), [served(service)])
        await gateway.start()
        async with (
            aiohttp.ClientSession(gateway.endpoint) as http,
            http.post("/v1/completions", json={}) as response,
        ):
            assert await response.content.readline() == b"data: 1\n"
            await gateway.stop()
            rest = await response.text()
    assert "the server was shut down" in rest
