"""The Dragon backend against Dragon alone, in one runtime: run it by `dragon benchmarks/dragon.py`.

`python -m benchmarks dragon` does that. The prototype is what the backend could at best be: workers
and queues, messages of 16 calls and 64 in flight, with neither tasks nor states nor faults.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import pickle
import queue
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

FUNCTIONS = 10_000
POOLED = 1_000
EXECUTABLES = 500
LONE = 200
WORKFLOWS = 1_000
ROUNDS = 3
WORKERS = 2
MESSAGE, IN_FLIGHT = 16, 64

Row = tuple[str, str, str]


def nothing() -> None:
    pass


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
    """Workers and queues, and nothing else."""

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
        """Run calls to their ends, in the thread that waits for them."""
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


class Owner:
    """Hands dicts to a backend, as AsyncFlow does, and waits for the last of them."""

    def __init__(self, backend: Any) -> None:
        self.backend = backend
        self.left = 0
        self.ended = asyncio.Event()
        backend.register_callback(self.callback)

    def callback(self, task: Any, state: str) -> None:
        if state == "RUNNING":
            return
        assert state == "DONE", task
        self.left -= 1
        if not self.left:
            self.ended.set()

    async def run(self, tasks: list[dict[str, Any]]) -> None:
        self.left = len(tasks)
        self.ended.clear()
        await self.backend.submit_tasks(tasks)
        await self.ended.wait()


def functions(count: int) -> list[dict[str, Any]]:
    return [{"uid": f"task.{n:06}", "function": nothing} for n in range(count)]


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

    @flow.function_task  # type: ignore[untyped-decorator]
    async def first(number: int) -> int:
        return number

    @flow.function_task  # type: ignore[untyped-decorator]
    async def second(number: int) -> int:
        return number * 2

    @flow.function_task  # type: ignore[untyped-decorator]
    async def third(left: int, right: int) -> int:
        return left + right

    async def one(number: int) -> int:
        a = first(number)
        return int(await third(a, second(a)))

    results = await asyncio.gather(*(one(number) for number in range(WORKFLOWS)))
    assert results == [3 * number for number in range(WORKFLOWS)]
    await flow.shutdown(skip_execution_backend=True)


async def timed(run: Coroutine[Any, Any, Any]) -> float:
    began = time.perf_counter()
    await run
    return time.perf_counter() - began


def seconds_of(run: Callable[[], Any]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def cpu_of(pids: list[int]) -> float:
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


async def idle_share(pids: list[int], seconds: float = 5.0) -> float:
    """Percent of one core that processes take while nothing is to do."""
    await asyncio.sleep(0.5)
    before = cpu_of(pids)
    await asyncio.sleep(seconds)
    return 100 * (cpu_of(pids) - before) / seconds


async def in_runtime() -> list[Row]:
    from radical.asyncflow import WorkflowEngine

    import asyncflow_ext
    from rhapsody.backends import DragonExecutionBackendV3

    runtime = [os.getpid(), os.getppid()]
    bare = await idle_share(runtime)
    prototype = await asyncio.to_thread(Prototype)
    rows: list[Row] = []
    async with DragonExecutionBackendV3(num_workers=WORKERS) as backend:
        owner = Owner(backend)
        await owner.run(functions(1_000))
        ours, theirs, lone, lone_theirs, pooled = [], [], [], [], []
        for _ in range(ROUNDS):
            theirs.append(await asyncio.to_thread(seconds_of, lambda: prototype.run(FUNCTIONS)))
            ours.append(await timed(owner.run(functions(FUNCTIONS))))
            pooled.append(await asyncio.to_thread(through_pool, POOLED))
            for _ in range(LONE):
                lone_theirs.append(seconds_of(lambda: prototype.run(1)))
                lone.append(await timed(owner.run(functions(1))))
        rate, best = (FUNCTIONS / statistics.median(s) for s in (ours, theirs))
        single = POOLED / statistics.median(pooled)
        what = f"{FUNCTIONS:,} no-op functions, rate of the backend over"
        rows.append(
            (f"{what} Pool.apply_async", f"{rate / single:.1f}", f"{rate:,.0f}/s, {single:,.0f}/s")
        )
        rows.append(
            (f"{what} the prototype", f"{rate / best:.2f}", f"{rate:,.0f}/s, {best:,.0f}/s")
        )
        mine, other = (1e3 * statistics.median(s) for s in (lone, lone_theirs))
        rows.append(
            (
                "a lone function, p50 of the backend over the prototype",
                f"{mine / other:.2f}",
                f"{mine:.2f} ms, {other:.2f} ms",
            )
        )
        await asyncio.to_thread(prototype.close)
        ours, theirs = [], []
        for _ in range(ROUNDS):
            tasks = [{"uid": f"task.{n:06}", "executable": "/bin/true"} for n in range(EXECUTABLES)]
            ours.append(await timed(owner.run(tasks)))
            theirs.append(await timed(in_asyncio(EXECUTABLES)))
        rate, best = (EXECUTABLES / statistics.median(s) for s in (ours, theirs))
        rows.append(
            (
                f"{EXECUTABLES} executables, rate of the backend over asyncio subprocesses",
                f"{rate / best:.2f}",
                f"{rate:,.0f}/s, {best:,.0f}/s",
            )
        )
        workers = backend.worker_pids
        share = await idle_share([*runtime, *workers])
        rows.append(
            (
                f"idle backend with {len(workers)} workers less the bare runtime",
                f"{share - bare:+.1f} % of a core",
                f"{share:.1f} %, {bare:.1f} %",
            )
        )
    seconds: dict[type, list[float]] = {}
    for engine in (WorkflowEngine, asyncflow_ext.WorkflowEngine) * 2:
        async with DragonExecutionBackendV3(num_workers=WORKERS) as backend:
            seconds.setdefault(engine, []).append(await timed(workflows(engine, backend)))
    stock, mine = (statistics.median(s) for s in seconds.values())
    rows.append(
        (
            f"{WORKFLOWS:,} workflows of 3 tasks, our engine over AsyncFlow's own",
            f"{mine / stock:.2f}",
            f"{mine:.2f} s, {stock:.2f} s",
        )
    )
    return rows


async def measure() -> list[Row]:
    """Return the rows of the table: what, ratio, how it was taken."""
    command = Path(sys.executable).with_name("dragon")
    process = await asyncio.create_subprocess_exec(
        str(command),
        __file__,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},  # for the workers
    )
    output, _ = await process.communicate()
    lines = [line for line in output.decode().splitlines() if line.startswith("[[")]
    if not lines:
        raise RuntimeError(f"the benchmark did not end well:\n{output.decode()}")
    return [(what, ratio, how) for what, ratio, how in json.loads(lines[-1])]


if __name__ == "__main__":
    # By its full name: in its own folder it would hide the package `dragon`.
    sys.path[0] = str(Path(__file__).parents[1])
    from benchmarks.dragon import in_runtime as run

    print(json.dumps(asyncio.run(run())), flush=True)
