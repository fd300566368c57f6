"""One inference service on real embedded servers, without a backend."""

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest

from rhapsody.errors import ConfigurationError, OverloadedError, PromptError, ReplicaError
from rhapsody.inference.config import InferenceConfig
from rhapsody.inference.service import InferenceService
from tests.support.inference import ENDLESS, slow
from tests.support.waiting import until


def config(**changes: Any) -> InferenceConfig:
    fields = {
        "model_name": "tiny",
        "engine": "embedded",
        "launcher": "local",
        "host": "127.0.0.1",
        "port": 0,
        "use_service": False,
    }
    return InferenceConfig(**{**fields, **changes})


async def make(**changes: Any) -> InferenceService:
    return await InferenceService.create(config(**changes), lambda size: None)


async def start(**changes: Any) -> InferenceService:
    service = await make(**changes)
    await service.start()
    return service


def scratch_of(service: InferenceService) -> Path:
    return service._factory._scratch.path


async def test_create_makes_all_parts_and_starts_no_process() -> None:
    service = await make(num_gpus=2, use_service=True)
    assert len(service.pool.replicas) == 2
    assert [replica.pid for replica in service.pool.replicas] == [None, None]
    assert service.gateway is not None
    assert service.gateway.endpoint is None
    assert not service.healthy
    assert scratch_of(service).exists()
    await service.stop()
    assert not scratch_of(service).exists()


async def test_impossible_configuration_is_refused_by_create() -> None:
    with pytest.raises(ConfigurationError, match="tp_size must be 1"):
        await make(num_gpus=0, tp_size=2)


async def test_start_complete_and_stop() -> None:
    sizes: list[int] = []
    service = await InferenceService.create(config(), sizes.append)
    await service.start()
    assert service.healthy
    pid = service.pool.replicas[0].pid
    assert pid is not None
    completion = await service.complete("hi", sampling={"max_tokens": 4, "ignore_eos": True})
    assert completion.usage["completion_tokens"] == 4
    assert sizes == [1]
    statistics = service.get_statistics()
    assert (statistics["batches"], statistics["mean_batch_size"]) == (1, 1)
    assert statistics["pending_prompts"] == 0
    await service.stop()
    assert not psutil.pid_exists(pid)
    assert not scratch_of(service).exists()
    with pytest.raises(ReplicaError, match="the inference service was shut down"):
        await service.complete("hi")


async def test_failed_start_stops_the_servers() -> None:
    service = await make(startup_timeout=0.1)
    with pytest.raises(ReplicaError, match=r"not ready within 0\.1 s"):
        await service.start()
    assert service.pool.replicas[0].pid is None
    assert not scratch_of(service).exists()


async def test_prompts_wait_for_admission(tmp_path: Path) -> None:
    service = await start(max_pending=1, config_file=slow(tmp_path, 5))
    sampling = {"max_tokens": 4}
    completing = [
        asyncio.ensure_future(service.complete("hi", sampling=sampling)) for _ in range(3)
    ]
    await until(lambda: service.admission.pending == 1)
    with pytest.raises(OverloadedError):
        service.admission.try_enter()
    await asyncio.wait_for(asyncio.gather(*completing), 20)
    await service.stop()


async def test_streamed_text_joins_to_the_response() -> None:
    service = await start()
    texts: list[str] = []
    completion = await service.complete("hi", sampling={"max_tokens": 8}, on_text=texts.append)
    assert "".join(texts) == completion.response
    await service.stop()


async def test_refused_prompt_raises_prompt_error() -> None:
    service = await start()
    with pytest.raises(PromptError):
        await service.complete("word " * 20_000)
    await service.stop()


async def test_cancelled_prompt_leaves_the_server(tmp_path: Path) -> None:
    service = await start(config_file=slow(tmp_path))
    sent = asyncio.Event()
    completing = asyncio.ensure_future(
        service.complete("hi", sampling=ENDLESS, on_sent=lambda replica: sent.set())
    )
    await asyncio.wait_for(sent.wait(), 10)
    completing.cancel()
    await asyncio.wait([completing])
    [replica] = service.pool.replicas
    await until(lambda: replica.in_flight == 0)
    assert service.admission.pending == 0
    await service.stop()


async def test_stop_fails_unfinished_prompts(tmp_path: Path) -> None:
    service = await start(config_file=slow(tmp_path))
    completing = asyncio.ensure_future(service.complete("hi", sampling=ENDLESS))
    await until(lambda: service.admission.pending == 1)
    await service.stop()
    with pytest.raises(ReplicaError, match="the inference service was shut down"):
        await completing


async def test_draining_service_finishes_prompts_and_accepts_none(tmp_path: Path) -> None:
    service = await start(config_file=slow(tmp_path))
    completing = asyncio.ensure_future(service.complete("hi", sampling={"max_tokens": 20}))
    await until(lambda: service.admission.pending == 1)
    draining = asyncio.ensure_future(service.drain(20))
    await until(lambda: service.draining)
    assert not service.healthy
    with pytest.raises(ReplicaError, match="accepts no new prompts"):
        await service.complete("late")
    await draining
    assert completing.done()
    await completing
    await service.stop()


async def test_drain_gives_up_after_its_time(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    service = await start(config_file=slow(tmp_path))
    completing = asyncio.ensure_future(service.complete("hi", sampling=ENDLESS))
    await until(lambda: service.admission.pending == 1)
    await service.drain(0.05)
    assert "1 prompts did not finish within drain_seconds=0.05" in caplog.text
    await service.stop()
    await asyncio.wait([completing])
    assert isinstance(completing.exception(), ReplicaError)


async def test_gateway_serves_while_the_service_runs() -> None:
    service = await start(use_service=True)
    assert service.gateway is not None
    async with (
        aiohttp.ClientSession(service.gateway.endpoint) as http,
        http.get("/health") as response,
    ):
        assert response.status == 200
    await service.stop()
    assert service.gateway.endpoint is None


async def test_kill_ends_servers_and_removes_files() -> None:
    service = await start()
    pid = service.pool.replicas[0].pid
    assert pid is not None
    process = psutil.Process(pid)
    service.kill()
    process.wait(10)
    assert not scratch_of(service).exists()
    await service.stop()


async def test_killed_server_is_restarted_and_completes_its_prompts(tmp_path: Path) -> None:
    service = await start(config_file=slow(tmp_path, 5))
    sampling = {"max_tokens": 30, "ignore_eos": True}
    completing = asyncio.gather(*(service.complete("hi", sampling=sampling) for _ in range(20)))
    [replica] = service.pool.replicas
    await until(lambda: replica.in_flight == 20)
    assert replica.pid is not None
    os.kill(replica.pid, signal.SIGKILL)
    completions = await completing
    assert [c.usage["completion_tokens"] for c in completions] == [30] * 20
    assert replica.restarts == 1
    await service.stop()


async def test_spare_takes_over_at_once(tmp_path: Path) -> None:
    service = await start(spares=1, config_file=slow(tmp_path, 5))
    serving, spare = service.pool.replicas
    assert [serving.spare, spare.spare] == [False, True]
    completing = [
        asyncio.ensure_future(service.complete("hi", sampling={"max_tokens": 20})) for _ in range(8)
    ]
    await until(lambda: serving.in_flight == 8)
    assert spare.in_flight == 0
    assert serving.pid is not None
    os.kill(serving.pid, signal.SIGKILL)
    await until(lambda: not spare.spare)
    assert len(await asyncio.wait_for(asyncio.gather(*completing), 20)) == 8
    await until(lambda: serving.spare and serving.state == "READY")
    await service.stop()
