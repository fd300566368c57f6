"""Prompts over several endpoints: limits, failover, retries, outages."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
import pytest_asyncio
from aiohttp import web

from rhapsody.errors import ConfigurationError, PromptError, ReplicaError
from rhapsody.inference.endpoints.config import EndpointConfig
from rhapsody.inference.endpoints.service import EndpointService
from tests.support.openai_server import MODEL, OpenAIServer, completion, delta, sse
from tests.support.waiting import until

Start = Callable[..., Awaitable[EndpointService]]

UNREACHABLE = "http://127.0.0.1:9/v1"


@pytest_asyncio.fixture
async def start() -> AsyncIterator[Start]:
    services: list[EndpointService] = []

    async def make(*urls: str, **options: Any) -> EndpointService:
        service = EndpointService(EndpointConfig(base_url=list(urls), **options), lambda size: None)
        services.append(service)
        await service.start()
        return service

    yield make
    for service in services:
        await service.stop()


@pytest_asyncio.fixture
async def other() -> AsyncIterator[OpenAIServer]:
    async with OpenAIServer().running() as running:
        yield running


def fail_first(server: OpenAIServer, times: int, status: int, **headers: str) -> Any:
    """Return an answer that fails some times, and then succeeds."""
    left = [times]

    async def answer(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        if left[0]:
            left[0] -= 1
            return web.Response(status=status, text="not now", headers=headers)
        return await server.upper(request, body)

    return answer


async def test_only_model_is_chosen(server: OpenAIServer, start: Start) -> None:
    assert (await start(server.url)).model == MODEL


async def test_one_of_several_models_must_be_named(server: OpenAIServer, start: Start) -> None:
    server.models = ["large", "small"]
    with pytest.raises(ConfigurationError, match="the endpoints serve large, small; name one"):
        await start(server.url)


async def test_model_that_is_not_served_is_refused(server: OpenAIServer, start: Start) -> None:
    with pytest.raises(ConfigurationError, match="did you mean 'scripted'"):
        await start(server.url, model="scriptd")


async def test_unlisted_models_are_accepted(server: OpenAIServer, start: Start) -> None:
    server.models = None
    assert (await start(server.url, model="any")).model == "any"


async def test_start_fails_if_no_endpoint_can_be_reached(start: Start) -> None:
    with pytest.raises(ReplicaError, match=r"no endpoint can be used: http://127\.0\.0\.1:9/v1"):
        await start(UNREACHABLE, model="any")


async def test_endpoint_gets_no_more_requests_than_its_limit(
    server: OpenAIServer, start: Start
) -> None:
    service = await start(server.url, max_concurrency=3)
    results = await asyncio.gather(*(service.complete(f"p{i}") for i in range(50)))
    assert [result.texts[0] for result in results] == [f"P{i}" for i in range(50)]
    assert server.most_at_once <= 3
    assert service.endpoints[0].in_flight == 0


async def test_prompts_are_spread_over_endpoints(
    server: OpenAIServer, other: OpenAIServer, start: Start
) -> None:
    service = await start(server.url, other.url, max_concurrency=2)
    await asyncio.gather(*(service.complete("hi") for _ in range(40)))
    assert len(server.bodies) + len(other.bodies) == 40
    assert min(len(server.bodies), len(other.bodies)) >= 10


async def test_failed_request_goes_to_the_other_endpoint(
    server: OpenAIServer, start: Start
) -> None:
    service = await start(UNREACHABLE, server.url, model=MODEL)
    results = await asyncio.gather(*(service.complete("hi") for _ in range(40)))
    assert all(result.texts == ["HI"] for result in results)
    assert [one["state"] for one in service.get_statistics()["replicas"]] == ["FAILED", "READY"]


async def test_server_error_is_tried_again(server: OpenAIServer, start: Start) -> None:
    service = await start(server.url)
    server.answer = fail_first(server, 2, 500)
    assert (await service.complete("hi")).texts == ["HI"]
    assert len(server.bodies) == 3


async def test_attempts_are_limited(server: OpenAIServer, start: Start) -> None:
    service = await start(server.url, max_retries=1)
    server.answer = fail_first(server, 9, 500)
    with pytest.raises(ReplicaError, match=r"in 2 attempts: it failed \(HTTP 500\): not now"):
        await service.complete("hi")


async def test_busy_server_costs_no_attempt(server: OpenAIServer, start: Start) -> None:
    service = await start(server.url, max_retries=0)
    server.answer = fail_first(server, 3, 429, **{"Retry-After": "0.05"})
    assert (await service.complete("hi")).texts == ["HI"]


async def test_refused_prompt_is_not_tried_again(server: OpenAIServer, start: Start) -> None:
    service = await start(server.url)
    server.answer = fail_first(server, 9, 400)
    with pytest.raises(PromptError, match="not now"):
        await service.complete("hi")
    assert len(server.bodies) == 1


async def test_stream_is_not_started_over_after_its_first_piece(
    server: OpenAIServer, start: Start
) -> None:
    async def cut(request: web.Request, body: dict[str, Any]) -> web.Response:
        return web.Response(body=sse(delta("H")), content_type="text/event-stream")

    service = await start(server.url)
    server.answer = cut
    pieces: list[str] = []
    with pytest.raises(ReplicaError, match="ended early"):
        await service.complete("hi", on_text=pieces.append)
    assert pieces == ["H"]


async def test_prompts_fail_with_the_reason_after_an_outage(
    server: OpenAIServer, start: Start
) -> None:
    service = await start(server.url, max_retries=1000, outage_timeout=0.3, max_concurrency=2)
    server.answer = fail_first(server, 10_000, 500)
    outcomes = await asyncio.gather(
        *(service.complete("hi") for _ in range(20)), return_exceptions=True
    )
    assert all(isinstance(outcome, ReplicaError) for outcome in outcomes)
    assert all("outage_timeout=0.3 s" in str(outcome) for outcome in outcomes)
    assert service.get_statistics()["pending_prompts"] == 0


async def test_outage_ends_before_a_long_pause(server: OpenAIServer, start: Start) -> None:
    service = await start(server.url, outage_timeout=0.2)
    server.answer = fail_first(server, 10_000, 429, **{"Retry-After": "60"})
    with pytest.raises(ReplicaError, match=r"outage_timeout=0\.2 s"):
        await asyncio.wait_for(service.complete("hi"), 30)


async def test_earlier_outage_does_not_count(server: OpenAIServer, start: Start) -> None:
    service = await start(server.url, outage_timeout=0.4)
    server.answer = fail_first(server, 10_000, 429)
    with pytest.raises(ReplicaError):
        await service.complete("hi")
    server.answer = fail_first(server, 1, 429, **{"Retry-After": "0"})
    service.endpoints[0].not_before = 0.0
    assert (await service.complete("hi")).texts == ["HI"]


async def test_metrics_have_the_priority(server: OpenAIServer, start: Start) -> None:
    service = await start(server.url)
    await service.complete("hi", priority=10)
    metrics = service.metrics.expose(0, [], {}).decode()
    assert 'rhapsody_prompt_seconds_count{priority="urgent"} 1.0' in metrics


async def test_wait_behind_other_prompts_is_no_outage(server: OpenAIServer, start: Start) -> None:
    async def slowly(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        await asyncio.sleep(0.05)
        if len(server.bodies) == 8:
            return web.Response(status=429, headers={"Retry-After": "0"})
        return await server.upper(request, body)

    service = await start(server.url, max_concurrency=1, outage_timeout=0.35)
    server.answer = slowly
    results = await asyncio.gather(*(service.complete("hi") for _ in range(10)))
    assert [result.texts for result in results] == [["HI"]] * 10


async def test_endpoint_that_refuses_the_key_gets_no_more_prompts(
    server: OpenAIServer, other: OpenAIServer, start: Start
) -> None:
    other.answer = fail_first(other, 10_000, 401)
    service = await start(server.url, other.url, max_concurrency=4)
    results = await asyncio.gather(*(service.complete("hi") for _ in range(40)))
    assert [result.texts for result in results] == [["HI"]] * 40
    assert len(other.bodies) < 10


async def test_service_recovers_after_an_outage(server: OpenAIServer, start: Start) -> None:
    service = await start(server.url, max_retries=1000, outage_timeout=0.2)
    server.answer = fail_first(server, 10_000, 500)
    with pytest.raises(ReplicaError):
        await service.complete("hi")
    server.answer = server.upper
    service.endpoints[0].not_before = 0.0
    assert (await service.complete("hi")).texts == ["HI"]


async def test_cancelled_prompt_frees_its_place(server: OpenAIServer, start: Start) -> None:
    never, arrived = asyncio.Event(), asyncio.Event()

    async def hang(request: web.Request, body: dict[str, Any]) -> web.Response:
        arrived.set()
        await never.wait()
        return web.json_response(completion("late"))

    service = await start(server.url, max_concurrency=1)
    server.answer = hang
    running = asyncio.ensure_future(service.complete("a"))
    await arrived.wait()
    waiting = asyncio.ensure_future(service.complete("b"))
    server.answer = server.upper
    next_one = asyncio.ensure_future(service.complete("c"))
    await asyncio.sleep(0)
    waiting.cancel()
    running.cancel()
    assert (await next_one).texts == ["C"]
    await asyncio.gather(running, waiting, return_exceptions=True)
    assert service.endpoints[0].in_flight == 0
    never.set()


async def test_prompts_that_wait_fail_at_the_stop(server: OpenAIServer, start: Start) -> None:
    never, arrived = asyncio.Event(), asyncio.Event()

    async def hang(request: web.Request, body: dict[str, Any]) -> web.Response:
        arrived.set()
        await never.wait()
        return web.json_response(completion("late"))

    service = await start(server.url, max_concurrency=1)
    server.answer = hang
    running = asyncio.ensure_future(service.complete("a"))
    await arrived.wait()
    waiting = asyncio.ensure_future(service.complete("b"))
    await asyncio.sleep(0)
    await service.stop()
    for prompt in (running, waiting):
        with pytest.raises(ReplicaError):
            await prompt
    never.set()


async def test_prompts_of_higher_priority_are_sent_first(
    server: OpenAIServer, start: Start
) -> None:
    release = asyncio.Event()

    async def answer(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        await release.wait()
        return await server.upper(request, body)

    server.answer = answer
    service = await start(server.url, max_concurrency=1)
    running = [
        asyncio.create_task(service.complete(text, priority=priority))
        for text, priority in (("first", 0), ("low", -5), ("middle", 0), ("high", 5))
    ]
    await until(lambda: server.bodies)
    release.set()
    await asyncio.gather(*running)
    sent = [body["messages"][-1]["content"] for body in server.bodies]
    assert sent == ["first", "high", "middle", "low"]
    assert all("priority" not in body for body in server.bodies)
