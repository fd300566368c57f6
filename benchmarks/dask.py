"""The Dask backend against Dask alone, on one cluster, and against the peer's where it is.

Set RHAPSODY_PEER_PYTHON to the interpreter of an environment that has `rhapsody-py` and
`distributed` to put the same programs to that.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import rhapsody
from rhapsody.backends import DaskExecutionBackend

FUNCTIONS = 10_000
EXECUTABLES = 500
ROUNDS = 3
AIM = 1.25

CLUSTER = {
    "n_workers": 2,
    "threads_per_worker": 1,
    "host": "127.0.0.1",
    "dashboard_address": "127.0.0.1:0",
}

# For both packages alike: prints the median seconds that functions and executables take.
PROGRAM = """
import asyncio, json, statistics, sys, time
from rhapsody.api import ComputeTask, Session
from rhapsody.backends import DaskExecutionBackend

def nothing(number):
    return number

async def timed(session, tasks):
    began = time.perf_counter()
    await session.submit_tasks(tasks)
    await session.wait_tasks(tasks)
    seconds = time.perf_counter() - began
    assert all(task.state == "DONE" for task in tasks)
    return seconds

async def main(cluster, functions, executables, rounds):
    backend = await DaskExecutionBackend(cluster)
    async with Session(backends=[backend]) as session:
        medians = []
        for make, number in (
            (lambda n: ComputeTask(function=nothing, args=(n,)), functions),
            (lambda n: ComputeTask(executable="/bin/true"), executables),
        ):
            seconds = [
                await timed(session, [make(n) for n in range(number)]) for _ in range(rounds)
            ]
            medians.append(statistics.median(seconds))
    print(json.dumps(medians))

if __name__ == "__main__":
    asyncio.run(main(json.loads(sys.argv[1]), *map(int, sys.argv[2:])))
"""


def nothing(number: int) -> int:
    return number


def run_true(_number: int) -> int:
    return subprocess.run(["/bin/true"], capture_output=True, check=True).returncode


async def through_backend(backend: DaskExecutionBackend, tasks: list[dict[str, Any]]) -> float:
    """Submit dicts, as an owner does, and wait for the last result."""
    ended = asyncio.Event()
    left = len(tasks)

    def callback(task: Any, state: str) -> None:
        nonlocal left
        assert state not in ("FAILED", "CANCELED"), task
        left -= state == "DONE"
        if not left:
            ended.set()

    backend.register_callback(callback)
    began = time.perf_counter()
    await backend.submit_tasks(tasks)
    await ended.wait()
    return time.perf_counter() - began


async def alone(run: Callable[[], Any]) -> float:
    began = time.perf_counter()
    await asyncio.to_thread(run)
    return time.perf_counter() - began


async def program(python: str) -> list[float]:
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    if python == sys.executable:  # this very checkout, installed or not
        environment["PYTHONPATH"] = str(Path(rhapsody.__file__).parents[1])
    options = {k: v for k, v in CLUSTER.items() if k != "host"}
    with tempfile.TemporaryDirectory() as folder:
        script = os.path.join(folder, "program.py")
        with open(script, "w") as file:  # noqa: ASYNC230 - nothing else runs meanwhile
            file.write(PROGRAM)
        process = await asyncio.create_subprocess_exec(
            *(python, script, json.dumps(options)),
            *map(str, (FUNCTIONS, EXECUTABLES, 1)),
            stdout=-1,
            cwd=folder,
            env=environment,
        )
        output, _ = await process.communicate()
    return [float(seconds) for seconds in json.loads(output.splitlines()[-1])]


def row(what: str, ours: Sequence[float], theirs: Sequence[float]) -> tuple[str, str, str]:
    mine, other = statistics.median(ours), statistics.median(theirs)
    return what, f"{mine / other:.2f}", f"{mine:.2f} s against {other:.2f} s"


async def measure() -> list[tuple[str, str, str]]:
    """Return the rows of the table: what, ratio, how it was taken."""
    from distributed import Client, LocalCluster

    with LocalCluster(**CLUSTER) as cluster, Client(cluster, set_as_default=False) as client:

        def submit(function: Callable[[int], Any], number: int) -> Any:
            futures = [client.submit(function, n, pure=False) for n in range(number)]
            return client.gather(futures)

        def as_map() -> Any:
            return client.gather(client.map(nothing, range(FUNCTIONS), pure=False))

        async with DaskExecutionBackend(cluster=cluster) as backend:
            seconds: list[tuple[float, ...]] = []
            for _ in range(ROUNDS):
                functions = [
                    {"uid": f"task.{n:06}", "function": nothing, "args": (n,)}
                    for n in range(FUNCTIONS)
                ]
                executables = [
                    {"uid": f"task.{n:06}", "executable": "/bin/true"} for n in range(EXECUTABLES)
                ]
                seconds.append(
                    (
                        await through_backend(backend, functions),
                        await alone(lambda: submit(nothing, FUNCTIONS)),
                        await alone(as_map),
                        await through_backend(backend, executables),
                        await alone(lambda: submit(run_true, EXECUTABLES)),
                    )
                )
    ours, submitted, mapped, run, run_alone = zip(*seconds, strict=True)
    verdict = "within" if statistics.median(ours) <= AIM * statistics.median(submitted) else "ABOVE"
    what = f"{FUNCTIONS:,} no-op functions: the backend over"
    first = row(f"{what} client.submit and gather", ours, submitted)
    rows = [
        (*first[:2], f"{first[2]}, {verdict} the {AIM} aimed at"),
        row(f"{what} client.map and gather", ours, mapped),
        row(
            f"{EXECUTABLES} executables: the backend over client.submit of subprocess.run",
            run,
            run_alone,
        ),
    ]
    peer = os.environ.get("RHAPSODY_PEER_PYTHON")
    if peer:
        both = [await program(python) for python in (sys.executable, peer)]
        for what, mine, theirs in zip(("functions", "executables"), *both, strict=True):
            rows.append(row(f"{what} through a Session, over the peer's", [mine], [theirs]))
    return rows
