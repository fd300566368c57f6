"""An AsyncFlow graph of three tasks, run many times at once on a Rhapsody backend.

Dependencies are found by themselves: a task that is given another task's future waits for it and
gets its value. Works with the engine of `radical.asyncflow` as it is. Needs nothing but Rhapsody.

    python examples/03_asyncflow_dag.py
"""

import asyncio
import tempfile
import time

from radical.asyncflow import WorkflowEngine

from rhapsody.backends import ConcurrentExecutionBackend

WORKFLOWS = 10


async def main() -> None:
    backend = await ConcurrentExecutionBackend()
    # The engine keeps a folder of its own in its work_dir, the current directory by default.
    with tempfile.TemporaryDirectory() as folder:
        flow = await WorkflowEngine.create(backend=backend, work_dir=folder)

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
            numbers = generate(1000 + number)
            even = keep_even(numbers)  # waits for `numbers`
            result = await aggregate(numbers, even)  # waits for both
            print(f"Workflow {number}: {result}")
            return result

        begin = time.perf_counter()
        results = await asyncio.gather(*(run_workflow(number) for number in range(WORKFLOWS)))
        seconds = time.perf_counter() - begin
        print(f"Completed {len(results)} workflows, {3 * len(results)} tasks, in {seconds:.2f} s")

        await flow.shutdown()


if __name__ == "__main__":
    asyncio.run(main())
