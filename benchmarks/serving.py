"""Serving features compared with the same server without them: priority, spares, prefix routing.

The servers run the embedded model, which has no cache of beginnings: prefix routing is measured for
what it costs. `benchmarks.routing` simulates what it gains.
"""

from __future__ import annotations

import asyncio
import os
import signal
import statistics
import tempfile
from pathlib import Path
from typing import Any

import aiohttp

from benchmarks.figures import Figure
from benchmarks.timing import seconds_of
from rhapsody.backends import DragonVllmInferenceBackend

ROUNDS = 5
BULK, URGENT = 400, 20
MANY = 5000
CHAT_SECONDS = 10.0
SAMPLING: dict[str, Any] = {"max_tokens": 16, "ignore_eos": True, "temperature": 0}


def backend(config: Path, **options: Any) -> DragonVllmInferenceBackend:
    """Return a backend on the embedded model."""
    fixed: dict[str, Any] = {"engine": "embedded", "launcher": "local", "use_service": False}
    return DragonVllmInferenceBackend(config, "tiny", **{**fixed, **options})


async def mixed(on: DragonVllmInferenceBackend, priority: int) -> tuple[float, float]:
    """Return the median latency of a few prompts under many, and the time of the many."""
    latencies: list[float] = []

    async def urgent() -> None:
        await asyncio.sleep(0.05)
        sent = [on.generate("hi", priority=priority, **SAMPLING) for _ in range(URGENT)]
        latencies.extend(await asyncio.gather(*map(seconds_of, sent)))

    bulk = seconds_of(on.generate([f"What is {i}?" for i in range(BULK)], **SAMPLING))
    seconds, _ = await asyncio.gather(bulk, urgent())
    return statistics.median(latencies), seconds


async def after_kill(on: DragonVllmInferenceBackend) -> float:
    """Return the time from the death of the serving server to the next response."""
    while any(replica["state"] != "READY" for replica in on.replicas):  # noqa: ASYNC110
        await asyncio.sleep(0.02)  # no event reports it to users
    [serving] = [replica for replica in on.replicas if not replica["spare"]]
    os.kill(serving["pid"], signal.SIGKILL)
    return await seconds_of(on.generate("hi", **SAMPLING))


async def measure() -> list[Figure]:
    """Return the figures."""
    with tempfile.TemporaryDirectory(prefix="rhapsody-") as folder:
        few = Path(folder) / "few.yaml"
        few.write_text("max-num-seqs: 16\n")
        many = Path(folder) / "many.yaml"
        many.write_text("max-num-seqs: 256\n")
        slow = Path(folder) / "slow.yaml"
        slow.write_text("max-num-seqs: 64\ntoken-delay-ms: 10\n")
        return [
            *await priorities(few),
            *await chats(slow),
            await spares(many),
            await routing(many),
        ]


async def priorities(config: Path) -> list[Figure]:
    """Compare urgent prompts with the same prompts without a priority."""
    async with backend(config) as on:
        await mixed(on, 0)  # warm-up
        pairs = [(await mixed(on, 10), await mixed(on, 0)) for _ in range(ROUNDS)]
    urgent, plain = zip(*pairs, strict=True)
    return [
        Figure(
            what=f"{URGENT} urgent prompts under {BULK}",
            over="without priority",
            ours=[latency for latency, _ in urgent],
            base=[latency for latency, _ in plain],
        ),
        Figure(
            what=f"{BULK} prompts that urgent ones overtake",
            over="without priority",
            ours=[seconds for _, seconds in urgent],
            base=[seconds for _, seconds in plain],
        ),
    ]


async def chats(config: Path) -> list[Figure]:
    """Compare chats under many bulk prompts with chats on an idle server, and the bulk prompts."""
    prompts = [f"What is {i}?" for i in range(MANY)]
    on = backend(config, use_service=True, host="127.0.0.1", port=0)
    async with on, aiohttp.ClientSession(on.get_endpoint()) as http:
        # Before any chat, since slots are kept free for chats for a minute after one.
        alone = await seconds_of(on.generate(prompts, **SAMPLING))
        idle = await chats_until(http, asyncio.ensure_future(asyncio.sleep(CHAT_SECONDS)))
        bulk = asyncio.ensure_future(seconds_of(on.generate(prompts, **SAMPLING)))
        loaded = await chats_until(http, bulk)
    return [
        Figure(
            what=f"the 99th percentile of chats under {MANY} prompts",
            over="an idle server",
            ours=[statistics.quantiles(loaded, n=100)[-1]],
            base=[statistics.quantiles(idle, n=100)[-1]],
            at_most=1.5,
        ),
        Figure(
            what=f"{MANY} prompts under chats",
            over="without chats",
            ours=[await bulk],
            base=[alone],
            at_most=1.1,
        ),
    ]


async def chats_until(http: aiohttp.ClientSession, end: asyncio.Future[Any]) -> list[float]:
    """Send chats one after the other, and return their times in seconds."""
    body = {"messages": [{"role": "user", "content": "What is energy?"}], **SAMPLING}

    async def chat() -> None:
        async with http.post("/v1/chat/completions", json=body) as response:
            response.raise_for_status()
            await response.read()

    times: list[float] = []
    while not end.done():
        times.append(await seconds_of(chat()))
    return times


async def spares(config: Path) -> Figure:
    """Compare the death of a server with and without a spare."""
    async with (
        backend(config, spares=1, max_restarts=50) as with_spare,
        backend(config, max_restarts=50) as without,
    ):
        pairs = [(await after_kill(with_spare), await after_kill(without)) for _ in range(ROUNDS)]
    ours, base = zip(*pairs, strict=True)
    what = "the first response after a server was killed, with a spare"
    return Figure(what=what, over="a restart", ours=ours, base=base)


async def routing(config: Path) -> Figure:
    """Compare prompts of which no two begin alike, with and without prefix routing."""
    prompts = [f"{i} " * 800 for i in range(BULK)]
    async with (
        backend(config, num_gpus=2) as on,
        backend(config, num_gpus=2, prefix_routing=False) as off,
    ):
        await on.generate(prompts, **SAMPLING)
        pairs = [
            (
                await seconds_of(on.generate(prompts, **SAMPLING)),
                await seconds_of(off.generate(prompts, **SAMPLING)),
            )
            for _ in range(ROUNDS)
        ]
    ours, base = zip(*pairs, strict=True)
    what = f"{BULK} long prompts that begin differently, on two replicas"
    return Figure(what=what, over="without prefix routing", ours=ours, base=base)
