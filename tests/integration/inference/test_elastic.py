"""Elastic replicas on real embedded servers: up and down with the load, without losing prompts."""

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import aiohttp

from rhapsody.backends.core.service_loop import service_loop
from rhapsody.errors import PartialFailureError
from tests.support.inference import ENDLESS, slow
from tests.support.waiting import until

QUICK: dict[str, Any] = {"scale_up_after": 0.2, "scale_down_after": 0.5}


def states(backend: Any) -> list[str]:
    return [replica["state"] for replica in backend.replicas]


async def test_replicas_follow_the_load_and_no_prompt_is_lost(start: Any, tmp_path: Path) -> None:
    config = slow(tmp_path, 5, **{"max-num-seqs": 8})
    backend = await start(replicas=(0, 2), config_file=config, **QUICK)
    assert backend.replicas == []
    # The load lasts until the second server is ready, however long that takes.
    endless = [asyncio.ensure_future(backend.generate("hi", **ENDLESS)) for _ in range(16)]
    prompts = [f"What is {number}?" for number in range(200)]
    generating = asyncio.ensure_future(backend.generate(prompts, max_tokens=20, ignore_eos=True))
    await until(lambda: states(backend) == ["READY", "READY"])
    for one in endless:
        one.cancel()
    await asyncio.gather(*endless, return_exceptions=True)
    assert len(await generating) == 200
    await until(lambda: backend.replicas == [])
    scaling = backend.get_statistics()["scaling"]
    assert (scaling["wanted"], scaling["up"], scaling["down"]) == (0, 2, 2)


async def test_chat_starts_a_server_and_waits_for_it(start: Any) -> None:
    backend = await start(replicas=(0, 1), use_service=True, **QUICK)
    async with aiohttp.ClientSession(base_url=backend.get_endpoint()) as http:
        async with http.get("/health") as response:
            assert response.status == 200
            assert (await response.json())["replicas"] == []
        chat = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}
        async with http.post("/v1/chat/completions", json=chat) as response:
            assert response.status == 200
        async with http.get("/metrics") as response:
            metrics = await response.text()
    assert 'rhapsody_scale_events{event="up"} 1.0' in metrics
    assert "rhapsody_replicas_wanted" in metrics


async def test_server_killed_while_it_drains_loses_no_prompt(start: Any, tmp_path: Path) -> None:
    config = slow(tmp_path, 30, **{"max-num-seqs": 8})
    backend = await start(replicas=(0, 1), config_file=config, **QUICK)
    generating = asyncio.ensure_future(backend.generate("hi", max_tokens=100, ignore_eos=True))
    await until(lambda: backend.replicas and backend.replicas[0]["in_flight"] == 1)
    service = backend._service
    [replica] = service.pool.replicas

    async def drain() -> None:
        service._scaler._shrink([replica], 1)

    await service_loop().run(drain())
    assert states(backend) == ["DRAINING"]
    os.kill(replica.pid, signal.SIGKILL)
    assert len(await generating) == 1
    await until(lambda: backend.replicas == [])


async def test_shutdown_while_replicas_are_added_fails_each_prompt(
    start: Any, tmp_path: Path
) -> None:
    config = slow(tmp_path, 20, **{"max-num-seqs": 2})
    backend = await start(replicas=(1, 3), config_file=config, **QUICK)
    prompts = [asyncio.ensure_future(backend.generate("hi", **ENDLESS)) for _ in range(20)]
    await until(lambda: len(backend.replicas) == 3)
    await backend.shutdown()
    outcomes = await asyncio.gather(*prompts, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [PartialFailureError] * 20


async def test_fixed_number_of_replicas(start: Any) -> None:
    backend = await start(replicas=2)
    assert states(backend) == ["READY", "READY"]
    assert "scaling" not in backend.get_statistics()
