"""An agent whose tools are workflow tasks: the model calls them, and gets their results.

The tools are a function on the backend of threads, an executable, and a plain function. The calls
of one turn run at the same time. The embedded model is not a real model: it calls each tool whose
name stands in the question, and repeats what they return.

Needs only Rhapsody. Takes 1 second.

    python examples/14_tools.py
"""

import asyncio
import math
import tempfile

from asyncflow_ext import WorkflowEngine
from rhapsody.backends import ConcurrentExecutionBackend, DragonVllmInferenceBackend

QUESTIONS = (
    "Use period for a length of 2.5, and density of 'iron'.",
    "Use period for a length of 0.25, and date.",
)


def density(material: str) -> str:
    """Look up the density of a material."""
    return {"iron": "7874 kg/m3", "water": "998 kg/m3"}[material]


async def main() -> None:
    model = DragonVllmInferenceBackend(
        None, "embedded", engine="embedded", launcher="local", use_service=False
    )
    with tempfile.TemporaryDirectory() as folder:
        flow = await WorkflowEngine.create(
            backend=[ConcurrentExecutionBackend(), model], work_dir=folder
        )

        @flow.function_task(retries=1)
        async def period(length: float) -> float:
            """Compute the period of a pendulum in seconds.

            Args:
                length: Its length in metres.
            """
            return round(2 * math.pi * math.sqrt(length / 9.81), 3)

        @flow.executable_task
        async def date() -> str:
            """Return today's date."""
            return "date +%Y-%m-%d"

        @flow.ai_task(tools=[period, density, date], max_rounds=4, max_tokens=60, timeout=30)
        async def agent(question: str) -> str:
            return question

        asked = [agent(question) for question in QUESTIONS]
        for question, task in zip(QUESTIONS, asked, strict=True):
            print(f"Question: {question}")
            answer = await task
            for message in task.task["messages"]:
                for call in message.get("tool_calls", ()):
                    function = call["function"]
                    print(f"  calls {function['name']} {function['arguments']}")
                if message["role"] == "tool":
                    print(f"  gets {message['content'].strip()}")
            print(f"Answer: {answer}\n")
        await flow.shutdown()


if __name__ == "__main__":
    asyncio.run(main())
