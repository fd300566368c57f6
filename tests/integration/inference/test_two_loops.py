"""The two loops are separate: blocking the caller's loop slows nothing else down."""

import asyncio
import json
import subprocess
import sys
import time
from pathlib import Path
from statistics import quantiles
from typing import Any

import pytest
from radical.asyncflow import WorkflowEngine

from asyncflow_ext import extend
from rhapsody import AITask, ComputeTask, Session
from rhapsody.backends import ConcurrentExecutionBackend
from tests.support.inference import MODEL, embedded, slow
from tests.support.waiting import until

# Sends requests one by one until its standard input is closed, then prints the seconds of each.
CLIENT = """
import http.client, json, sys, threading, time
host, model = sys.argv[1:]
over = threading.Event()
threading.Thread(target=lambda: (sys.stdin.read(), over.set()), daemon=True).start()
connection = http.client.HTTPConnection(host, timeout=20)
body = json.dumps({"model": model, "prompt": "Once", "max_tokens": 2})
seconds = []
while not over.is_set():
    began = time.monotonic()
    connection.request("POST", "/v1/completions", body)
    response = connection.getresponse()
    response.read()
    assert response.status == 200
    seconds.append(time.monotonic() - began)
    if len(seconds) == 1:
        print("ready", flush=True)
print(json.dumps(seconds))
"""

BLOCKED_SECONDS = 2.0
FLOOR_SECONDS = 0.25
"""Allowance for pauses of the machine. A client that waits for the caller waits 2 s."""


async def latencies(backend: Any, block: bool) -> list[float]:
    """Return the latencies of an HTTP client while 200 prompts are in flight.

    Args:
        backend: The backend, in server mode.
        block: Block this loop meanwhile.
    """
    host = backend.get_endpoint().removeprefix("http://")
    generating = asyncio.create_task(
        backend.generate(["hi"] * 200, max_tokens=100, ignore_eos=True)
    )
    await until(lambda: backend.get_statistics()["pending_prompts"] >= 200)
    client = subprocess.Popen(
        [sys.executable, "-c", CLIENT, host, MODEL],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with client:
        assert client.stdout is not None
        assert await asyncio.to_thread(client.stdout.readline) == "ready\n"
        if block:
            time.sleep(BLOCKED_SECONDS)  # noqa: ASYNC251 - blocks on purpose
        else:
            await asyncio.sleep(BLOCKED_SECONDS)
        output, _ = client.communicate(timeout=30)
    assert len(await generating) == 200
    measured: list[float] = json.loads(output)
    return measured


def p99(seconds: list[float]) -> float:
    return quantiles(seconds, n=100)[98]


async def test_blocked_caller_does_not_slow_http_clients(start: Any, tmp_path: Path) -> None:
    backend = await start(use_service=True, config_file=slow(tmp_path, 10, **{"max-num-seqs": 512}))
    for last in (False, True):
        unblocked = await latencies(backend, block=False)
        blocked = await latencies(backend, block=True)
        assert min(len(unblocked), len(blocked)) > 10
        if p99(blocked) <= max(2 * p99(unblocked), FLOOR_SECONDS):
            return
        if last:
            pytest.fail(f"p99 {p99(blocked):.3f} s blocked, {p99(unblocked):.3f} s unblocked")


async def test_prompts_finish_while_the_caller_is_blocked(start: Any, tmp_path: Path) -> None:
    backend = await start(config_file=slow(tmp_path, 1))
    generating = asyncio.create_task(backend.generate(["hi"] * 20, max_tokens=20))
    await until(lambda: backend.get_statistics()["pending_prompts"] == 20)
    time.sleep(1.5)  # noqa: ASYNC251 - blocks on purpose
    assert backend.get_statistics()["pending_prompts"] == 0
    assert len(await generating) == 20


@pytest.mark.asyncflow
async def test_session_and_engine_side_by_side(tmp_path: Path) -> None:
    flow = extend(
        await WorkflowEngine.create(
            backend=[ConcurrentExecutionBackend(name="theirs"), embedded(name="their_model")]
        )
    )

    @flow.function_task
    async def double(number: int) -> int:
        return 2 * number

    @flow.ai_task(max_tokens=4)
    async def ask(number: int) -> str:
        return f"What is {number}?"

    backends = [ConcurrentExecutionBackend(name="ours"), embedded(name="our_model")]
    async with Session(backends, work_dir=tmp_path) as session:
        tasks: list[AITask | ComputeTask] = [AITask(prompt=f"{i}", max_tokens=4) for i in range(10)]
        tasks += [ComputeTask(function=abs, args=(-i,)) for i in range(10)]
        await session.submit_tasks(tasks)
        results = await asyncio.wait_for(
            asyncio.gather(*(ask(double(i)) for i in range(10)), *tasks), 40
        )
    await flow.shutdown()
    assert all(isinstance(result, str) for result in results[:10])
    assert [task.return_value for task in results[20:]] == list(range(10))
