"""A chat in the terminal: the answer appears token by token while the model writes it.

The model is given the conversation so far with every message. Ctrl-C cuts an answer short; at the
prompt it ends the chat, as /quit and Ctrl-D do. Where standard input is no terminal, the messages
are its lines, or a few of the program's own if it is empty. The embedded model answers, slowed down
to the speed of a real one (`token-delay-ms`), which it is not.

Needs nothing but Rhapsody. Takes as long as you like, without a terminal 5 seconds.

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
OURS = ["What is energy?", "Tell me a joke", "Why is the sky blue?"]
console = Console(highlight=False)


def messages() -> Iterator[str]:
    """Yield what is typed at the terminal, or stands in for it."""
    if sys.stdin.isatty():
        while True:
            yield console.input("\n[bold cyan]you[/]    ").strip()
    for line in list(sys.stdin) or OURS:
        console.print(f"\n[bold cyan]you[/]    {line.strip()}")
        yield line.strip()


async def answer(model: DragonVllmInferenceBackend, conversation: list[dict[str, str]]) -> None:
    """Print the answer while it comes, and add as much as came to the conversation."""
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
        # The model does not live on the loop of one answer: it is there from the first to the last.
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
