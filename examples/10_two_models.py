"""Two models in one workflow: one drafts, the other judges, and a function keeps the best draft.

Each model is a separate backend, and an AI task selects one with `backend=`. The topics run
concurrently, and each step of a topic starts as soon as its inputs are ready. Both backends serve
the embedded model under different names. It is not a real model, so drafts and verdicts are noise.
The drafting model has a high `temperature`, the judging model has temperature 0.

Needs only Rhapsody. Takes 2 seconds.

    python examples/10_two_models.py

Real models have a config_file and GPUs each: see "Where replicas run" in docs/vllm.md. With vLLM,
`response_format=` ensures that a verdict is a number.
"""

import asyncio
import re
import tempfile
import textwrap

from rich.console import Console

from asyncflow_ext import WorkflowEngine
from rhapsody.backends import ConcurrentExecutionBackend, DragonVllmInferenceBackend

TOPICS = ("how a heat pump works", "why ice floats on water", "what a batch of prompts is for")
DRAFTS = 3


def serve(name: str) -> DragonVllmInferenceBackend:
    return DragonVllmInferenceBackend(
        None, "embedded", engine="embedded", launcher="local", use_service=False, name=name
    )


def show(text: str, style: str = "") -> None:
    lines = textwrap.fill(text, 78, initial_indent="  ", subsequent_indent="     ")
    console.print(lines, style=style, markup=False, soft_wrap=True)


console = Console(highlight=False)


async def main() -> None:
    models = [serve("drafter"), serve("judge")]
    backends = [ConcurrentExecutionBackend(), *models]
    with tempfile.TemporaryDirectory() as folder:
        flow = await WorkflowEngine.create(backend=backends, work_dir=folder)

        @flow.ai_task(backend="drafter", n=DRAFTS, temperature=1.2, max_tokens=24)
        async def draft(topic):
            return f"Explain in one sentence {topic}."

        @flow.ai_task(backend="judge", temperature=0, max_tokens=24)
        async def judge(topic, drafts):
            numbered = "\n".join(f"Draft {n}: {text}" for n, text in enumerate(drafts, start=1))
            return f"Which explains best {topic}? Answer with a number.\n{numbered}"

        @flow.function_task
        async def keep(drafts, verdict):
            named = re.match(rf"\W*(?:draft )?([1-{len(drafts)}])\b", verdict, re.I)
            return (int(named[1]), "the judge's") if named else (1, "kept: the judge names none")

        @flow.block
        async def explain(topic):
            drafts = draft(topic)
            verdict = judge(topic, drafts)
            return await asyncio.gather(drafts, verdict, keep(drafts, verdict))

        explained = await asyncio.gather(*map(explain, TOPICS))
        for topic, (drafts, verdict, (number, why)) in zip(TOPICS, explained, strict=True):
            console.print(f"Explain {topic}", style="bold")
            for n, text in enumerate(drafts, start=1):
                show(f"{n}. {text}", "cyan" if n == number else "dim")
            show(f"The judge says: {verdict}")
            show(f"Draft {number} is {why}.")

        for model in models:
            print(f"Model {model.name}: {model.get_statistics()['batched_prompts']} prompts")
        await flow.shutdown()


if __name__ == "__main__":
    asyncio.run(main())
