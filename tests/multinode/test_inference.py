"""A model server on each node, and one model over both nodes."""

import asyncio
import os
import signal
from typing import Any

import pytest

from rhapsody.backends import DragonExecutionBackendV3, DragonVllmInferenceBackend
from rhapsody.backends.core.service_loop import service_loop
from tests.support.inference import embedded
from tests.support.on_dragon import DragonRunner
from tests.support.vllm_servers import GREEDY, set_environment, vllm_backend
from tests.support.waiting import until

START_SECONDS = 90.0


async def written(backend: DragonVllmInferenceBackend) -> list[int]:
    """Return how many tokens each server has generated."""
    assert backend._service is not None
    replicas = backend._service.pool.ready

    async def ask() -> list[str | None]:
        return await asyncio.gather(*(replica.connection.metrics() for replica in replicas))

    name = "rhapsody_embedded_generation_tokens_total "
    lines = [line for text in await service_loop().run(ask()) for line in (text or "").split("\n")]
    return [int(float(line.split()[1])) for line in lines if line.startswith(name)]


async def test_replica_runs_on_each_node_and_is_restarted_there(here: str, there: str) -> None:
    backend = embedded(num_nodes=2, num_gpus=0, launcher=None)
    await backend.initialize()
    try:
        replicas = {replica["node"]: replica for replica in backend.replicas}
        assert replicas.keys() == {here, there}
        assert replicas[here]["address"].startswith("unix:")
        assert replicas[there]["address"].startswith("http://10.77.0.")
        assert len(await backend.generate(["What is heat?"] * 50, max_tokens=4)) == 50
        tokens = await written(backend)
        assert len(tokens) == 2
        assert all(tokens)

        async with DragonExecutionBackendV3(num_workers=1, nodes=[there]) as workers:
            runner = DragonRunner(workers)
            kill = runner.function(os.kill, replicas[there]["pid"], signal.SIGKILL)
            assert await runner.run(kill) == ["DONE"]
        assert len(await backend.generate(["What is heat?"] * 50, max_tokens=4)) == 50
        index = replicas[there]["index"]
        await until(lambda: backend.replicas[index]["restarts"] == 1, START_SECONDS)
        await until(lambda: backend.replicas[index]["state"] == "READY", START_SECONDS)
        assert backend.replicas[index]["node"] == there
        assert len(await backend.generate(["What is heat?"] * 50, max_tokens=4)) == 50
    finally:
        await backend.shutdown()


@pytest.mark.vllm
@pytest.mark.timeout(1800)
async def test_model_over_both_nodes_restarts_if_the_rank_of_the_other_node_dies(
    here: str, there: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_environment(monkeypatch)
    options = {"num_nodes": 2, "tp_size": 2, "nodes_per_replica": 2, "startup_timeout": 800.0}
    async with vllm_backend(launcher=None, **options) as backend:
        text = await backend.generate("Hello", **GREEDY)
        [replica] = backend.replicas
        ranks = {rank["node"]: rank["pid"] for rank in replica["ranks"]}
        assert ranks.keys() == {here, there}
        sampling: dict[str, Any] = {"max_tokens": 400, "ignore_eos": True}
        generating = asyncio.ensure_future(backend.generate(["hi"] * 20, **sampling))
        await until(lambda: backend.replicas[0]["in_flight"] == 20)
        async with DragonExecutionBackendV3(num_workers=1, nodes=[there]) as workers:
            kill = DragonRunner(workers).function(os.kill, ranks[there], signal.SIGKILL)
            assert await DragonRunner(workers).run(kill) == ["DONE"]
        await until(lambda: backend.replicas[0]["state"] != "READY")
        assert len(await generating) == 20
        assert await backend.generate("Hello", **GREEDY) == text
        assert backend.replicas[0]["restarts"] == 1
