"""Run tasks on a Dask cluster: first on the backend's own cluster, then on an existing one.

The first part starts two worker processes. Its tasks create samples on the workers and keep them
there (`keep_on_cluster`). Later tasks run where the data is, and only a few numbers reach this
program. The second part connects to an existing cluster, which still runs afterwards. Pass the
address of your scheduler to use your own cluster; otherwise the program starts one.

Needs Dask (`pip install ".[dask]"`). Takes 3 seconds.

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


async def use_own_cluster():
    backend = await DaskExecutionBackend({"n_workers": 2, "threads_per_worker": 1})
    print(f"The backend's own cluster: {backend.get_statistics()['workers']} workers")
    with tempfile.TemporaryDirectory() as folder:
        flow = await WorkflowEngine.create(backend=backend, work_dir=folder)

        @flow.function_task
        async def sample(seed, task_description={"keep_on_cluster": True}):  # noqa: B006
            generator = random.Random(seed)
            return [generator.gauss(0, 1) for _ in range(SAMPLES)]

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
        print(f"  {len(workers)} workers created and summed them; none was sent to this program")
        await flow.shutdown()


async def use_existing_cluster(client):
    async with Session([DaskExecutionBackend(client=client)]) as session:
        function = ComputeTask(function=describe_worker)
        executable = ComputeTask(executable="uname", arguments=["-s"])
        await session.submit_tasks([function, executable])
        await asyncio.gather(function, executable)
        print(f"  a function on {function.return_value}")
        print(f"  an executable on {executable.stdout.strip()}")


def main():
    asyncio.run(use_own_cluster())
    from distributed import Client, LocalCluster  # the first part raises if it is missing

    if sys.argv[1:]:
        cluster = nullcontext(sys.argv[1])
    else:
        cluster = LocalCluster(
            processes=False, protocol="tcp://", host="127.0.0.1", dashboard_address=None
        )
    with cluster as address, Client(address) as client:
        print(f"An existing cluster at {client.scheduler.address}")
        asyncio.run(use_existing_cluster(client))
        print(f"  it still has {len(client.ncores())} worker(s)")


if __name__ == "__main__":
    main()
