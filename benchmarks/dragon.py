"""The Dragon backend compared with Dragon alone, in one runtime; it runs under `dragon`.

The prototype is an upper bound for the backend: workers and queues, messages of 16 calls and 64
calls in flight, without tasks, states or handling of faults.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import pickle
import queue
import statistics
import subprocess
import time
from pathlib import Path
from typing import Any

from benchmarks.figures import Chart, Figure
from benchmarks.timing import Owner, executables, functions, seconds_of, seconds_of_call
from benchmarks.workers import KINDS, WORKER_NUMBERS, nothing, workers_chart
from rhapsody.backends import DragonExecutionBackendV3

FUNCTIONS = 10_000
POOLED = 1_000
EXECUTABLES = 500
LONE = 200
WORKFLOWS = 1_000
ROUNDS = 3
WORKERS = 2
MESSAGE, IN_FLIGHT = 16, 64


def prototype_worker(outbox: Any) -> None:
    from dragon.native.queue import Queue

    inbox = Queue(maxsize=200, block_size=1024)
    outbox.put(inbox)
    while True:
        message = pickle.loads(inbox.get())
        if not message:
            return
        outbox.put(pickle.dumps([(number, call()) for number, call in message]))


class Prototype:
    """A prototype of workers and queues only."""

    def __init__(self) -> None:
        from dragon.native.process import Process
        from dragon.native.queue import Queue

        self.outbox = Queue(maxsize=4096, block_size=1024)
        self.workers = [
            Process(target=prototype_worker, args=(self.outbox,)) for _ in range(WORKERS)
        ]
        for worker in self.workers:
            worker.start()
        self.inboxes = [self.outbox.get() for _ in self.workers]

    def run(self, calls: int) -> None:
        """Run calls and wait for them in this thread."""
        numbers = iter(range(calls))

        def send(inbox: Any) -> int:
            message = [(number, nothing) for number in itertools.islice(numbers, MESSAGE)]
            if message:
                inbox.put(pickle.dumps(message))
            return len(message)

        ended = 0
        for _ in range(IN_FLIGHT // MESSAGE):
            for inbox in self.inboxes:
                send(inbox)
        turn = 0
        while ended < calls:
            messages = [self.outbox.get()]
            try:
                while True:
                    messages.append(self.outbox.get_nowait())
            except queue.Empty:
                pass
            for message in messages:
                ended += len(pickle.loads(message))
                send(self.inboxes[turn % WORKERS])
                turn += 1

    def close(self) -> None:
        for inbox in self.inboxes:
            inbox.put(pickle.dumps(None))
        for worker in self.workers:
            worker.join()


def through_pool(calls: int) -> float:
    from dragon.native.pool import Pool

    pool = Pool(WORKERS)
    try:
        pool.apply_async(nothing).get()
        began = time.perf_counter()
        for result in [pool.apply_async(nothing) for _ in range(calls)]:
            result.get()
        return time.perf_counter() - began
    finally:
        pool.close()
        pool.join()


async def in_asyncio(count: int) -> None:
    async def one() -> None:
        process = await asyncio.create_subprocess_exec(
            "/bin/true", stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        await process.communicate()

    limit = asyncio.Semaphore(8)

    async def bounded() -> None:
        async with limit:
            await one()

    await asyncio.gather(*(bounded() for _ in range(count)))


async def workflows(engine: type, backend: Any) -> None:
    flow = await engine.create(backend=backend)  # type: ignore[attr-defined]

    @flow.function_task
    async def first(number: int) -> int:
        return number

    @flow.function_task
    async def second(number: int) -> int:
        return number * 2

    @flow.function_task
    async def third(left: int, right: int) -> int:
        return left + right

    async def one(number: int) -> int:
        a = first(number)
        return int(await third(a, second(a)))

    results = await asyncio.gather(*(one(number) for number in range(WORKFLOWS)))
    assert results == [3 * number for number in range(WORKFLOWS)]
    await flow.shutdown(skip_execution_backend=True)


def cpu_of(pids: list[int]) -> float:
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


async def idle_share(pids: list[int], seconds: float = 5.0) -> float:
    """Return the percentage of one core that idle processes use."""
    await asyncio.sleep(0.5)
    before = cpu_of(pids)
    await asyncio.sleep(seconds)
    return 100 * (cpu_of(pids) - before) / seconds


async def rates_of_functions(backend: Any) -> list[Figure]:
    """Compare the backend with Dragon's pool and with the prototype, alternately."""
    prototype = await asyncio.to_thread(Prototype)
    owner = Owner(backend)
    await owner.run(functions(1_000, nothing))
    ours, best, pool, lone, lone_best = [], [], [], [], []
    for _ in range(ROUNDS):
        seconds = await asyncio.to_thread(seconds_of_call, lambda: prototype.run(FUNCTIONS))
        best.append(FUNCTIONS / seconds)
        ours.append(FUNCTIONS / await seconds_of(owner.run(functions(FUNCTIONS, nothing))))
        pool.append(POOLED / await asyncio.to_thread(through_pool, POOLED))
        alone, through = [], []
        for _ in range(LONE):
            alone.append(seconds_of_call(lambda: prototype.run(1)))
            through.append(await seconds_of(owner.run(functions(1, nothing))))
        lone_best.append(statistics.median(alone))
        lone.append(statistics.median(through))
    await asyncio.to_thread(prototype.close)
    what = f"{FUNCTIONS:,} no-op functions: rate"
    return [
        Figure(what=what, over="Pool.apply_async", ours=ours, base=pool, unit="/s", at_least=10),
        Figure(what=what, over="the prototype", ours=ours, base=best, unit="/s", at_least=0.6),
        Figure(
            what="a single function, p50",
            over="the prototype",
            ours=lone,
            base=lone_best,
            at_most=3,
        ),
    ]


async def rate_of_executables(backend: Any) -> Figure:
    owner = Owner(backend)
    ours, base = [], []
    for _ in range(ROUNDS):
        ours.append(EXECUTABLES / await seconds_of(owner.run(executables(EXECUTABLES))))
        base.append(EXECUTABLES / await seconds_of(in_asyncio(EXECUTABLES)))
    return Figure(
        what=f"{EXECUTABLES} executables: rate",
        over="asyncio subprocesses",
        ours=ours,
        base=base,
        unit="/s",
        at_least=0.7,
    )


async def seconds_of_workflows() -> Figure:
    from radical.asyncflow import WorkflowEngine

    import asyncflow_ext

    seconds: dict[type, list[float]] = {}
    for engine in (WorkflowEngine, asyncflow_ext.WorkflowEngine) * ROUNDS:
        async with DragonExecutionBackendV3(num_workers=WORKERS) as backend:
            seconds.setdefault(engine, []).append(await seconds_of(workflows(engine, backend)))
    return Figure(
        what=f"{WORKFLOWS:,} workflows of 3 tasks on Rhapsody's engine",
        over="AsyncFlow's engine",
        ours=seconds[asyncflow_ext.WorkflowEngine],
        base=seconds[WorkflowEngine],
    )


async def rates_by_workers() -> Chart:
    """Run no-op, computing and waiting functions on an increasing number of workers."""
    rates: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for number in WORKER_NUMBERS:
        async with DragonExecutionBackendV3(num_workers=number) as backend:
            owner = Owner(backend)
            await owner.run(functions(100 * number, nothing))
            for kind, (function, calls) in KINDS.items():
                seconds = await seconds_of(owner.run(functions(calls, function)))
                rates[kind].append(calls / seconds)
    return workers_chart("dragon-workers", "DragonExecutionBackendV3", WORKER_NUMBERS, rates)


async def measure() -> list[Figure | Chart]:
    """Return figures of functions, executables, workflows and of an idle backend."""
    runtime = [os.getpid(), os.getppid()]
    bare = await idle_share(runtime)
    found: list[Figure | Chart] = []
    async with DragonExecutionBackendV3(num_workers=WORKERS) as backend:
        found += await rates_of_functions(backend)
        found.append(await rate_of_executables(backend))
        share = await idle_share([*runtime, *backend.worker_pids])
        found.append(
            Figure(
                what="an idle backend: share of a core",
                over="the runtime alone",
                ours=[share],
                base=[bare],
                unit="%",
                difference=True,
                at_most=2,
            )
        )
    found.append(await seconds_of_workflows())
    found.append(await rates_by_workers())
    return found
