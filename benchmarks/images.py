"""Chats with an image of 1 MB on vLLM, through Rhapsody and straight to `vllm serve`.

The model is a tiny BLIP-2 with random weights, which runs without torchvision. The same chats go
through the gateway, are AI tasks of the backend, and go straight to the server, alternately.
"""

from __future__ import annotations

import asyncio
import base64
import io
import json
import os
import random
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp

from benchmarks.figures import Figure
from benchmarks.timing import seconds_of
from benchmarks.tiny_vllm import ENVIRONMENT, direct_session, make_image_model, tiny_vllm

NUMBER = 16
ROUNDS = 7
SIDE = 590
"""Pixels; an image of noise then has 1 MB as a PNG."""

ENGINE = {"enforce_eager": True, "max_num_seqs": 64, "max_model_len": 512}
SAMPLING: dict[str, Any] = {"max_tokens": 8, "temperature": 0}


def chat_of(number: int) -> list[dict[str, Any]]:
    """Return a chat with an image that no other number has."""
    from PIL import Image

    pixels = random.Random(number).randbytes(3 * SIDE * SIDE)
    file = io.BytesIO()
    Image.frombytes("RGB", (SIDE, SIDE), pixels).save(file, "PNG")
    url = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode("ascii")
    parts = [{"type": "text", "text": "What is it?"}]
    return [{"role": "user", "content": [*parts, {"type": "image_url", "image_url": {"url": url}}]}]


async def post_all(http: aiohttp.ClientSession, bodies: list[bytes]) -> None:
    headers = {"Content-Type": "application/json"}

    async def post(body: bytes) -> None:
        async with http.post("/v1/chat/completions", data=body, headers=headers) as response:
            assert response.status == 200, await response.text()
            await response.read()

    await asyncio.gather(*map(post, bodies))


async def measure() -> list[Figure]:
    """Return the figures of the gateway and of AI tasks."""
    os.environ.update(ENVIRONMENT)
    chats = [chat_of(number) for number in range(NUMBER)]
    with tempfile.TemporaryDirectory(prefix="rhapsody-") as folder:
        backend = tiny_vllm(Path(folder), ENGINE, make=make_image_model)
        async with backend, direct_session(backend) as direct:
            bodies = [
                json.dumps({"model": backend.model_name, "messages": chat, **SAMPLING}).encode()
                for chat in chats
            ]
            async with aiohttp.ClientSession(
                backend.get_endpoint(), connector=aiohttp.TCPConnector(limit=0)
            ) as gateway:
                sides: list[Callable[[], Awaitable[Any]]] = [
                    lambda: post_all(direct, bodies),
                    lambda: post_all(gateway, bodies),
                    lambda: backend.generate(chats, **SAMPLING),
                ]
                for side in sides:
                    await side()
                rounds = [[await seconds_of(side()) for side in sides] for _ in range(ROUNDS)]
    base, through, tasks = zip(*rounds, strict=True)
    what, over = f"{NUMBER} chats with an image of 1 MB", "vllm serve directly"
    return [
        Figure(what=f"{what} through the gateway", over=over, ours=through, base=base),
        Figure(what=f"{what} as AI tasks", over=over, ours=tasks, base=base),
    ]
