"""Runs tasks on `rhapsody`, whichever of the two packages of that name its Python has.

`PYTHON program.py BACKEND SOCKET`: it connects to a Unix socket, reads a request per line, such as
`{"kind": "function", "number": 100, "limit": 60}`, and answers each with the seconds that it took
and how many tasks were done. What is particular to a package stands in the makers of its backends.
"""

import asyncio
import contextlib
import importlib.metadata
import json
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor

from rhapsody.api import ComputeTask, Session


def nothing():
    return None


def function():
    return ComputeTask(function=nothing)


def executable():
    return ComputeTask(executable="/bin/true")


def is_peer():
    try:
        return bool(importlib.metadata.version("rhapsody-py"))
    except importlib.metadata.PackageNotFoundError:
        return False


async def concurrent_backend():
    from rhapsody.backends import ConcurrentExecutionBackend

    return await ConcurrentExecutionBackend(ThreadPoolExecutor(4))


async def dask_backend():
    from rhapsody.backends import DaskExecutionBackend

    options = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": "127.0.0.1:0"}
    return await DaskExecutionBackend(options)


async def dragon_backend():
    from rhapsody.backends import DragonExecutionBackend

    if is_peer():  # it uses all cores by itself
        return await DragonExecutionBackend()
    return await DragonExecutionBackend(num_workers=os.cpu_count())


async def noop_backend():
    if is_peer():
        from rhapsody.backends.execution import NoopExecutionBackend
    else:
        from rhapsody.backends import NoopExecutionBackend
    return await NoopExecutionBackend()


async def through(session, tasks, limit):
    """Return how many were done, within so many seconds."""
    await session.submit_tasks(tasks)
    with contextlib.suppress(asyncio.TimeoutError, TimeoutError):
        await session.wait_tasks(tasks, timeout=limit)
    return sum(task.get("state") == "DONE" for task in tasks)


async def answer(session, kind, number, limit):
    make = {"function": function, "executable": executable, "making": executable}[kind]
    began = time.perf_counter()
    tasks = [make() for _ in range(number)]
    if kind == "making":
        return {"seconds": time.perf_counter() - began, "done": number}
    began = time.perf_counter()
    done = await through(session, tasks, limit)
    return {"seconds": time.perf_counter() - began, "done": done}


async def main(backend, socket):
    reader, writer = await asyncio.open_unix_connection(socket)
    async with Session(backends=[await globals()[f"{backend}_backend"]()]) as session:
        while line := await reader.readline():
            answered = await answer(session, **json.loads(line))
            writer.write(json.dumps(answered).encode() + b"\n")
            await writer.drain()
    writer.close()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
