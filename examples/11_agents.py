"""Agents with tools: they use a served model over HTTP, and their tools are workflow tasks.

Three agents run concurrently, each with its own question and the `openai` client. In each turn
the model selects a tool and a number; vLLM restricts its output to the JSON schema of `Call`. The
program runs the tool, which is a function or an executable, and returns the result to the model. At
the end the model answers in its own words.

Needs vLLM (`pip install ".[vllm-dragon]"`, on a machine without a GPU see docs/vllm.md) and
`pip install openai`. Without an argument it creates a tiny model with random weights, which runs on
the CPU: the calls and their results are real, but the choices are random and the answers are noise.
Pass the name of a real model to run it on a GPU. Takes a minute, mostly to start vLLM.

    python examples/11_agents.py
    python examples/11_agents.py Qwen/Qwen2.5-7B-Instruct
"""

import asyncio
import math
import os
import sys
import tempfile
import textwrap
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, Field

try:
    from openai import AsyncOpenAI
except ImportError:
    sys.exit(f"This example needs the openai package: {sys.executable} -m pip install openai")

from asyncflow_ext import WorkflowEngine
from rhapsody.backends import ConcurrentExecutionBackend, DragonVllmInferenceBackend
from rhapsody.testing.tiny_llama import make_tiny_llama

QUESTIONS = (
    "A pendulum is 250 cm long. How long does it take to swing there and back?",
    "Is 1001 a prime number?",
    "Which takes longer: a swing of a pendulum of 1 m, or two swings of one of 20 cm?",
)
TOOLS = """You have two tools, each of which takes one number:
period: seconds that a pendulum of so many cm takes to swing there and back
factor: the prime factors of the number
Answer with JSON, such as {"tool": "factor", "number": 12}."""
TURNS = 2
CONFIG = """
enforce-eager: true
structured-outputs-config: {backend: xgrammar, disable_any_whitespace: true}
"""


class Call(BaseModel):
    """A tool and its argument, selected by the model."""

    tool: Literal["period", "factor"]
    number: int = Field(ge=1, le=10_000)


async def agent(name, question, client, model, tools):
    """Use tools for some turns, then answer."""
    messages = [{"role": "system", "content": TOOLS}, {"role": "user", "content": question}]
    ask = {"model": model, "messages": messages, "max_tokens": 64}
    for _ in range(TURNS):
        reply = await client.chat.completions.parse(response_format=Call, **ask)
        call = reply.choices[0].message.parsed
        result = str(await tools[call.tool](call.number)).strip()
        print(f"{name} calls {call.tool}({call.number}): {result}")
        messages.append({"role": "assistant", "content": call.model_dump_json()})
        messages.append({"role": "user", "content": f"The result is {result}"})
    messages.append({"role": "user", "content": f"Now answer in one sentence: {question}"})
    reply = await client.chat.completions.create(**ask)
    words = f"and says: {reply.choices[0].message.content!r}"
    return f"{name} was asked: {question}\n{textwrap.indent(textwrap.fill(words, 76), '  ')}"


def serve(folder: str) -> DragonVllmInferenceBackend:
    config = Path(folder, "config.yaml")
    config.write_text(CONFIG)
    own = sys.argv[1:]
    # GiB; by default vLLM on a CPU reserves most of the machine's memory.
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    return DragonVllmInferenceBackend(
        config_file=config,
        model_name=own[0] if own else str(make_tiny_llama(Path(folder, "tiny-llama"))),
        num_gpus=1 if own else 0,
        launcher="local",
        host="127.0.0.1",
        port=0,
    )


async def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        backend = await serve(folder)  # awaiting starts it, so that it has an endpoint
        flow = await WorkflowEngine.create([ConcurrentExecutionBackend(), backend], work_dir=folder)

        @flow.function_task
        async def period(length):
            return f"{math.tau * math.sqrt(length / 100 / 9.81):.2f} s"

        @flow.executable_task
        async def factor(number):
            return f"factor {number}"

        endpoint, tools = backend.get_endpoint(), {"period": period, "factor": factor}
        print(f"Serving at {endpoint}")
        async with AsyncOpenAI(base_url=f"{endpoint}/v1", api_key="any") as client:
            agents = (
                agent(f"Agent {number}", question, client, backend.model_name, tools)
                for number, question in enumerate(QUESTIONS, start=1)
            )
            for answer in await asyncio.gather(*agents):
                print(answer)
        await flow.shutdown()


if __name__ == "__main__":
    asyncio.run(main())
