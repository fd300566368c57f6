"""Server mode: the `openai` client, plain and streaming, against a model that Rhapsody serves.

The backend listens on 127.0.0.1 at a free port, and the client runs in an ordinary blocking
program. Needs the `openai` package (`pip install openai`), and prints that if it is missing. The
model is the embedded one, which is not a real model. Takes a second.

    python examples/05_openai_client.py
"""

import asyncio
import sys

try:
    from openai import OpenAI
except ImportError:
    sys.exit(f"This example needs the openai package: {sys.executable} -m pip install openai")

from rhapsody.backends import DragonVllmInferenceBackend


def talk(endpoint: str) -> None:
    """Use the served model as any OpenAI-compatible server is used."""
    with OpenAI(base_url=f"{endpoint}/v1", api_key="any") as client:
        print("Models:", [model.id for model in client.models.list()])

        answer = client.chat.completions.create(
            model="embedded",
            messages=[{"role": "user", "content": "What is the capital of France?"}],
            max_tokens=24,
        )
        print("Answer:", answer.choices[0].message.content)
        print("Tokens:", answer.usage.total_tokens)

        print("Stream: ", end="", flush=True)
        stream = client.chat.completions.create(
            model="embedded",
            messages=[{"role": "user", "content": "What is energy?"}],
            max_tokens=32,
            stream=True,
        )
        for chunk in stream:
            if chunk.choices and chunk.choices[0].delta.content:
                print(chunk.choices[0].delta.content, end="", flush=True)
        print()


async def main() -> None:
    backend = DragonVllmInferenceBackend(
        config_file=None,
        model_name="embedded",
        engine="embedded",
        launcher="local",
        host="127.0.0.1",
        port=0,
    )
    async with backend:
        endpoint = backend.get_endpoint()
        print(f"Serving at {endpoint}")
        # In a thread, because the client blocks. The server does not run on this loop, so it would
        # respond even if the loop were blocked.
        await asyncio.to_thread(talk, endpoint)
    print("The server is gone.")


if __name__ == "__main__":
    asyncio.run(main())
