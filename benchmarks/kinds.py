"""1,000 embeddings and scores by vLLM, and the cost of a prompt through an endpoint backend.

- Embeddings, and scores of pairs, of tiny models with random weights: an AI task of 1,000 texts or
  pairs, compared with the same given to `AsyncLLM.encode` in one process, and with one HTTP request
  to `vllm serve` for each.
- Prompts to a server of the embedded model: 1,000 through the endpoint backend, compared with a
  loop of aiohttp that has the same number of requests under way.

The sides alternate, round by round. The engine in process runs in a process of its own:
`python -m benchmarks.kinds KIND MODEL`.
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
from typing import Any, NamedTuple

import aiohttp

from benchmarks.figures import Figure
from benchmarks.timing import seconds_of
from benchmarks.tiny_vllm import ENVIRONMENT, direct_session, make_reranker, tiny_vllm
from rhapsody import AITask, Session
from rhapsody.backends import DragonVllmInferenceBackend, EndpointInferenceBackend

NUMBER = 1000
ROUNDS = 7
UNDER_WAY = 64
"""Requests under way at a time, the default of the endpoint backend."""

ENGINE: dict[str, Any] = {
    **{"enforce_eager": True, "max_num_seqs": 256, "max_model_len": 1024},
    "runner": "pooling",
}
TEXTS = [f"What is {i} and what is it good for?" for i in range(NUMBER)]
SAMPLING: dict[str, Any] = {"max_tokens": 8, "temperature": 0}


class Kind(NamedTuple):
    """A kind of AI task."""

    noun: str
    prompt: list[Any]
    engine: dict[str, Any]
    task: str
    """What vLLM's engine calls it."""
    path: str
    fields: tuple[str, ...]
    """Names of a text, or of both texts of a pair, in the body of a request to `path`."""


KINDS = {
    "embed": Kind(
        *("embeddings", TEXTS, {**ENGINE, "convert": "embed"}),
        *("embed", "/v1/embeddings", ("input",)),
    ),
    "score": Kind(
        *("scores", list(zip(TEXTS, reversed(TEXTS), strict=True)), ENGINE),
        *("classify", "/score", ("text_1", "text_2")),
    ),
}


def texts_of(item: Any) -> tuple[str, ...]:
    return (item,) if isinstance(item, str) else item


async def encode(name: str, model: str) -> None:
    """Run all texts or pairs in this process whenever a line arrives, and print the seconds."""
    from vllm import AsyncEngineArgs, PoolingParams
    from vllm.v1.engine.async_llm import AsyncLLM

    kind = KINDS[name]
    engine = AsyncLLM.from_engine_args(AsyncEngineArgs(model=model, **kind.engine))
    tokenizer: Any = engine.get_tokenizer()
    numbers = iter(range(10**9))

    async def one(item: Any) -> None:
        prompt = {"prompt_token_ids": tokenizer(*texts_of(item))["input_ids"]}
        params = PoolingParams(task=kind.task)
        async for found in engine.encode(prompt, params, f"r{next(numbers)}"):
            assert len(found.outputs.data) >= 1

    try:
        await asyncio.gather(*map(one, kind.prompt[:64]))
        print(json.dumps("ready"), flush=True)
        while await asyncio.to_thread(sys.stdin.readline):
            print(json.dumps(await seconds_of(asyncio.gather(*map(one, kind.prompt)))), flush=True)
    finally:
        engine.shutdown()


@contextlib.asynccontextmanager
async def engine_in_process(name: str, model: str) -> AsyncIterator[Callable[[], Awaitable[float]]]:
    """Run `encode` in a process; yield a function that returns the seconds of a round."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "benchmarks.kinds", name, model),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    requests, responses = process.stdin, process.stdout

    async def receive() -> Any:
        while line := await responses.readline():
            with contextlib.suppress(ValueError):  # vLLM prints other lines too
                return json.loads(line)
        raise RuntimeError(f"the engine in process exited with code {await process.wait()}")

    async def one_round() -> float:
        requests.write(b"\n")
        seconds: float = await receive()
        return seconds

    try:
        await receive()
        yield one_round
    finally:
        requests.close()
        await process.wait()


async def post_all(http: aiohttp.ClientSession, path: str, bodies: list[dict[str, Any]]) -> None:
    """Post all bodies, `UNDER_WAY` at a time."""
    waiting = iter(bodies)

    async def work() -> None:
        for body in waiting:
            async with http.post(path, json=body) as response:
                assert response.status == 200, await response.text()
                await response.json()

    await asyncio.gather(*(work() for _ in range(UNDER_WAY)))


async def pooling(name: str, folder: Path) -> list[Figure]:
    """Return the figures of a kind."""
    os.environ.update(ENVIRONMENT)
    kind = KINDS[name]
    backend = tiny_vllm(folder, kind.engine, make=make_reranker if name == "score" else None)
    async with contextlib.AsyncExitStack() as stack:
        session = await stack.enter_async_context(Session([backend]))
        await backend.initialize()
        model = backend.model_name
        in_process = await stack.enter_async_context(engine_in_process(name, model))
        http = await stack.enter_async_context(direct_session(backend))
        bodies = [
            {"model": model, **dict(zip(kind.fields, texts_of(item), strict=True))}
            for item in kind.prompt
        ]

        async def task() -> None:
            every = AITask(kind.prompt, kind=name)
            await session.submit_tasks(every)
            await session.wait_tasks(every)
            assert len(every.response) == NUMBER

        await task()
        rounds = [
            [
                await seconds_of(task()),
                await in_process(),
                await seconds_of(post_all(http, kind.path, bodies)),
            ]
            for _ in range(ROUNDS)
        ]
    ours, encoded, posted = zip(*rounds, strict=True)
    what = f"{NUMBER:,} {kind.noun} in one AI task"
    return [
        Figure(what=what, over="AsyncLLM.encode in process", ours=ours, base=encoded, at_most=1.25),
        Figure(what=what, over="a request to vllm serve for each", ours=ours, base=posted),
    ]


async def endpoint() -> Figure:
    server = DragonVllmInferenceBackend(
        None, "tiny", engine="embedded", launcher="local", host="127.0.0.1", port=0, num_gpus=0
    )
    bodies = [
        {"model": "tiny", "messages": [{"role": "user", "content": text}], **SAMPLING}
        for text in TEXTS
    ]
    async with server:
        address = server.get_endpoint()
        ours: list[float] = []
        base: list[float] = []
        async with (
            EndpointInferenceBackend(f"{address}/v1", "tiny", max_concurrency=UNDER_WAY) as backend,
            aiohttp.ClientSession(address) as http,
        ):

            async def through() -> None:
                assert len(await backend.generate(TEXTS, **SAMPLING)) == NUMBER

            for _ in range(ROUNDS):
                ours.append(await seconds_of(through()))
                base.append(await seconds_of(post_all(http, "/v1/chat/completions", bodies)))
    return Figure(
        what=f"{NUMBER:,} prompts through an endpoint backend",
        over="a loop of aiohttp",
        ours=ours,
        base=base,
        at_most=1.2,
    )


async def measure() -> list[Figure]:
    """Return the figures of embeddings, of scores and of the endpoint backend."""
    figures: list[Figure] = []
    for name in KINDS:
        with tempfile.TemporaryDirectory(prefix="rhapsody-") as folder:
            figures += await pooling(name, Path(folder))
    return [*figures, await endpoint()]


if __name__ == "__main__":
    asyncio.run(encode(*sys.argv[1:]))
