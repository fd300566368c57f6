"""The overhead of serving vLLM by the inference backend, compared with `AsyncLLM` in process.

There are three setups for the same tiny model with random weights, each with its own engine:

- `AsyncLLM` in process, called directly, which is the baseline;
- the inference backend: batcher, batch route, and a stock server;
- a fixed window of 500 ms, then `LLM.generate` for all prompts received, one batch at a time.

The setups alternate, scenario by scenario and round by round, so that other load on the machine
affects them all. A further figure compares 256 concurrent chats through the gateway with the same
chats sent directly to the server. The first and the last setup run in separate processes, which
read names of scenarios and print measurements: `python -m benchmarks.inference SETUP MODEL`.
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
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import aiohttp

from benchmarks.figures import Chart, Figure, Line, Panel
from benchmarks.timing import seconds_of
from benchmarks.tiny_vllm import ENVIRONMENT, direct_session, tiny_vllm
from rhapsody.backends import DragonVllmInferenceBackend

TOKENS = 32
WINDOW_SECONDS = 0.5
SIZES = (1, 4, 16, 64, 256, 1024)
POISSON_RATE, POISSON_SECONDS = 30, 8
GATEWAY_ROUNDS = 5

ENGINE: dict[str, Any] = {"enforce_eager": True, "max_num_seqs": 256, "max_model_len": 1024}

Ask = Callable[[str, int], Awaitable[Any]]
"""Generates a number of tokens for one prompt."""
Measure = Callable[[str], Awaitable[list[float]]]
"""Runs a scenario once and returns seconds."""


def prompt(number: int) -> str:
    return f"What is {number} and what is it good for?"


async def at_once(ask: Ask, number: int) -> list[float]:
    return [await seconds_of(asyncio.gather(*(ask(prompt(i), TOKENS) for i in range(number))))]


async def poisson(ask: Ask) -> list[float]:
    """Return the seconds of each prompt when prompts arrive at random times (a Poisson process)."""
    moments, chance = [0.0], random.Random(1)
    while moments[-1] < POISSON_SECONDS:
        moments.append(moments[-1] + chance.expovariate(POISSON_RATE))

    async def come(number: int, moment: float) -> float:
        await asyncio.sleep(moment)
        return await seconds_of(ask(prompt(number), TOKENS))

    return await asyncio.gather(*(come(i, moment) for i, moment in enumerate(moments)))


async def short_among_long(ask: Ask) -> list[float]:
    """Return the seconds of prompts of 4 tokens while 32 prompts of 400 tokens are running."""
    long = [asyncio.ensure_future(ask(prompt(i), 400)) for i in range(32)]
    await asyncio.sleep(0.1)
    short = [await seconds_of(ask(prompt(number), 4)) for number in range(10)]
    await asyncio.gather(*long)
    return short


SIZE_SCENARIOS = ("lone", *map(str, SIZES[1:]))

SCENARIOS: dict[str, tuple[int, Callable[[Ask], Awaitable[list[float]]]]] = {
    "lone": (12, lambda ask: at_once(ask, 1)),
    "short": (3, short_among_long),
    "poisson": (2, poisson),
    **{f"{n}": (3, lambda ask, n=n: at_once(ask, n)) for n in SIZES[1:]},  # type: ignore[misc]
    "256": (7, lambda ask: at_once(ask, 256)),
}
"""Number of rounds, and the function of one round, by name."""


async def run_named(ask: Ask) -> None:
    """Run the scenarios named on standard input, one after the other."""
    await at_once(ask, 64)
    print(json.dumps("ready"), flush=True)
    while name := (await asyncio.to_thread(sys.stdin.readline)).strip():
        print(json.dumps(await SCENARIOS[name][1](ask)), flush=True)


async def async_llm(model: str) -> None:
    from vllm import AsyncEngineArgs, SamplingParams
    from vllm.sampling_params import RequestOutputKind
    from vllm.v1.engine.async_llm import AsyncLLM

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
        await run_named(ask)
    finally:
        engine.shutdown()


async def window(model: str) -> None:
    from vllm import LLM, SamplingParams

    engine = LLM(model=model, **ENGINE)
    waiting: list[tuple[str, int, asyncio.Future[None]]] = []

    def generate(batch: list[tuple[str, int, asyncio.Future[None]]]) -> None:
        chats = [[{"role": "user", "content": text}] for text, _, _ in batch]
        params = [
            SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True)
            for _, tokens, _ in batch
        ]
        engine.chat(chats, params, use_tqdm=False)

    async def serve() -> None:
        while True:
            await asyncio.sleep(WINDOW_SECONDS)
            batch = list(waiting)
            waiting.clear()
            if batch:
                await asyncio.to_thread(generate, batch)
            for _, _, done in batch:
                done.set_result(None)

    async def ask(text: str, tokens: int) -> None:
        done = asyncio.get_running_loop().create_future()
        waiting.append((text, tokens, done))
        await done

    serving = asyncio.ensure_future(serve())
    try:
        await run_named(ask)
    finally:
        serving.cancel()


@contextlib.asynccontextmanager
async def in_process(setup: str, model: str) -> AsyncIterator[Measure]:
    """Run a setup in its own process."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "benchmarks.inference", setup, model),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        limit=2**20,
    )
    assert process.stdin is not None
    assert process.stdout is not None

    async def receive() -> Any:
        assert process.stdout is not None
        while line := await process.stdout.readline():
            with contextlib.suppress(ValueError):  # vLLM prints other lines too
                return json.loads(line)
        raise RuntimeError(f"{setup} exited with code {await process.wait()}")

    async def measure_one(scenario: str) -> list[float]:
        assert process.stdin is not None
        process.stdin.write(f"{scenario}\n".encode())
        seconds: list[float] = await receive()
        return seconds

    try:
        await receive()
        yield measure_one
    finally:
        process.stdin.close()
        await process.wait()


async def cpu_per_thousand(backend: DragonVllmInferenceBackend) -> float:
    before = resource.getrusage(resource.RUSAGE_SELF)
    await backend.generate([prompt(i) for i in range(1000)], max_tokens=8, temperature=0)
    after = resource.getrusage(resource.RUSAGE_SELF)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


async def chats(session: aiohttp.ClientSession, model: str) -> float:
    async def one(number: int) -> None:
        body = {
            "model": model,
            "messages": [{"role": "user", "content": prompt(number)}],
            **{"max_tokens": TOKENS, "temperature": 0, "ignore_eos": True},
        }
        async with session.post("/v1/chat/completions", json=body) as response:
            assert response.status == 200, await response.text()
            await response.read()

    return await seconds_of(asyncio.gather(*(one(i) for i in range(256))))


async def gateway(backend: DragonVllmInferenceBackend) -> Figure:
    """Compare 256 concurrent chats through the gateway with chats sent directly to the server."""
    async with (
        aiohttp.ClientSession(
            backend.get_endpoint(), connector=aiohttp.TCPConnector(limit=0)
        ) as through,
        direct_session(backend) as direct,
    ):
        sessions = (through, direct)
        for session in sessions:
            await chats(session, backend.model_name)
        rounds = [
            [await chats(session, backend.model_name) for session in sessions]
            for _ in range(GATEWAY_ROUNDS)
        ]
    ours, base = zip(*rounds, strict=True)
    return Figure(
        what="256 concurrent chats through the gateway",
        over="vllm serve directly",
        ours=ours,
        base=base,
        at_most=1.2,
    )


OURS, BASE = "the inference backend", "AsyncLLM in process"
WINDOW = "a window of 500 ms and LLM.generate"


def p99(seconds: list[float]) -> float:
    return statistics.quantiles(seconds, n=100)[98]


QUANTITIES: dict[str, tuple[str, Callable[[list[float]], float], float | None]] = {
    "a single prompt": ("lone", statistics.median, 1.15),
    "256 prompts at once": ("256", statistics.median, 1.25),
    f"{POISSON_RATE} prompts a second at random times, p50": ("poisson", statistics.median, 1.3),
    f"{POISSON_RATE} prompts a second at random times, p99": ("poisson", p99, 1.5),
    "short prompts among long ones, p50": ("short", statistics.median, 1.5),
    **{f"{n:,} prompts at once": (f"{n}", statistics.median, None) for n in SIZES[1:] if n != 256},
}

Found = dict[tuple[str, str], list[list[float]]]
"""Seconds by scenario and setup, round by round."""


async def alternate(setups: dict[str, Measure]) -> Found:
    found: Found = {}
    for scenario, (rounds, _) in SCENARIOS.items():
        for _ in range(rounds):
            for setup, measure_one in setups.items():
                found.setdefault((scenario, setup), []).append(await measure_one(scenario))
    return found


def figures_of(found: Found) -> list[Figure]:
    figures = []
    for what, (scenario, summary, aim) in QUANTITIES.items():
        ours, base, window = (
            [summary(seconds) for seconds in found[scenario, setup]]
            for setup in (OURS, BASE, WINDOW)
        )
        figures += [
            Figure(what=what, over=BASE, ours=ours, base=base, at_most=aim),
            Figure(what=what, over=WINDOW, ours=ours, base=window),
        ]
    return figures


def chart_of(found: Found) -> Chart:
    """Draw milliseconds per prompt over the number of concurrent prompts."""

    def line(setup: str) -> Line:
        seconds = [
            statistics.median(one for [one] in found[scenario, setup])
            for scenario in SIZE_SCENARIOS
        ]
        costs = [1000 * s / size for s, size in zip(seconds, SIZES, strict=True)]
        return Line(label=setup, x=list(SIZES), y=costs)

    panel = Panel(
        title=f"{TOKENS} tokens per prompt, vLLM on the CPU",
        x_label="concurrent prompts",
        y_label="ms per prompt",
        lines=[line(setup) for setup in (OURS, BASE, WINDOW)],
        log_y=True,
    )
    return Chart(name="batch-cost", title="Time per prompt in a batch", panels=[panel])


async def measure() -> list[Figure | Chart]:
    """Return figures of all scenarios and of the gateway."""
    os.environ.update(ENVIRONMENT)
    async with contextlib.AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="rhapsody-")))
        backend = await stack.enter_async_context(tiny_vllm(folder, ENGINE))
        model = backend.model_name

        async def ask(text: str, tokens: int) -> None:
            await backend.generate(text, temperature=0, max_tokens=tokens, ignore_eos=True)

        async def ours(scenario: str) -> list[float]:
            return await SCENARIOS[scenario][1](ask)

        await at_once(ask, 64)
        through = await gateway(backend)
        cpu = await cpu_per_thousand(backend)
        found = await alternate(
            {
                BASE: await stack.enter_async_context(in_process("async_llm", model)),
                OURS: ours,
                WINDOW: await stack.enter_async_context(in_process("window", model)),
            }
        )
    return [
        *figures_of(found),
        through,
        Figure(what="CPU time of the backend's process for 1,000 prompts", ours=[cpu]),
        chart_of(found),
    ]


def main(arguments: Sequence[str]) -> None:
    setup, model = arguments
    asyncio.run({"async_llm": async_llm, "window": window}[setup](model))


if __name__ == "__main__":
    main(sys.argv[1:])
