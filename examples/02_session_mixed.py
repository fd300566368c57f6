"""A Session with AI tasks and compute tasks, submitted together and awaited together.

The concurrent backend runs the compute tasks on this machine, and the inference backend runs the AI
tasks. Needs only Rhapsody: the model is the embedded one, which is not a real model. Takes a
second.

    python examples/02_session_mixed.py
"""

import asyncio

from rhapsody import AITask, ComputeTask, Session
from rhapsody.backends import ConcurrentExecutionBackend, DragonVllmInferenceBackend


def area(width: float, height: float) -> float:
    return width * height


async def main() -> None:
    execution_backend = await ConcurrentExecutionBackend()
    inference_backend = DragonVllmInferenceBackend(
        config_file=None,
        model_name="embedded",
        engine="embedded",
        launcher="local",
        use_service=False,
    )
    await inference_backend.initialize()

    async with Session([execution_backend, inference_backend]) as session:
        tasks = [
            AITask(
                prompt="What is the capital of France?",
                max_tokens=24,
                backend=inference_backend.name,
            ),
            AITask(
                prompt=["Tell me a joke", "What is 2+2?"],
                max_tokens=24,
                backend=inference_backend.name,
            ),
            ComputeTask(
                executable="/bin/echo",
                arguments=["Hello from an executable!"],
                backend=execution_backend.name,
            ),
            # Without `backend=` a task goes to the session's first backend that runs its kind.
            ComputeTask(function=area, args=(3, 4)),
        ]
        await session.submit_tasks(tasks)
        results = await asyncio.gather(*tasks)

        for number, task in enumerate(results, start=1):
            if "prompt" in task:
                print(f"Task {number} [AI]: {task.response}")
            else:
                print(f"Task {number} [Compute]: {task.return_value}")

        print("Tokens of task 1:", tasks[0].usage)
        print("Tasks by state:", session.get_statistics()["tasks"])


if __name__ == "__main__":
    asyncio.run(main())
