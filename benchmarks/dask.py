"""The Dask backend compared with Dask alone, on one cluster."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Callable
from typing import Any

import numpy

from benchmarks.figures import Figure
from benchmarks.timing import Owner, executables, functions, seconds_of, seconds_of_call
from rhapsody.backends import DaskExecutionBackend

FUNCTIONS = 10_000
EXECUTABLES = 500
ROUNDS = 3

DOUBLES = 100 * 2**20 // 8
"""Length of an array of 100 MB, which four functions make, change twice, and add up."""

CLUSTER = {
    "n_workers": 2,
    "threads_per_worker": 1,
    "host": "127.0.0.1",
    "dashboard_address": "127.0.0.1:0",
}


def nothing(_number: int = 0) -> None:
    return None


def run_true() -> int:
    return subprocess.run(["/bin/true"], capture_output=True, check=True).returncode


def make() -> Any:
    return numpy.ones(DOUBLES)


def add_one(array: Any) -> Any:
    return array + 1


def total(array: Any) -> float:
    return float(array.sum())


async def pass_array(owner: Owner) -> None:
    """Pass a large array through four functions of the backend."""
    array = await owner.result(make)
    for _ in range(2):
        array = await owner.result(add_one, array)
    assert await owner.result(total, array) == 3 * DOUBLES


async def in_thread(run: Callable[[], Any]) -> float:
    return await asyncio.to_thread(seconds_of_call, run)


async def measure() -> list[Figure]:
    """Return figures of functions and executables."""
    from distributed import Client, LocalCluster

    with LocalCluster(**CLUSTER) as cluster, Client(cluster, set_as_default=False) as client:

        def submit(function: Callable[[], Any], number: int) -> None:
            client.gather([client.submit(function, pure=False) for _ in range(number)])

        def as_map() -> None:
            client.gather(client.map(nothing, range(FUNCTIONS), pure=False))

        def pass_future() -> None:
            futures = [client.submit(make, pure=False)]
            for function in (add_one, add_one, total):
                futures.append(client.submit(function, futures[-1], pure=False))
            assert futures[-1].result() == 3 * DOUBLES

        async with DaskExecutionBackend(cluster=cluster) as backend:
            owner = Owner(backend)
            await owner.run(functions(100, nothing))  # warm-up: workers import everything
            await in_thread(lambda: submit(run_true, 2))

            async def one_round() -> tuple[float, ...]:
                return (
                    await seconds_of(owner.run(functions(FUNCTIONS, nothing))),
                    await in_thread(lambda: submit(nothing, FUNCTIONS)),
                    await in_thread(as_map),
                    await seconds_of(owner.run(executables(EXECUTABLES))),
                    await in_thread(lambda: submit(run_true, EXECUTABLES)),
                    await seconds_of(pass_array(owner)),
                    await in_thread(pass_future),
                )

            rounds = [await one_round() for _ in range(ROUNDS)]
    ours, submitted, mapped, run, run_alone, passed, kept = zip(*rounds, strict=True)
    what = f"{FUNCTIONS:,} no-op functions"
    return [
        Figure(what=what, over="client.submit and gather", ours=ours, base=submitted, at_most=1.25),
        Figure(what=what, over="client.map and gather", ours=ours, base=mapped),
        Figure(
            what=f"{EXECUTABLES} executables",
            over="client.submit of subprocess.run",
            ours=run,
            base=run_alone,
            at_most=1.25,
        ),
        Figure(
            what="100 MB through four functions",
            over="futures that stay on the cluster",
            ours=passed,
            base=kept,
        ),
    ]
