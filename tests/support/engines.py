"""AsyncFlow's and Rhapsody's engines with `ai_task`, and backends for prompts."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from rhapsody.backends import NoopExecutionBackend

ENGINES = ("stock", "ours")
MakeFlow = Callable[..., Awaitable[Any]]
"""Creates an engine with given backends."""


async def make_engine(kind: str, backend: Any = None, **options: Any) -> Any:
    """Create an engine that has `ai_task`.

    Args:
        kind: "stock" for AsyncFlow's own, extended; "ours" for Rhapsody's.
        backend: A backend or a list of them.
        **options: Passed to `WorkflowEngine.create`.
    """
    import asyncflow_ext

    if kind == "ours":
        return await asyncflow_ext.WorkflowEngine.create(backend=backend, **options)
    import radical.asyncflow

    stock = await radical.asyncflow.WorkflowEngine.create(backend=backend, **options)
    return asyncflow_ext.extend(stock)


def make_task(flow: Any, **options: Any) -> Any:
    """Make a function task that takes any arguments and returns "fine"."""

    @flow.function_task(**options)
    async def task(*before: Any) -> str:
        return "fine"

    return task


class Echo(NoopExecutionBackend):
    """Responds to a prompt with the prompt in angle brackets, and records tasks.

    Args:
        name: Name of the backend.
        model_name: What it serves.
        held: Respond only after `let_go` was set.
    """

    task_kinds = frozenset({"prompt"})

    def __init__(self, name: str = "ai", model_name: str = "echo", held: bool = False) -> None:
        super().__init__(name)
        self.model_name = model_name
        self.asked: list[dict[str, Any]] = []
        self.cancelled = 0
        self.let_go = asyncio.Event()
        if not held:
            self.let_go.set()

    @property
    def prompts(self) -> list[Any]:
        return [task["prompt"] for task in self.asked]

    async def run_one(self, task: Mapping[str, Any]) -> dict[str, Any]:
        self.asked.append(dict(task))
        try:
            await self.let_go.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        prompt = task["prompt"]
        if isinstance(prompt, str):
            response: Any = f"<{prompt}>"
        elif isinstance(prompt[0], Mapping):
            response = f"<{prompt[-1]['content']}>"
        else:
            response = [f"<{text}>" for text in prompt]
        return {"response": response, "stdout": response, "return_value": response}
