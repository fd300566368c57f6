"""Runs tasks on whichever of the two packages named `rhapsody` its Python has.

`PYTHON program.py BACKEND SOCKET` connects to a Unix socket and reads one request per line, such as
`{"kind": "function", "number": 100, "limit": 60}`. Each response has the seconds taken and the
number of tasks done. Only the functions that create backends differ between the packages.
"""

import asyncio
import contextlib
import importlib.metadata
import json
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from rhapsody.api import ComputeTask, Session


def nothing() -> None:
    return None


def function() -> ComputeTask:
    return ComputeTask(function=nothing)


def executable() -> ComputeTask:
    return ComputeTask(executable="/bin/true")


def is_peer() -> bool:
    try:
        return bool(importlib.metadata.version("rhapsody-py"))
    except importlib.metadata.PackageNotFoundError:
        return False


async def concurrent_backend() -> Any:
    from rhapsody.backends import ConcurrentExecutionBackend

    return await ConcurrentExecutionBackend(ThreadPoolExecutor(4))


async def dask_backend() -> Any:
    from rhapsody.backends import DaskExecutionBackend

    options = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": "127.0.0.1:0"}
    return await DaskExecutionBackend(options)


async def dragon_backend() -> Any:
    from rhapsody.backends import DragonExecutionBackend

    if is_peer():  # it always uses all cores
        return await DragonExecutionBackend()
    return await DragonExecutionBackend(num_workers=os.cpu_count())


async def noop_backend() -> Any:
    if is_peer():
        from rhapsody.backends.execution import NoopExecutionBackend
    else:
        from rhapsody.backends import NoopExecutionBackend
    return await NoopExecutionBackend()


async def through(session: Session, tasks: list[ComputeTask], limit: float) -> int:
    """Return the number of tasks done within the time limit in seconds."""
    await session.submit_tasks(tasks)
    with contextlib.suppress(asyncio.TimeoutError, TimeoutError):
        await session.wait_tasks(tasks, timeout=limit)
    return sum(task.get("state") == "DONE" for task in tasks)


async def respond(session: Session, kind: str, number: int, limit: float) -> dict[str, float]:
    make = {"function": function, "executable": executable, "creating": executable}[kind]
    began = time.perf_counter()
    tasks = [make() for _ in range(number)]
    if kind == "creating":
        return {"seconds": time.perf_counter() - began, "done": number}
    began = time.perf_counter()
    done = await through(session, tasks, limit)
    return {"seconds": time.perf_counter() - began, "done": done}


async def main(backend: str, socket: str) -> None:
    reader, writer = await asyncio.open_unix_connection(socket)
    async with Session(backends=[await globals()[f"{backend}_backend"]()]) as session:
        while line := await reader.readline():
            response = await respond(session, **json.loads(line))
            writer.write(json.dumps(response).encode() + b"\n")
            await writer.drain()
    writer.close()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
