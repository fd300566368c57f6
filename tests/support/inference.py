"""Inference backends on the embedded model, and the load of their servers."""

import asyncio
from pathlib import Path
from typing import Any

from rhapsody.backends import DragonVllmInferenceBackend
from rhapsody.backends.core.service_loop import service_loop

MODEL = "tiny"
ENDLESS: dict[str, Any] = {"max_tokens": 1500, "ignore_eos": True}
"""Sampling parameters of a response that takes seconds on a server with a token delay."""


def embedded(**options: Any) -> DragonVllmInferenceBackend:
    """Make a backend on the embedded model, by default in engine mode."""
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
    """Write a configuration file with a delay after every token."""
    path = folder / "slow.yaml"
    lines = [f"{name}: {value}" for name, value in {**keys, "token-delay-ms": delay_ms}.items()]
    path.write_text("\n".join(lines))
    return str(path)


async def at_work(backend: DragonVllmInferenceBackend) -> int:
    """Return how many prompts the servers report as running or waiting."""
    pool = backend._service.pool if backend._service is not None else None
    replicas = pool.ready if pool is not None else []

    async def ask() -> list[str | None]:
        return await asyncio.gather(*(replica.connection.metrics() for replica in replicas))

    texts = await service_loop().run(ask())
    return sum(
        int(float(line.split()[1]))
        for text in texts
        for line in (text or "").splitlines()
        if line.startswith(
            ("rhapsody_embedded_requests_running ", "rhapsody_embedded_requests_waiting ")
        )
    )
