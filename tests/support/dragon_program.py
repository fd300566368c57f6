"""The program that tests of the Dragon launcher run under `dragon`; it prints lines of JSON."""

import asyncio
import json
import multiprocessing
import os
import signal
import sys
from typing import Any

from rhapsody import AITask, ComputeTask, Session
from rhapsody.backends import DragonExecutionBackendV3, DragonVllmInferenceBackend
from rhapsody.errors import ResourceError
from rhapsody.inference.launchers.dragon import DragonLauncher
from rhapsody.waiting import done_within
from tests.support.inference import embedded
from tests.support.waiting import until


def report(**found: Any) -> None:
    print(json.dumps(found), flush=True)


async def drill(backend: DragonVllmInferenceBackend) -> None:
    """Send prompts, kill a server, send prompts again, and wait until it has been restarted."""
    await backend.initialize()
    first = backend.replicas
    responses = await backend.generate(["What is heat?"] * 50, max_tokens=4)
    os.kill(first[0]["pid"], signal.SIGKILL)
    again = await backend.generate(["What is heat?"] * 50, max_tokens=4)
    await until(lambda: backend.replicas[0]["restarts"] == 1)
    await until(lambda: backend.replicas[0]["state"] == "READY")
    last = backend.replicas
    await backend.shutdown()
    report(
        responses=len(responses) + len(again),
        addresses=[replica["address"] for replica in first],
        nodes=[replica["node"] for replica in first],
        pids=[replica["pid"] for replica in (*first, *last)],
    )


async def local_and_remote() -> None:
    await drill(embedded(num_gpus=2, launcher=None))
    DragonLauncher.__init__.__defaults__ = (True,)  # over the network
    await drill(embedded(num_gpus=2, launcher="dragon"))
    beyond = embedded(launcher="dragon", offset=1)
    try:
        await beyond.initialize()
    except ResourceError as error:
        report(refused=str(error))


async def until_killed() -> None:
    backend = embedded(num_gpus=2, launcher="dragon")
    await backend.initialize()
    report(head=os.getpid(), pids=[replica["pid"] for replica in backend.replicas])
    await done_within(asyncio.Event().wait(), 60)


async def vllm() -> None:
    from tests.support.vllm_servers import vllm_backend

    execution = await DragonExecutionBackendV3(num_workers=4)
    backend = vllm_backend(launcher=None, use_service=True)
    await backend.initialize()
    pids = [replica["pid"] for replica in backend.replicas]
    async with Session([execution, backend]) as session:
        tasks = [AITask(["What is heat?", "Tell me a joke"], max_tokens=5) for _ in range(8)]
        echo = ComputeTask(executable="/usr/bin/echo", arguments=["Hello from Dragon!"])
        await session.submit_tasks([*tasks, echo])
        await asyncio.gather(*tasks, echo)
    responses = sum(len(task.response) for task in tasks)
    report(responses=responses, echo=echo.return_value, pids=pids)


if __name__ == "__main__":
    import dragon  # noqa: F401  # registers the start method

    multiprocessing.set_start_method("dragon")
    asyncio.run(globals()[sys.argv[1]]())
