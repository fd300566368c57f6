"""What it costs to serve vLLM as we do, against `AsyncLLM` in the same process.

Four ways to the same tiny model with random weights, one after the other, with the same prompts:

- `AsyncLLM` in process, called directly: the ratio is over this one;
- our backend: batcher, batch route, a stock server;
- a fixed window of 500 ms, then `LLM.generate` for what has gathered, one batch at a time;
- the gateway beside straight HTTP to the same server, 256 chats at once.

It needs vLLM, and some minutes. A part that runs in a process of its own prints lines of JSON:
`python -m benchmarks.inference PART MODEL`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import aiohttp

from rhapsody.backends import DragonVllmInferenceBackend

TOKENS = 32
ROUNDS = 7
WINDOW_SECONDS = 0.5
SIZES = (1, 4, 16, 64, 256, 1024)
POISSON_RATE, POISSON_SECONDS = 30, 10

ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_PLUGINS": "",
}
ENGINE: dict[str, Any] = {"enforce_eager": True, "max_num_seqs": 256, "max_model_len": 1024}

Ask = Callable[[str, int], Awaitable[Any]]
"""Answers one prompt with so many tokens."""


def prompt(number: int) -> str:
    return f"What is {number} and what is it good for?"


async def timed(ask: Ask, number: int, tokens: int = TOKENS) -> float:
    began = time.perf_counter()
    await ask(prompt(number), tokens)
    return time.perf_counter() - began


async def at_once(ask: Ask, number: int) -> float:
    began = time.perf_counter()
    await asyncio.gather(*(ask(prompt(i), TOKENS) for i in range(number)))
    return time.perf_counter() - began


async def poisson(ask: Ask) -> list[float]:
    """Return the seconds that each of the prompts took that came at random moments."""
    moments, chance = [0.0], random.Random(1)
    while moments[-1] < POISSON_SECONDS:
        moments.append(moments[-1] + chance.expovariate(POISSON_RATE))

    async def come(number: int, moment: float) -> float:
        await asyncio.sleep(moment)
        return await timed(ask, number)

    return await asyncio.gather(*(come(i, moment) for i, moment in enumerate(moments)))


async def short_among_long(ask: Ask) -> list[float]:
    """Return the seconds of prompts of 4 tokens while 32 of 400 are being written."""
    long = [asyncio.ensure_future(ask(prompt(i), 400)) for i in range(32)]
    await asyncio.sleep(0.1)
    short = [await timed(ask, number, 4) for number in range(20)]
    await asyncio.gather(*long)
    return short


async def measure_all(ask: Ask) -> dict[str, float]:
    """Measure one way to the model; seconds."""
    await at_once(ask, 64)
    lone = [await timed(ask, i) for i in range(3 * ROUNDS)]
    many = [await at_once(ask, 256) for _ in range(ROUNDS)]
    spread = statistics.quantiles(await poisson(ask), n=100)
    found = {
        "lone": statistics.median(lone),
        "256": statistics.median(many),
        "poisson p50": spread[49],
        "poisson p99": spread[98],
        "short p50": statistics.median(await short_among_long(ask)),
    }
    for size in SIZES:
        took = [await at_once(ask, size) for _ in range(3)]
        found[f"size {size}"] = statistics.median(took) / size
    return found


# -- parts with a process of their own -----------------------------------------------------------


def part_async_llm(model: str) -> None:
    from vllm import AsyncEngineArgs, SamplingParams
    from vllm.sampling_params import RequestOutputKind
    from vllm.v1.engine.async_llm import AsyncLLM

    async def main() -> dict[str, float]:
        engine = AsyncLLM.from_engine_args(AsyncEngineArgs(model=model, **ENGINE))
        tokenizer = engine.get_tokenizer()
        numbers = iter(range(10**9))

        async def ask(text: str, tokens: int) -> None:
            ids = tokenizer.apply_chat_template(
                [{"role": "user", "content": text}], add_generation_prompt=True, return_dict=False
            )
            params = SamplingParams(
                temperature=0,
                max_tokens=tokens,
                ignore_eos=True,
                output_kind=RequestOutputKind.FINAL_ONLY,
            )
            async for _ in engine.generate({"prompt_token_ids": ids}, params, f"r{next(numbers)}"):
                pass

        try:
            return await measure_all(ask)
        finally:
            engine.shutdown()

    print(json.dumps(asyncio.run(main())), flush=True)


def part_window(model: str) -> None:
    from vllm import LLM, SamplingParams

    engine = LLM(model=model, **ENGINE)

    async def main() -> dict[str, float]:
        waiting: list[tuple[str, int, asyncio.Future[None]]] = []

        async def serve() -> None:
            while True:
                await asyncio.sleep(WINDOW_SECONDS)
                batch = list(waiting)
                waiting.clear()
                if batch:
                    await asyncio.to_thread(
                        engine.chat,
                        [[{"role": "user", "content": text}] for text, _, _ in batch],
                        [
                            SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True)
                            for _, tokens, _ in batch
                        ],
                        use_tqdm=False,
                    )
                for _, _, answered in batch:
                    answered.set_result(None)

        async def ask(text: str, tokens: int) -> None:
            answered = asyncio.get_running_loop().create_future()
            waiting.append((text, tokens, answered))
            await answered

        serving = asyncio.ensure_future(serve())
        try:
            return await measure_all(ask)
        finally:
            serving.cancel()

    print(json.dumps(asyncio.run(main())), flush=True)


async def in_process_of_its_own(part: str, model: str) -> dict[str, float]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "benchmarks.inference", part, model),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    output, _ = await process.communicate()
    lines = [line for line in output.splitlines() if line.startswith(b"{")]
    if not lines:
        raise RuntimeError(f"{part} ended with code {process.returncode}")
    found: dict[str, float] = json.loads(lines[-1])
    return found


# -- ours ----------------------------------------------------------------------------------------


async def ours(backend: DragonVllmInferenceBackend) -> dict[str, float]:
    async def ask(text: str, tokens: int) -> None:
        await backend.generate(text, temperature=0, max_tokens=tokens, ignore_eos=True)

    found = await measure_all(ask)
    before = resource.getrusage(resource.RUSAGE_SELF)
    await backend.generate([prompt(i) for i in range(1000)], max_tokens=8, temperature=0)
    after = resource.getrusage(resource.RUSAGE_SELF)
    found["cpu"] = sum(getattr(after, k) - getattr(before, k) for k in ("ru_utime", "ru_stime"))
    return found


async def chats(session: aiohttp.ClientSession, model: str) -> float:
    async def one(number: int) -> None:
        body = {
            "model": model,
            "messages": [{"role": "user", "content": prompt(number)}],
            **{"max_tokens": TOKENS, "temperature": 0, "ignore_eos": True},
        }
        async with session.post("/v1/chat/completions", json=body) as answer:
            assert answer.status == 200, await answer.text()
            await answer.read()

    began = time.perf_counter()
    await asyncio.gather(*(one(i) for i in range(256)))
    return time.perf_counter() - began


async def gateway(backend: DragonVllmInferenceBackend) -> tuple[float, float]:
    """Return the median seconds of 256 chats at once, through the gateway and straight."""
    assert backend._service is not None
    assert backend._service.pool is not None
    [replica] = backend._service.pool.replicas
    path = str(replica.address).removeprefix("unix:")
    key = {"X-Rhapsody-Key": replica._environment["RHAPSODY_REPLICA_KEY"]}
    async with (
        aiohttp.ClientSession(
            backend.get_endpoint(), connector=aiohttp.TCPConnector(limit=0)
        ) as through,
        aiohttp.ClientSession(
            "http://replica", connector=aiohttp.UnixConnector(path, limit=0), headers=key
        ) as straight,
    ):
        await chats(through, backend.model_name)
        await chats(straight, backend.model_name)
        rounds = [
            (await chats(through, backend.model_name), await chats(straight, backend.model_name))
            for _ in range(ROUNDS)
        ]
    return tuple(statistics.median(column) for column in zip(*rounds, strict=True))  # type: ignore[return-value]


def rows_of(found: dict[str, dict[str, float]]) -> list[tuple[str, str, str]]:
    base = found["AsyncLLM"]
    names = {
        "lone": "a lone prompt, p50",
        "256": "256 prompts at once, wall time",
        "poisson p50": f"Poisson {POISSON_RATE}/s, p50",
        "poisson p99": f"Poisson {POISSON_RATE}/s, p99",
        "short p50": "short prompts among long ones, p50",
        **{f"size {size}": f"seconds a prompt, {size:,} at once" for size in SIZES},
    }
    return [
        (
            f"{name}: {way} over AsyncLLM in process",
            f"{measured[key] / base[key]:.2f}",
            f"{measured[key] * 1000:.1f} ms against {base[key] * 1000:.1f} ms",
        )
        for key, name in names.items()
        for way, measured in found.items()
        if way != "AsyncLLM"
    ]


async def measure() -> list[tuple[str, str, str]]:
    """Return the rows of the table: what, ratio, how it was taken."""
    from rhapsody.testing.tiny_llama import make_tiny_llama

    os.environ.update(ENVIRONMENT)
    with tempfile.TemporaryDirectory(prefix="rhapsody-") as folder:
        with contextlib.redirect_stderr(None):
            model = str(make_tiny_llama(Path(folder) / "tiny"))
        config = Path(folder) / "config.yaml"
        config.write_text("\n".join(f"{key}: {json.dumps(value)}" for key, value in ENGINE.items()))
        found = {"AsyncLLM": await in_process_of_its_own("async_llm", model)}
        backend = DragonVllmInferenceBackend(
            config, model, num_gpus=0, launcher="local", host="127.0.0.1", port=0
        )
        async with backend:
            found["our backend"] = await ours(backend)
            through, straight = await gateway(backend)
        found["a window of 500 ms + LLM.generate"] = await in_process_of_its_own("window", model)
    cpu = found["our backend"].pop("cpu")
    return [
        *rows_of(found),
        (
            "256 chats at once: through the gateway over straight to the server",
            f"{through / straight:.2f}",
            f"{through * 1000:.0f} ms against {straight * 1000:.0f} ms",
        ),
        ("CPU seconds of our own process per 1,000 prompts", "", f"{cpu:.2f} s"),
    ]


def main(arguments: Sequence[str]) -> None:
    part, model = arguments
    {"async_llm": part_async_llm, "window": part_window}[part](model)


if __name__ == "__main__":
    main(sys.argv[1:])
