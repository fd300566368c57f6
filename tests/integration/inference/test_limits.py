"""Bounds on pending prompts, and clients that disconnect."""

import asyncio
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from rhapsody import AITask, Session
from rhapsody.errors import PartialFailureError
from tests.support.inference import ENDLESS, MODEL, at_work, embedded, slow
from tests.support.waiting import until

LONG_CHAT = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], **ENDLESS}


async def idle(backend: Any) -> bool:
    return await at_work(backend) == 0


async def test_full_backend_delays_generate_and_refuses_http(start: Any, tmp_path: Path) -> None:
    small = await start(use_service=True, max_pending=2, config_file=slow(tmp_path, 5))
    generating = asyncio.create_task(small.generate(["hi"] * 5, max_tokens=40, ignore_eos=True))
    await until(lambda: small.get_statistics()["pending_prompts"] == 2)
    async with aiohttp.ClientSession(base_url=small.get_endpoint()) as http:
        for path, body in (("/generate", {"prompts": ["hi"]}), ("/v1/chat/completions", LONG_CHAT)):
            async with http.post(path, json=body) as response:
                assert response.status == 503
                assert response.headers["Retry-After"] == "1"
                assert "max_pending" in (await response.json())["error"]["message"]
    assert len(await generating) == 5


async def test_pending_prompts_stay_within_limit(tmp_path: Path) -> None:
    small = embedded(max_pending=3, config_file=slow(tmp_path, 1))
    most = 0
    async with Session([small]) as session:
        tasks = [AITask(prompt=f"{i}", max_tokens=4) for i in range(30)]
        await session.submit_tasks(tasks)
        waiting = asyncio.create_task(session.wait_tasks(tasks, timeout=30))
        while not waiting.done():
            most = max(most, small.get_statistics().get("pending_prompts", 0))
            await asyncio.wait([waiting], timeout=0.002)
    assert {task.state for task in tasks} == {"DONE"}
    assert 0 < most <= 3


async def test_request_over_max_pending_is_a_bad_request(start: Any) -> None:
    small = await start(use_service=True, max_pending=2)
    async with (
        aiohttp.ClientSession(base_url=small.get_endpoint()) as http,
        http.post("/generate", json={"prompts": ["hi"] * 3}) as response,
    ):
        assert response.status == 400
        assert (await response.json())["error"]["param"] == "prompts"


async def test_cancelled_waiter_does_not_block_others(start: Any, tmp_path: Path) -> None:
    small = await start(max_pending=1, config_file=slow(tmp_path))
    first = asyncio.create_task(small.generate("a", **ENDLESS))
    await until(lambda: small.get_statistics()["pending_prompts"] == 1)
    second = asyncio.create_task(small.generate("b", max_tokens=4))
    third = asyncio.create_task(small.generate("c", max_tokens=4))
    for task in (second, first):
        task.cancel()
    assert len(await asyncio.wait_for(third, 20)) == 1
    await asyncio.wait([first, second])


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/generate", {"prompts": ["a", "b"], **ENDLESS}),
        ("/v1/chat/completions", LONG_CHAT),
        ("/v1/chat/completions", {**LONG_CHAT, "stream": True}),
    ],
    ids=["generate", "chat", "stream"],
)
async def test_disconnecting_client_stops_its_work(
    start: Any, tmp_path: Path, path: str, body: dict[str, Any]
) -> None:
    slowly = await start(use_service=True, config_file=slow(tmp_path))
    async with aiohttp.ClientSession(base_url=slowly.get_endpoint()) as http:

        async def ask() -> None:
            async with http.post(path, json=body) as response:
                await response.read()

        asking = asyncio.create_task(ask())
        await until(lambda: _busy(slowly))
        asking.cancel()
        await asyncio.wait([asking])
    await until(lambda: idle(slowly))
    assert slowly.get_statistics()["pending_prompts"] == 0
    assert slowly.replicas[0]["state"] == "READY"


async def test_stalled_client_stops_its_work(start: Any, tmp_path: Path) -> None:
    slowly = await start(use_service=True, config_file=slow(tmp_path, 1))
    body = {**LONG_CHAT, "stream": True}
    async with (
        aiohttp.ClientSession(base_url=slowly.get_endpoint()) as http,
        http.post("/v1/chat/completions", json=body) as response,
    ):
        await response.content.readany()
    await until(lambda: idle(slowly))
    assert [r["state"] for r in slowly.replicas] == ["READY"]
    assert [r["restarts"] for r in slowly.replicas] == [0]


async def test_cancelling_one_of_many_leaves_the_others(tmp_path: Path) -> None:
    async with Session([embedded(config_file=slow(tmp_path, 5))]) as session:
        tasks = [AITask(prompt="hi", max_tokens=60, ignore_eos=True) for _ in range(20)]
        await session.submit_tasks(tasks)
        await session.cancel(tasks[7])
        await session.wait_tasks(tasks, timeout=20)
    states = [task.state for task in tasks]
    assert states[7] == "CANCELED"
    assert states.count("DONE") == 19


async def _busy(backend: Any) -> bool:
    return await at_work(backend) > 0


async def test_drain_finishes_pending_prompts_and_accepts_none(start: Any, tmp_path: Path) -> None:
    backend = await start(use_service=True, config_file=slow(tmp_path, 10))
    sampling = {"max_tokens": 60, "ignore_eos": True}
    async with aiohttp.ClientSession(base_url=backend.get_endpoint()) as http:
        inside = [
            asyncio.ensure_future(backend.generate(["hi"] * 3, **sampling)),
            asyncio.ensure_future(post(http, "/v1/chat/completions", {**LONG_CHAT, **sampling})),
        ]
        await until(lambda: backend.get_statistics()["pending_prompts"] == 4)
        ending = asyncio.ensure_future(backend.shutdown(drain_seconds=30))
        await until(lambda: backend._service is None or backend._service.draining)
        assert await post(http, "/generate", {"prompts": ["late"]}) == 503
        async with http.get("/health") as response:
            assert response.status == 503
        assert len(await inside[0]) == 3
        assert await inside[1] == 200
        await ending


async def test_drain_is_bounded(start: Any, tmp_path: Path) -> None:
    backend = await start(config_file=slow(tmp_path, 50))
    generating = asyncio.ensure_future(backend.generate("hi", **ENDLESS))
    await until(lambda: backend.get_statistics()["pending_prompts"] == 1)
    await asyncio.wait_for(backend.shutdown(drain_seconds=0.2), 20)
    with pytest.raises(PartialFailureError):
        await generating


async def post(http: aiohttp.ClientSession, path: str, body: dict[str, Any]) -> int:
    async with http.post(path, json=body) as response:
        await response.read()
        return response.status


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "/v1/responses/resp_1", None),
        ("POST", "/v1/responses", {"input": "hi", "previous_response_id": "resp_1"}),
        ("POST", "/v1/assistants", None),
    ],
)
async def test_stateful_routes_are_refused_with_several_servers(
    start: Any, method: str, path: str, body: Any
) -> None:
    two = await start(use_service=True, num_gpus=2)
    async with (
        aiohttp.ClientSession(base_url=two.get_endpoint()) as http,
        http.request(method, path, json=body) as response,
    ):
        assert response.status == 501
        assert "there are 2" in (await response.json())["error"]["message"]
