"""A chat in the terminal: the answer appears token by token while the model writes it.

Every request contains the whole conversation. Ctrl-C ends an answer early; at the prompt Ctrl-C,
Ctrl-D and /quit end the chat. If standard input is not a terminal, its lines are the messages, or a
few built-in messages if it is empty. The embedded model answers, slowed down to the speed of a real
model (`token-delay-ms`); it is not a real model.

Needs only Rhapsody. Takes 5 seconds without a terminal.

    python examples/13_chat.py
    echo "Tell me a joke" | python examples/13_chat.py
"""

import asyncio
import sys
import tempfile
from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path

from rich.console import Console

from rhapsody.api import PromptError
from rhapsody.backends import DragonVllmInferenceBackend

INDENT = len("model  ")
BUILT_IN = ["What is energy?", "Tell me a joke", "Why is the sky blue?"]
console = Console(highlight=False)


def messages() -> Iterator[str]:
    """Yield the messages typed at the terminal, or the lines of standard input."""
    if sys.stdin.isatty():
        while True:
            yield console.input("\n[bold cyan]you[/]    ").strip()
    for line in list(sys.stdin) or BUILT_IN:
        console.print(f"\n[bold cyan]you[/]    {line.strip()}")
        yield line.strip()


async def answer(model: DragonVllmInferenceBackend, conversation: list[dict[str, str]]) -> None:
    """Print the answer while it arrives, and add the received text to the conversation."""
    text, column = "", INDENT
    console.print("[bold magenta]model[/]  ", end="")
    try:
        async with aclosing(model.stream(conversation, max_tokens=48)) as pieces:
            async for piece in pieces:
                text += piece
                if column + len(piece) >= console.width:
                    console.print("\n" + " " * INDENT, end="")
                    column, piece = INDENT, piece.lstrip()
                console.print(piece, end="", markup=False, soft_wrap=True)
                column += len(piece)
    finally:
        console.print()
        conversation.append({"role": "assistant", "content": text})


def chat(model: DragonVllmInferenceBackend) -> None:
    conversation: list[dict[str, str]] = []
    for message in messages():
        if message == "/quit":
            return
        if not message:
            continue
        conversation.append({"role": "user", "content": message})
        try:
            asyncio.run(answer(model, conversation))
        except PromptError as error:
            console.print(f"The model cannot answer: {error}. Forgetting what was said.")
            conversation.clear()
        except KeyboardInterrupt:
            console.print("[dim](cut short)[/]")


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder, "config.yaml")
        config.write_text("token-delay-ms: 30")
        model = DragonVllmInferenceBackend(
            config, "embedded", engine="embedded", launcher="local", use_service=False
        )
        # The model is not tied to an event loop: it runs from the first answer to the last.
        try:
            asyncio.run(model.initialize())
            print("The embedded model, which is not a real model. /quit ends the chat.")
            chat(model)
        except (EOFError, KeyboardInterrupt):
            console.print()
        finally:
            asyncio.run(model.shutdown())
        print("\nThe model is shut down.")


if __name__ == "__main__":
    main()
