"""Simulate, summarise, decide: AI tasks in a workflow, with two models selected by name.

An AI task is an async function that returns a prompt. It gets the values of its dependencies, and
calling it returns a future of the model's response, on which other tasks can depend. Needs nothing
but Rhapsody: both models are the embedded model, which is not a real one. Takes a second.

    python examples/04_ai_task_pipeline.py
"""

import asyncio
import random
import statistics
import tempfile

from asyncflow_ext import WorkflowEngine
from rhapsody import AITask
from rhapsody.backends import ConcurrentExecutionBackend, DragonVllmInferenceBackend


def embedded_model(name: str) -> DragonVllmInferenceBackend:
    return DragonVllmInferenceBackend(
        config_file=None,
        model_name=name,
        engine="embedded",
        launcher="local",
        use_service=False,
        name=name,
    )


async def main() -> None:
    compute = ConcurrentExecutionBackend()
    # Awaiting a backend starts it; gather starts both concurrently.
    small, large = await asyncio.gather(embedded_model("small"), embedded_model("large"))
    with tempfile.TemporaryDirectory() as folder:
        flow = await WorkflowEngine.create(backend=[compute, small, large], work_dir=folder)

        @flow.function_task
        async def simulate(seed):
            chance = random.Random(seed)
            return [chance.gauss(seed, 1.0) for _ in range(1000)]

        @flow.ai_task(backend="small", max_tokens=24, system_prompt="Answer in one sentence.")
        async def summarise(samples):
            mean, spread = statistics.fmean(samples), statistics.stdev(samples)
            return f"The mean is {mean:.2f} and the spread is {spread:.2f}. What does that say?"

        @flow.ai_task(backend="large")
        async def advise(summaries):
            # An AITask instead of a text sets the options of this prompt.
            return AITask(
                prompt=[
                    {"role": "system", "content": "You plan the next experiment."},
                    {"role": "user", "content": "Which next? " + " ".join(summaries)},
                ],
                temperature=0,
                max_tokens=32,
            )

        @flow.function_task
        async def decide(samples, advice):
            best = max(range(len(samples)), key=lambda run: statistics.fmean(samples[run]))
            return f"run {best} goes on; the model said {advice!r}"

        @flow.block
        async def study(seeds):
            samples = [simulate(seed) for seed in seeds]
            summaries = [summarise(sample) for sample in samples]
            for seed, summary in zip(seeds, summaries, strict=True):
                print(f"Summary of run {seed}: {await summary}")
            # Futures may be inside a list: the AI task gets a list of texts.
            return await decide(await asyncio.gather(*samples), advise(summaries))

        print("Decision:", await study([0, 1, 2]))
        for backend in (small, large):
            figures = backend.get_statistics()
            print(f"Model {backend.name}: {figures['batched_prompts']} prompts")
        await flow.shutdown()


if __name__ == "__main__":
    asyncio.run(main())
