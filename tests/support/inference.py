"""Inference backends on the embedded model, and looks inside while they run."""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rhapsody.backends import DragonVllmInferenceBackend
from rhapsody.backends.service import service_loop

MODEL = "tiny"
ENDLESS = {"max_tokens": 1500, "ignore_eos": True}
"""Sampling parameters of an answer that takes seconds on a server with a delay between tokens."""


def embedded(**options: Any) -> DragonVllmInferenceBackend:
    """Make a backend on the embedded model, in engine mode unless told otherwise."""
    defaults = {
        "config_file": None,
        "model_name": MODEL,
        "engine": "embedded",
        "launcher": "local",
        "host": "127.0.0.1",
        "port": 0,
        "use_service": False,
    }
    return DragonVllmInferenceBackend(**{**defaults, **options})


def slow(folder: Path, delay_ms: float = 20, **keys: int) -> str:
    """Write a configuration in which every token takes its time."""
    path = folder / "slow.yaml"
    lines = [f"{name}: {value}" for name, value in {**keys, "token-delay-ms": delay_ms}.items()]
    path.write_text("\n".join(lines))
    return str(path)


async def until(condition: Callable[[], Any], seconds: float = 15) -> None:
    """Wait for what nobody reports: the state of another process."""
    end = time.monotonic() + seconds
    while True:
        found = condition()
        if asyncio.iscoroutine(found):
            found = await found
        if found:
            return
        if time.monotonic() > end:
            raise AssertionError(f"it did not come to that within {seconds} s")
        await asyncio.sleep(0.01)


async def at_work(backend: DragonVllmInferenceBackend) -> int:
    """Count the prompts that the servers themselves say they work on, or have waiting."""
    pool = backend._service.pool if backend._service is not None else None
    replicas = pool.ready if pool is not None else []

    async def ask() -> list[str | None]:
        return await asyncio.gather(*(replica.metrics() for replica in replicas))

    texts = await service_loop().run(ask())
    return sum(
        int(float(line.split()[1]))
        for text in texts
        for line in (text or "").splitlines()
        if line.startswith(
            ("rhapsody_embedded_requests_running ", "rhapsody_embedded_requests_waiting ")
        )
    )
