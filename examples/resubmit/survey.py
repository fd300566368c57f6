"""A survey that takes longer than one job: job.sh starts it again until all its tasks are done.

Usage: survey.py [NUMBER_OF_TASKS] [SECONDS_PER_TASK] [MARGIN]
"""

import asyncio
import sys

from asyncflow_ext import WorkflowEngine
from rhapsody import EXIT_RESUBMIT, WalltimeReached
from rhapsody.backends import ConcurrentExecutionBackend

NUMBER, SECONDS, MARGIN = (float(text) for text in (*sys.argv[1:], "1000", "30", "60")[:3])


async def main() -> int:
    async with WorkflowEngine.create(
        backend=ConcurrentExecutionBackend(max_workers=4),
        journal="survey.journal",
        walltime_margin=MARGIN,
    ) as flow:

        @flow.function_task(expected=SECONDS)
        async def measure(point: int) -> int:
            await asyncio.sleep(SECONDS)
            return point * point

        @flow.function_task
        async def summarize(values: list[int]) -> int:
            return sum(values)

        total = summarize([measure(point) for point in range(int(NUMBER))])
        try:
            print("total:", await total, flush=True)
        except WalltimeReached as error:
            print(error, file=sys.stderr)
            return EXIT_RESUBMIT
    return 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
