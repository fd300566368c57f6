"""AI tasks with tools, on the embedded model and through an endpoint."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from asyncflow_ext import WorkflowEngine
from rhapsody import AITask, ComputeTask, Session
from rhapsody.backends import ConcurrentExecutionBackend, EndpointInferenceBackend
from tests.support.engines import ENGINES, make_engine
from tests.support.waiting import LIMIT_S

pytestmark = pytest.mark.asyncflow

QUESTION = "Please simulate 'ether' at 400 kelvin, shout 'hello' and lookup 'gold'"


def lookup(what: str) -> str:
    """Look something up."""
    return f"{what} is known"


@contextlib.asynccontextmanager
async def agent_of(flow: Any, calls: list[int] | None = None, **options: Any) -> AsyncIterator[Any]:
    """Define the tools and the agent on an engine."""

    @flow.function_task
    async def simulate(kelvin: int, substance: str = "water") -> dict[str, Any]:
        """Simulate a substance."""
        if calls is not None:
            calls.append(kelvin)
        return {"substance": substance, "boils": kelvin > 373}

    @flow.executable_task
    async def shout(text: str) -> str:
        return f"echo '{text}'"

    @flow.ai_task(tools=[simulate, shout, lookup], **options)
    async def agent(question: Any) -> Any:
        return question

    yield agent
    await flow.shutdown()


@pytest.mark.parametrize("kind", ENGINES)
async def test_tools_run_as_tasks(start: Any, tmp_path: Path, kind: str) -> None:
    backends = [ConcurrentExecutionBackend(), await start()]
    flow = await make_engine(kind, backends, work_dir=str(tmp_path))
    async with agent_of(flow) as agent:
        task = AITask(QUESTION)
        answer = await agent(task)
    results = [message["content"] for message in task.messages if message["role"] == "tool"]
    assert results == ['{"substance":"ether","boils":true}', "hello\n", "gold is known"]
    assert answer.startswith("The tools returned: " + results[0])
    assert answer == task.response == task.messages[-1]["content"]
    whole = {call["name"]: call["result"] for call in task.tool_calls}
    assert whole["simulate"] == {"substance": "ether", "boils": True}


@pytest.mark.parametrize("kind", ENGINES)
async def test_model_is_told_of_a_cancelled_call(start: Any, tmp_path: Path, kind: str) -> None:
    backends = [ConcurrentExecutionBackend(), await start()]
    flow = await make_engine(kind, backends, work_dir=str(tmp_path))
    started = asyncio.Event()
    loop = asyncio.get_running_loop()

    @flow.function_task
    async def hang(minutes: int) -> None:
        loop.call_soon_threadsafe(started.set)
        await asyncio.sleep(60 * minutes)

    @flow.ai_task(tools=[hang])
    async def agent(question: Any) -> Any:
        return question

    task = AITask("Please hang for 3 minutes")
    asked = agent(task)
    await asyncio.wait_for(started.wait(), LIMIT_S)
    [call] = [c["future"] for c in flow.components.values() if c["description"]["name"] == "hang"]
    call.cancel()
    await asyncio.wait_for(asked, LIMIT_S)
    told = [message["content"] for message in task.messages if message["role"] == "tool"]
    assert told == ["The tool 'hang' failed: TaskCancelledError: Task 'hang' was cancelled"]
    await flow.shutdown()


@pytest.mark.parametrize("kind", ENGINES)
async def test_task_of_a_workflow_may_bring_its_tools(
    start: Any, tmp_path: Path, kind: str
) -> None:
    backends = [ConcurrentExecutionBackend("thread"), await start()]
    flow = await make_engine(kind, backends, work_dir=str(tmp_path))

    @flow.ai_task()
    async def agent(question: str) -> Any:
        return AITask(question, tools=[lookup], max_rounds=2)

    assert "gold is known" in await agent("lookup 'gold'")
    await flow.shutdown()


async def test_session_calls_tools(start: Any) -> None:
    def shout(text: str) -> ComputeTask:
        """Print a text."""
        return ComputeTask(executable="echo", arguments=[text])

    async with Session([ConcurrentExecutionBackend("thread"), await start()]) as session:
        task = AITask("Please shout 'hello' and lookup 'gold'", tools=[shout, lookup])
        await session.submit_tasks(task)
        await task
    results = [message["content"] for message in task.messages if message["role"] == "tool"]
    assert results == ["hello\n", "gold is known"]
    assert task.response.startswith("The tools returned: hello")


async def test_first_response_calls_the_chosen_tool(start: Any) -> None:
    async with Session([ConcurrentExecutionBackend("thread"), await start()]) as session:
        task = AITask("Tell me about 'gold'", tools=[lookup], tool_choice="lookup")
        await session.submit_tasks(task)
        await task
    assert [call["result"] for call in task.tool_calls] == ["gold is known"]
    assert task.response.startswith("The tools returned: gold is known")


async def test_agent_works_through_an_endpoint(start: Any, tmp_path: Path) -> None:
    server = await start(use_service=True)
    endpoint = EndpointInferenceBackend(f"{server.get_endpoint()}/v1")
    backends = [ConcurrentExecutionBackend("thread"), endpoint]
    async with (
        WorkflowEngine.create(backend=backends, work_dir=str(tmp_path)) as flow,
        agent_of(flow) as agent,
    ):
        future = agent(QUESTION)
        assert "gold is known" in await future
        assert len(future.task["messages"]) == 6


async def test_turns_and_tools_are_recalled_from_the_journal(start: Any, tmp_path: Path) -> None:
    calls: list[int] = []
    answers = []
    model = await start()
    for _ in range(2):
        backends = [ConcurrentExecutionBackend("thread"), model]
        async with (
            WorkflowEngine.create(backend=backends, journal=tmp_path / "journal") as flow,
            agent_of(flow, None, seed=1) as agent,
        ):
            future = agent(QUESTION)
            answers.append(await future)
            calls.append(len(future.task["messages"]))
        sent = model.get_statistics().get("batched_prompts", 0)
        model = await start()
    assert answers[0] == answers[1]
    assert sent == 0
    assert calls == [6, 6]
