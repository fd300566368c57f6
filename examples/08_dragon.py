"""Monte Carlo on a Dragon allocation: many small functions, an executable, and a job of four ranks.

The same program uses one laptop or all nodes of a batch job; workers start as tasks arrive, on
every node. The job is MPI-style: four processes that start together and know their ranks; this
program adds up their results. It needs Linux and the Dragon runtime
(`pip install ".[dragon]"`). Takes 10 seconds, mostly to start and stop the runtime.

    dragon examples/08_dragon.py
"""

import asyncio
import os
import random
import time

from rhapsody import ComputeTask, Session
from rhapsody.backends import DragonExecutionBackend

SAMPLES = 20_000
TASKS = 200
RANKS = 4


def count_hits(seed, samples):
    """Count the random points of the unit square that lie in the quarter circle."""
    dice = random.Random(seed)
    return sum(dice.random() ** 2 + dice.random() ** 2 < 1 for _ in range(samples))


def hits_of_rank(samples):
    """Do one rank's share of a job; each rank finds its number in the environment."""
    rank = int(os.environ["RHAPSODY_RANK"])
    return rank, count_hits(1000 + rank, samples)


async def main():
    async with Session([await DragonExecutionBackend()]) as session:
        began = time.perf_counter()
        tasks = [ComputeTask(function=count_hits, args=(n, SAMPLES)) for n in range(TASKS)]
        system = ComputeTask(executable="uname", arguments=["-s"])
        await session.submit_tasks([*tasks, system])
        hits = sum(task.return_value for task in await asyncio.gather(*tasks))
        seconds = time.perf_counter() - began
        print(f"pi is about {4 * hits / (TASKS * SAMPLES):.3f}: {TASKS} tasks in {seconds:.1f} s")
        await system
        print(f"An executable on {system.return_value.strip()}")

        job = ComputeTask(
            function=hits_of_rank,
            args=(SAMPLES,),
            task_backend_specific_kwargs={"ranks": RANKS},
        )
        await session.submit_tasks([job])
        await job
        counts = dict(each["return_value"] for each in job["ranks"])
        for rank, hits in counts.items():
            print(f"Rank {rank} of {RANKS}: pi is about {4 * hits / SAMPLES:.2f}")
        pi = 4 * sum(counts.values()) / (RANKS * SAMPLES)
        print(f"All {RANKS} ranks together: pi is about {pi:.3f}")


if __name__ == "__main__":
    asyncio.run(main())
