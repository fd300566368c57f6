"""Chats while bulk work keeps the model busy."""

import asyncio
from pathlib import Path
from typing import Any

import aiohttp

from tests.support.inference import ENDLESS, slow
from tests.support.waiting import until

SLOTS = 16


async def test_chat_does_not_wait_for_bulk_work(start: Any, tmp_path: Path) -> None:
    backend = await start(
        config_file=slow(tmp_path, 50, **{"max-num-seqs": SLOTS}), use_service=True
    )
    body = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}
    async with aiohttp.ClientSession(backend.get_endpoint()) as http:

        async def chat() -> None:
            async with http.post("/v1/chat/completions", json=body) as response:
                assert response.status == 200

        await chat()
        bulk = [asyncio.ensure_future(backend.generate(f"{i}", **ENDLESS)) for i in range(40)]
        await until(lambda: backend.replicas[0]["in_flight"] == SLOTS - 1)
        for _ in range(5):
            await chat()
        await until(lambda: backend.replicas[0]["in_flight"] == SLOTS - 1)
        assert not any(one.done() for one in bulk)
        for one in bulk:
            one.cancel()
        await asyncio.gather(*bulk, return_exceptions=True)
