"""Runs workloads on one system: `PYTHON program.py SYSTEM SOCKET`.

The program connects to a Unix socket and reads one request per line, such as
`{"kind": "function", "number": 100, "limit": 60}`. Each response has the seconds taken and the
number of calls. Every system has two workers on this machine.
"""

import asyncio
import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any

WORKERS = 2
ARRAY_ITEMS = 12_500_000
"""Items of 8 bytes: 100 MB."""


def add_one(number: int) -> int:
    return number + 1


def make(items: int = ARRAY_ITEMS) -> Any:  # a global variable would not reach Parsl's workers
    import numpy

    return numpy.ones(items)


def double(array: Any) -> Any:
    return array * 2


def total(array: Any) -> float:
    return float(array.sum())


class System:
    """Runs functions; the arguments of `submit` may be handles that it has returned.

    Args:
        submit: Starts a call and returns a handle of its result.
        result: Waits for a result.
    """

    def __init__(self, submit: Callable[..., Any], result: Callable[[Any], Any]) -> None:
        self.submit = submit
        self.result = result

    def function(self, number: int) -> None:
        handles = [self.submit(add_one, n) for n in range(number)]
        assert [self.result(handle) for handle in handles] == list(range(1, number + 1))

    def call(self, number: int) -> None:
        for n in range(number):
            assert self.result(self.submit(add_one, n)) == n + 1

    def chain(self, number: int) -> None:
        handle = self.submit(add_one, 0)
        for _ in range(number - 1):
            handle = self.submit(add_one, handle)
        assert self.result(handle) == number

    def array(self, number: int) -> None:
        for _ in range(number):
            array = self.submit(make)
            for _ in range(2):
                array = self.submit(double, array)
            assert self.result(self.submit(total, array)) == 4 * ARRAY_ITEMS


@contextlib.contextmanager
def executor() -> Iterator[System]:
    """The standard library's pool. A call waits for the results that it needs."""
    with ProcessPoolExecutor(WORKERS) as pool:

        def submit(function: Callable[..., Any], *arguments: Any) -> Any:
            return pool.submit(
                function, *(getattr(a, "result", lambda a=a: a)() for a in arguments)
            )

        yield System(submit, lambda future: future.result())


@contextlib.contextmanager
def dask() -> Iterator[System]:
    from distributed import Client, LocalCluster

    with (
        LocalCluster(
            n_workers=WORKERS,
            threads_per_worker=1,
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",
        ) as cluster,
        Client(cluster) as client,
    ):
        yield System(
            lambda function, *arguments: client.submit(function, *arguments, pure=False),
            lambda future: future.result(),
        )


@contextlib.contextmanager
def ray() -> Iterator[System]:
    import ray

    ray.init(
        num_cpus=WORKERS,
        include_dashboard=False,
        log_to_driver=False,
        _node_ip_address="127.0.0.1",
        _temp_dir=os.environ["TMPDIR"],
    )
    remote = {function: ray.remote(function) for function in (add_one, make, double, total)}
    try:
        yield System(lambda function, *arguments: remote[function].remote(*arguments), ray.get)
    finally:
        ray.shutdown()


@contextlib.contextmanager
def parsl() -> Iterator[System]:
    import parsl
    from parsl.config import Config
    from parsl.executors import HighThroughputExecutor
    from parsl.providers import LocalProvider

    workers = HighThroughputExecutor(
        max_workers_per_node=WORKERS,
        address="127.0.0.1",
        loopback_address="127.0.0.1",
        provider=LocalProvider(init_blocks=1, max_blocks=1),
    )
    config = Config(executors=[workers], strategy="none", run_dir=os.environ["TMPDIR"])
    with parsl.load(config):
        apps = {function: parsl.python_app(function) for function in (add_one, make, double, total)}
        yield System(
            lambda function, *arguments: apps[function](*arguments), lambda future: future.result()
        )


class Processes:
    """Rhapsody's engine on its process pool: the same workloads as coroutines."""

    def __init__(self, flow: Any) -> None:
        self.add_one, self.make, self.double, self.total = (
            flow.function_task(function) for function in _async_functions()
        )

    async def function(self, number: int) -> None:
        results = await asyncio.gather(*[self.add_one(n) for n in range(number)])
        assert results == list(range(1, number + 1))

    async def call(self, number: int) -> None:
        for n in range(number):
            assert await self.add_one(n) == n + 1

    async def chain(self, number: int) -> None:
        future = self.add_one(0)
        for _ in range(number - 1):
            future = self.add_one(future)
        assert await future == number

    async def array(self, number: int) -> None:
        for _ in range(number):
            array = self.make()
            for _ in range(2):
                array = self.double(array)
            assert await self.total(array) == 4 * ARRAY_ITEMS


def _async_functions() -> list[Callable[..., Any]]:
    async def async_add_one(number: int) -> int:
        return add_one(number)

    async def async_make() -> Any:
        return make()

    async def async_double(array: Any) -> Any:
        return double(array)

    async def async_total(array: Any) -> float:
        return total(array)

    return [async_add_one, async_make, async_double, async_total]


async def main(system: str, socket: str) -> None:
    reader, writer = await asyncio.open_unix_connection(socket)
    async with contextlib.AsyncExitStack() as stack:
        if system == "processes":
            from asyncflow_ext import WorkflowEngine
            from rhapsody.backends import ConcurrentExecutionBackend

            backend = ConcurrentExecutionBackend("process", max_workers=WORKERS)
            flow = await stack.enter_async_context(WorkflowEngine.create(backend=backend))
            run = _on_engine(Processes(flow))
        else:
            run = _in_thread(stack.enter_context(globals()[system]()))
        while line := await reader.readline():
            request = json.loads(line)
            began = time.perf_counter()
            await run(request["kind"], request["number"])
            seconds = time.perf_counter() - began
            writer.write(
                json.dumps({"seconds": seconds, "done": request["number"]}).encode() + b"\n"
            )
            await writer.drain()
    writer.close()


def _on_engine(system: Processes) -> Callable[[str, int], Any]:
    return lambda kind, number: getattr(system, kind)(number)


def _in_thread(system: System) -> Callable[[str, int], Any]:
    return lambda kind, number: asyncio.to_thread(getattr(system, kind), number)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
