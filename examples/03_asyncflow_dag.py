"""An AsyncFlow graph of three tasks, and a thousand of such workflows at once.

Dependencies are found by themselves: a task that is given another task's future waits for it and
gets its value. `from radical.asyncflow import WorkflowEngine` is the only line to change for the
stock engine, which looks for tasks that are ready instead of being told.

Needs nothing but Rhapsody. Takes 2 seconds.

    python examples/03_asyncflow_dag.py
"""

import asyncio
import statistics
import tempfile
import time

from asyncflow_ext import WorkflowEngine
from rhapsody.backends import ConcurrentExecutionBackend

WORKFLOWS = 1000


async def main() -> None:
    # The engine keeps a folder of its own in its work_dir, the current directory by default.
    with tempfile.TemporaryDirectory() as folder:
        flow = await WorkflowEngine.create(ConcurrentExecutionBackend(), work_dir=folder)

        @flow.function_task
        async def generate(limit):
            return list(range(limit))

        @flow.function_task
        async def keep_even(numbers):
            return [number for number in numbers if number % 2 == 0]

        @flow.function_task
        async def aggregate(numbers, even):
            return {"sum": sum(numbers), "even": len(even)}

        async def run_workflow(number):
            begin = time.perf_counter()
            numbers = generate(1000 + number)
            even = keep_even(numbers)  # waits for `numbers`
            result = await aggregate(numbers, even)  # waits for both
            return result, time.perf_counter() - begin

        begin = time.perf_counter()
        workflows = await asyncio.gather(*map(run_workflow, range(WORKFLOWS)))
        seconds = time.perf_counter() - begin

        for number in (0, 1, WORKFLOWS - 1):
            print(f"Workflow {number}: {workflows[number][0]}")
        took = [duration for _, duration in workflows]
        print(f"Completed {WORKFLOWS} workflows, {3 * WORKFLOWS} tasks, in {seconds:.2f} s:")
        print(f"  {3 * WORKFLOWS / seconds:.0f} tasks per second, all workflows under way at once;")
        print(f"  half of them had ended after {statistics.median(took):.2f} s")
        await flow.shutdown()


if __name__ == "__main__":
    asyncio.run(main())
