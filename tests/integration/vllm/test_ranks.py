"""A replica of two ranks: one model over two vLLM processes on this machine."""

import asyncio
import os
import signal
from typing import Any

import pytest

from tests.support.vllm_servers import GREEDY, set_environment, vllm_backend
from tests.support.waiting import until


@pytest.mark.timeout(900)
async def test_model_over_two_processes_restarts_if_one_dies(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    set_environment(monkeypatch)
    backend = vllm_backend(tp_size=2, nodes_per_replica=2)
    async with backend:
        text = await backend.generate("Hello", **GREEDY)
        [replica] = backend.replicas
        assert len({rank["pid"] for rank in replica["ranks"]}) == 2
        sampling: dict[str, Any] = {"max_tokens": 400, "ignore_eos": True}
        generating = asyncio.ensure_future(backend.generate(["hi"] * 20, **sampling))
        await until(lambda: backend.replicas[0]["in_flight"] == 20)
        os.kill(replica["ranks"][1]["pid"], signal.SIGKILL)
        await until(lambda: backend.replicas[0]["state"] != "READY")
        assert len(await generating) == 20
        assert await backend.generate("Hello", **GREEDY) == text
        assert backend.replicas[0]["restarts"] == 1
