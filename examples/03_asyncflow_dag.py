"""An AsyncFlow graph of three tasks, and a thousand of such workflows at once.

Dependencies are detected automatically: a task that gets the future of another task as an argument
waits for it and receives its value. To use the stock engine, which polls for ready tasks, change
only the import: `from radical.asyncflow import WorkflowEngine`.

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
    # The engine creates a folder in its work_dir, which is the current directory by default.
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
        print(f"  {3 * WORKFLOWS / seconds:.0f} tasks per second in concurrent workflows;")
        print(f"  half of the workflows finished within {statistics.median(took):.2f} s")
        await flow.shutdown()


if __name__ == "__main__":
    asyncio.run(main())
