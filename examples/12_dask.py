"""A Dask cluster: one that the backend starts itself, then one that is there already.

The first part has two worker processes of its own. It makes samples on the workers and leaves them
there (`keep_on_cluster`): later tasks run where the data are, and only a few numbers come home. The
second part gives a `Client` of an existing cluster, and the cluster is still there afterwards. Name
the address of your scheduler to use that one; without it the program plays the cluster's owner too.

Needs Dask (`pip install "rhapsody[dask]"`). Takes 3 seconds.

    python examples/12_dask.py
    python examples/12_dask.py tcp://127.0.0.1:8786
"""

import asyncio
import math
import os
import random
import sys
import tempfile
from contextlib import nullcontext

from asyncflow_ext import WorkflowEngine
from rhapsody import ComputeTask, Session
from rhapsody.backends import DaskExecutionBackend

PARTS, SAMPLES = 8, 50_000


def describe_worker():
    return f"Python {sys.version_info.major}.{sys.version_info.minor} in process {os.getpid()}"


async def a_cluster_of_its_own():
    backend = await DaskExecutionBackend({"n_workers": 2, "threads_per_worker": 1})
    print(f"A cluster of its own; its dashboard: {backend.dashboard_link}")
    with tempfile.TemporaryDirectory() as folder:
        flow = await WorkflowEngine.create(backend=backend, work_dir=folder)

        @flow.function_task
        async def sample(seed, task_description={"keep_on_cluster": True}):  # noqa: B006
            dice = random.Random(seed)
            return [dice.gauss(0, 1) for _ in range(SAMPLES)]

        @flow.function_task
        async def moments(samples):
            return sum(samples), sum(x * x for x in samples), os.getpid()

        @flow.function_task
        async def combine(parts):
            count = SAMPLES * len(parts)
            mean = sum(part[0] for part in parts) / count
            return mean, math.sqrt(sum(part[1] for part in parts) / count - mean**2)

        parts = [moments(sample(seed)) for seed in range(PARTS)]
        mean, spread = await combine(parts)
        workers = {worker for _, _, worker in await asyncio.gather(*parts)}
        print(f"  {PARTS * SAMPLES} samples: mean {mean:.3f}, spread {spread:.3f}")
        print(f"  they were made and summed up on {len(workers)} workers and never came here")
        await flow.shutdown()


async def yours(client):
    async with Session([DaskExecutionBackend(client=client)]) as session:
        function = ComputeTask(function=describe_worker)
        executable = ComputeTask(executable="uname", arguments=["-s"])
        await session.submit_tasks([function, executable])
        await asyncio.gather(function, executable)
        print(f"  a function on {function.return_value}")
        print(f"  an executable on {executable.stdout.strip()}")


def main():
    asyncio.run(a_cluster_of_its_own())
    from distributed import Client, LocalCluster  # the first part has said so if it is missing

    if sys.argv[1:]:
        cluster = nullcontext(sys.argv[1])
    else:
        cluster = LocalCluster(
            processes=False, protocol="tcp://", host="127.0.0.1", dashboard_address=None
        )
    with cluster as address, Client(address) as client:
        print(f"A cluster that is there already, at {client.scheduler.address}")
        asyncio.run(yours(client))
        print(f"  it goes on without us: {len(client.ncores())} worker(s)")


if __name__ == "__main__":
    main()
