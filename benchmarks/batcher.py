"""The overhead of the inference backend over a request to a model server's batch route.

The same is measured for a fixed window of 500 ms. Both servers run the embedded model, on Unix
sockets.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp

from benchmarks.figures import Figure
from benchmarks.timing import seconds_of
from rhapsody.backends import DragonVllmInferenceBackend

ROUNDS = 7
SIZES = (1, 256, 1000)
SAMPLING: dict[str, Any] = {"max_tokens": 32, "ignore_eos": True, "temperature": 0}
WINDOW_SECONDS = 0.5

Post = Callable[[list[str]], Awaitable[int]]


@contextlib.asynccontextmanager
async def server() -> AsyncIterator[Post]:
    """Run a separate model server; yield a function that posts prompts and counts the responses."""
    with tempfile.TemporaryDirectory(prefix="rhapsody-") as folder:
        path = Path(folder) / "server.sock"
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "rhapsody.inference.embedded", "--model", "tiny"),
            *("--uds", str(path)),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            env={**os.environ, "RHAPSODY_REPLICA_KEY": "key"},
        )
        assert process.stdout is not None
        await process.stdout.readline()
        session = aiohttp.ClientSession(
            connector=aiohttp.UnixConnector(str(path)), headers={"X-Rhapsody-Key": "key"}
        )

        async def post(prompts: list[str]) -> int:
            bodies = [
                {"id": str(i), "prompt": text, "sampling": SAMPLING}
                for i, text in enumerate(prompts)
            ]
            async with session.post(
                "http://server/rhapsody/batch", json={"prompts": bodies}
            ) as response:
                lines = [json.loads(line) async for line in response.content]
            return sum(line["type"] == "done" for line in lines)

        try:
            yield post
        finally:
            await session.close()
            process.terminate()
            await process.wait()


async def compare(
    number: int, backend: DragonVllmInferenceBackend, post: Post
) -> tuple[list[float], ...]:
    """Return the seconds of the backend, of the server alone, and of a window before the server."""
    prompts = [f"What is {i} and what is it good for?" for i in range(number)]

    async def ours() -> None:
        assert len(await backend.generate(prompts, **SAMPLING)) == number

    async def direct() -> None:
        assert await post(prompts) == number

    async def window() -> None:
        await asyncio.sleep(WINDOW_SECONDS)
        await direct()

    rounds = [
        [await seconds_of(ours()), await seconds_of(direct()), await seconds_of(window())]
        for _ in range(ROUNDS if number > 1 else 3 * ROUNDS)
    ]
    return tuple(map(list, zip(*rounds, strict=True)))


async def measure() -> list[Figure]:
    """Return figures for several numbers of concurrent prompts."""
    figures = []
    backend = DragonVllmInferenceBackend(
        None, "tiny", engine="embedded", launcher="local", use_service=False
    )
    async with backend, server() as post:
        await compare(8, backend, post)  # warm-up: opens the connections
        for number in SIZES:
            ours, direct, window = await compare(number, backend, post)
            what = "a single prompt" if number == 1 else f"{number:,} prompts at once"
            figures += [
                Figure(what=what, over="the server's batch route alone", ours=ours, base=direct),
                Figure(what=what, over="a fixed window of 500 ms", ours=ours, base=window),
            ]
    return figures
