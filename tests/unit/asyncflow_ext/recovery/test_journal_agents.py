"""The journal of an engine and agents: a chat continues at the turn at which its program ended."""

import asyncio
import json
import shutil
from collections.abc import Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from asyncflow_ext import WorkflowEngine
from rhapsody.backends import ConcurrentExecutionBackend
from rhapsody.errors import ReplicaError
from tests.support.engines import Echo

pytestmark = pytest.mark.asyncflow

CALLS = [("measure", {"n": 1}), ("measure", {"n": 2}), ("measure", {"n": 3})]


class Caller(Echo):
    """Calls one tool in each turn, and then responds with a text."""

    async def run_one(self, task: Mapping[str, Any]) -> dict[str, Any]:
        self.asked.append(dict(task))
        turn = sum(message["role"] == "tool" for message in task["prompt"])
        message: dict[str, Any] = {"role": "assistant", "content": "done"}
        if turn < len(CALLS):
            name, given = CALLS[turn]
            function = {"name": name, "arguments": json.dumps(given)}
            call = {"id": f"call-{turn}", "type": "function", "function": function}
            message = {"role": "assistant", "content": None, "tool_calls": [call]}
        text = message["content"]
        usage = {"prompt_tokens": 2, "total_tokens": 2}
        return {"response": text, "stdout": text, "usage": usage, "message": message}


class Losing(Caller):
    """Loses its third response."""

    async def run_one(self, task: Mapping[str, Any]) -> dict[str, Any]:
        response = await super().run_one(task)
        if len(self.asked) == 3:
            raise ReplicaError("the connection was lost")
        return response


class Tool:
    """A tool whose second call waits, if it should."""

    def __init__(self, waits: bool) -> None:
        self.waits = waits
        self.called: list[int] = []
        self.second = asyncio.Event()

    async def measure(self, n: int) -> int:
        self.called.append(n)
        if n == 2 and self.waits:
            self.second.set()
            await asyncio.Event().wait()
        return 10 * n


@asynccontextmanager
async def agent_on(
    path: Path | None, tool: Tool, model: Caller | None = None, **options: Any
) -> Any:
    """Make an engine with an agent; yields the engine, the model and the agent."""
    model = model or Caller()
    async with WorkflowEngine.create(
        backend=[ConcurrentExecutionBackend(), model], journal=path
    ) as flow:

        @flow.function_task(version="1")
        async def measure(n: int) -> int:
            return await tool.measure(n)

        @flow.ai_task(tools=[measure], **options)
        async def agent(question: str) -> str:
            return question

        yield flow, model, agent


@pytest.mark.parametrize("journaled", [True, False])
async def test_repeated_agent_keeps_its_finished_turns(tmp_path: Path, journaled: bool) -> None:
    path = tmp_path / "run.journal" if journaled else None
    tool = Tool(waits=False)
    options: Any = {"retries": 1, "backoff": 0}
    async with agent_on(path, tool, Losing(), **options) as (_, model, agent):
        running = agent("What is heat?")
        assert await running == "done"
    assert tool.called == [1, 2, 3]
    assert [len(task["prompt"]) for task in model.asked] == [1, 3, 5, 5, 7]
    assert [m["content"] for m in running.task["messages"] if m["role"] == "tool"] == [
        *("10", "20", "30"),
    ]
    if journaled:
        again = Tool(waits=False)
        async with agent_on(path, again, **options) as (_, model, agent):
            assert await agent("What is heat?") == "done"
        assert (again.called, model.asked) == ([], [])


async def test_killed_agent_continues_at_its_turn(tmp_path: Path) -> None:
    first, last = Tool(waits=True), Tool(waits=False)
    (tmp_path / "killed").mkdir()
    async with agent_on(tmp_path / "run.journal", first) as (flow, model, agent):
        running = agent("What is heat?")
        await asyncio.wait_for(first.second.wait(), 30)
        await flow.journal.flush()
        for file in tmp_path.glob("run.journal*"):  # as a killed program leaves it
            shutil.copy(file, tmp_path / "killed")
        assert len(model.asked) == 2
        running.cancel()
    async with agent_on(tmp_path / "killed" / "run.journal", last) as (flow, model, agent):
        running = agent("What is heat?")
        assert await running == "done"
    assert (first.called, last.called) == ([1, 2], [2, 3])
    assert [len(task["prompt"]) for task in model.asked] == [5, 7]  # not 1 and 3
    results = [m["content"] for m in running.task["messages"] if m["role"] == "tool"]
    assert results == ["10", "20", "30"]
