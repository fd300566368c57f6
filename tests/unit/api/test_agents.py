"""Agents of a session: the model's turns and the calls of tools are tasks of the session."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rhapsody import AITask, ComputeTask, Session
from rhapsody.api.agents import SessionAgents
from rhapsody.backends import ConcurrentExecutionBackend
from rhapsody.backends.base import BaseBackend
from rhapsody.backends.core.work import Work
from rhapsody.errors import (
    PromptError,
    TaskCancelledError,
    TaskTimeoutError,
    TaskValidationError,
    UnsupportedTaskError,
)
from tests.support.sessions import Inference

Calls = list[tuple[str, dict[str, Any]]]


class Scripted(BaseBackend):
    """A model that calls tools, one list for each turn, and then responds with a text."""

    task_kinds = frozenset({"prompt"})
    model_name = "scripted"

    def __init__(self, *turns: Calls) -> None:
        super().__init__("model")
        self._turns = list(turns)
        self.asked: list[dict[str, Any]] = []
        self.on_turn: Callable[[], None] = lambda: None

    async def execute(self, work: Work) -> dict[str, Any]:
        self.asked.append(dict(work.task))
        self.on_turn()
        done = sum(message["role"] == "assistant" for message in work.task["prompt"])
        message: dict[str, Any] = {"role": "assistant", "content": "done"}
        if done < len(self._turns):
            functions = [
                {"name": name, "arguments": json.dumps(given)} for name, given in self._turns[done]
            ]
            calls = [{"id": f["name"], "type": "function", "function": f} for f in functions]
            message = {"role": "assistant", "content": None, "tool_calls": calls}
        text = message["content"] or ""
        usage = {"prompt_tokens": 2, "total_tokens": 2}
        same = {"response": text, "stdout": text, "return_value": text}
        return {**same, "usage": usage, "finish_reason": "stop", "message": message}


def session_of(*turns: Calls, **options: Any) -> Session:
    return Session([ConcurrentExecutionBackend("thread"), Scripted(*turns)], **options)


def model_of(session: Session) -> Scripted:
    found = session.backends["model"]
    assert isinstance(found, Scripted)
    return found


async def ask(session: Session, tools: list[Any], **options: Any) -> AITask:
    task = AITask("hi", tools=tools, **options)
    await session.submit_tasks(task)
    await task
    return task


def results(task: AITask) -> list[str]:
    return [message["content"] for message in task.messages if message["role"] == "tool"]


def double(n: int) -> int:
    """Double a number."""
    return 2 * n


async def triple(n: int) -> int:
    return 3 * n


def echo(text: str) -> ComputeTask:
    return ComputeTask(executable="echo", arguments=[text])


async def echo_later(text: str) -> ComputeTask:
    return echo(text)


def not_a_task() -> ComputeTask:
    return 3  # type: ignore[return-value]


async def test_calls_of_functions_are_tasks_of_the_session() -> None:
    turns: list[Calls] = [[("double", {"n": 2}), ("triple", {"n": 2})], [("double", {"n": 5})]]
    async with session_of(*turns) as session:
        task = await ask(session, [double, triple], temperature=0, system_prompt="Be brief.")
        assert (task.state, task.response, task.return_value) == ("DONE", "done", "done")
        assert results(task) == ["4", "6", "10"]
        assert task.usage == {"prompt_tokens": 6, "total_tokens": 6}
        assert session.get_statistics()["backends"]["concurrent"]["tasks"] == {"DONE": 3}
        assert session.get_statistics()["backends"]["model"]["tasks"] == {"DONE": 3}
        first, *_, last = model_of(session).asked
        assert [message["role"] for message in first["prompt"]] == ["system", "user"]
        assert len(last["prompt"]) == len(task.messages) - 1
        assert first["temperature"] == 0
        [tool, _] = first["tools"]
        assert tool["function"]["description"] == "Double a number."


async def test_long_result_is_cut_for_the_model_only() -> None:
    def write() -> list[int]:
        return list(range(100))

    async with session_of([("write", {})]) as session:
        task = await ask(session, [write], max_result_chars=20)
    assert results(task) == [
        "[0,1,2,3,4,5,6,7,8,9\n[The result was cut here: 20 of 291 characters.]"
    ]
    assert [call["result"] for call in task.tool_calls] == [list(range(100))]


async def test_result_may_be_the_text_of_a_task_that_runs() -> None:
    async with session_of([("status", {})]) as session:
        job = ComputeTask(executable="sleep", arguments=["30"])

        def status() -> str:
            return repr(job)

        await session.submit_tasks(job)
        task = await ask(session, [status])
        assert task.state == "DONE"
        assert results(task)[0].startswith("ComputeTask(")


async def test_call_has_the_options_of_its_compute_task() -> None:
    failed: list[int] = []

    def flaky(n: int) -> int:
        if not failed:
            failed.append(n)
            raise OSError("once")
        return n

    async with session_of([("flaky", {"n": 7})]) as session:
        tool = ComputeTask(function=flaky, retries=1, backoff=0, backend="concurrent")
        task = await ask(session, [tool])
        assert (results(task), failed) == (["7"], [7])


@pytest.mark.parametrize("tool", [echo, echo_later])
async def test_function_that_returns_a_compute_task_describes_its_call(tool: Any) -> None:
    async with session_of([(tool.__name__, {"text": "hello"})]) as session:
        assert results(await ask(session, [tool])) == ["hello\n"]


async def test_error_of_a_tool_is_told_or_fails_the_task() -> None:
    def failing() -> None:
        raise OSError("disk")

    for tool, text in [(failing, "OSError: disk"), (not_a_task, "TypeError: it must return a")]:
        async with session_of([(tool.__name__, {})]) as session:
            task = await ask(session, [tool])
            [told] = results(task)
            assert text in told
            with pytest.raises((OSError, TypeError)):
                await ask(session, [tool], on_tool_error="fail")


async def test_failed_task_has_its_error_and_its_conversation() -> None:
    async with session_of(*[[("double", {"n": 1})]] * 3) as session:
        task = AITask("hi", tools=[double], max_rounds=2)
        await session.submit_tasks(task)
        with pytest.raises(PromptError, match="in all 2 rounds"):
            await task
        assert task.state == "FAILED"
        assert "in all 2 rounds" in task.stderr
        assert len(task.messages) == 4


async def test_repeated_task_keeps_its_finished_turns() -> None:
    failures = [OSError("lost")]
    turns: list[Calls] = [[("double", {"n": 1})], [("double", {"n": 2})]]
    async with session_of(*turns) as session:
        model = model_of(session)

        def lose_the_third() -> None:
            if len(model.asked) == 3 and failures:
                raise failures.pop()

        model.on_turn = lose_the_third
        task = await ask(session, [double], retries=1, backoff=0)
        assert results(task) == ["2", "4"]
        assert [len(asked["prompt"]) for asked in model.asked] == [1, 3, 5, 5]
        assert session.get_statistics()["backends"]["concurrent"]["tasks"] == {"DONE": 2}


class Endless:
    """A tool that runs until it is cancelled."""

    def __init__(self) -> None:
        self.started, self.cancelled = asyncio.Event(), asyncio.Event()
        loop = asyncio.get_running_loop()

        async def endless() -> None:
            loop.call_soon_threadsafe(self.started.set)
            try:
                await asyncio.Event().wait()
            finally:
                loop.call_soon_threadsafe(self.cancelled.set)

        self.tool = endless


async def test_cancelled_agent_cancels_its_call() -> None:
    endless = Endless()
    async with session_of([("endless", {})]) as session:
        task = AITask("hi", tools=[endless.tool])
        await session.submit_tasks(task)
        await endless.started.wait()
        assert task.state == "RUNNING"
        assert await session.cancel(task)
        await endless.cancelled.wait()
        with pytest.raises(TaskCancelledError):
            await task
        assert task.state == "CANCELED"
        assert not await session.cancel(task)


async def test_agent_that_is_cancelled_before_it_begins_leaves_nothing() -> None:
    async with session_of() as session:
        agents = SessionAgents(session.submit_tasks)
        task = AITask("hi", tools=[double])
        agents.start(session._submissions, task, model_of(session))
        agents.stop(task.uid)
        await agents.wait_stopped()
        assert (agents._conversations, agents.waits, task.messages) == ({}, {}, None)
        assert model_of(session).asked == []


async def test_agent_is_cancelled_with_all_tasks() -> None:
    endless = Endless()
    async with session_of([("endless", {})]) as session:
        task = AITask("hi", tools=[endless.tool])
        await session.submit_tasks(task)
        await endless.started.wait()
        session.cancel_all()
        await session.wait_tasks(task)
        assert task.state == "CANCELED"
        await endless.cancelled.wait()


async def test_agent_ends_when_its_session_closes() -> None:
    endless = Endless()
    session = session_of([("endless", {})])
    task = AITask("hi", tools=[endless.tool])
    await session.submit_tasks(task)
    await endless.started.wait()
    await session.close()
    assert task.state == "CANCELED"
    await endless.cancelled.wait()


async def test_agent_is_cancelled_with_its_turn() -> None:
    async with session_of() as session:
        model, asked = model_of(session), asyncio.Event()
        loop = asyncio.get_running_loop()

        async def execute(work: Work) -> dict[str, Any]:
            model.asked.append(dict(work.task))
            loop.call_soon_threadsafe(asked.set)
            await asyncio.Event().wait()
            raise AssertionError

        model.execute = execute  # type: ignore[method-assign]
        task = AITask("hi", tools=[double])
        await session.submit_tasks(task)
        await asked.wait()
        assert await session.cancel(model.asked[0]["uid"])
        with pytest.raises(TaskCancelledError):
            await task
        assert task.state == "CANCELED"


async def test_timeout_holds_for_the_conversation() -> None:
    endless = Endless()
    async with session_of([("endless", {})]) as session:
        task = AITask("hi", tools=[endless.tool], timeout=0.05)
        await session.submit_tasks(task)
        with pytest.raises(TaskTimeoutError, match=r"0\.05 s"):
            await task
        assert task.state == "FAILED"


async def test_journal_recalls_turns_and_calls(tmp_path: Path) -> None:
    turns: list[Calls] = [[("double", {"n": 2})], [("triple", {"n": 2})]]
    for expected in (3, 0):
        async with session_of(*turns, journal=tmp_path / "journal") as session:
            task = await ask(session, [double, triple])
            assert (task.response, results(task)) == ("done", ["4", "6"])
            assert len(model_of(session).asked) == expected
            counts = session.get_statistics()["backends"]["concurrent"]["tasks"]
            assert counts == ({"DONE": 2} if expected else {})


async def test_agent_of_an_ended_session_continues_with_its_journal(tmp_path: Path) -> None:
    turns: list[Calls] = [[("note", {"text": "a"})], [("note", {"text": "b"})]]

    def note(text: str) -> str:
        return text

    first = session_of(*turns, journal=tmp_path / "journal")
    model, stopped = model_of(first), asyncio.Event()
    loop = asyncio.get_running_loop()

    def stop_at_second_turn() -> None:
        if len(model.asked) == 2:
            loop.call_soon_threadsafe(stopped.set)

    model.on_turn = stop_at_second_turn
    task = AITask("hi", tools=[note])
    await first.submit_tasks(task)
    await stopped.wait()
    await first.close()

    async with session_of(*turns, journal=tmp_path / "journal") as second:
        task = await ask(second, [note])
        assert results(task) == ["a", "b"]
        assert "hi" not in [asked["prompt"][-1]["content"] for asked in model_of(second).asked]


async def test_dict_may_describe_an_agent() -> None:
    async with session_of([("double", {"n": 2})]) as session:
        task = {"prompt": "hi", "tools": [double]}
        [future] = await session.submit_tasks(task)
        assert (await future)["response"] == "done"


def test_agent_runs_without_an_event_loop() -> None:
    with session_of([("double", {"n": 2})]) as session:
        task = AITask("hi", tools=[double])
        session.run(task)
        assert results(task) == ["4"]


async def test_tool_without_a_backend_is_refused() -> None:
    async with Session([Scripted()]) as session:
        with pytest.raises(TaskValidationError, match="the tool 'double': no backend of the"):
            await session.submit_tasks(AITask("hi", tools=[double]))
        await session.submit_tasks(AITask("hi", tools=[echo]))  # each call names its backend
    async with session_of() as session:
        tool = ComputeTask(function=double, backend="gpus")
        with pytest.raises(TaskValidationError, match="the session has no backend 'gpus'"):
            await session.submit_tasks(AITask("hi", tools=[tool]))


async def test_backend_that_does_not_support_tools_fails_the_task() -> None:
    async with Session([ConcurrentExecutionBackend("thread"), Inference("plain", "m")]) as session:
        task = AITask("hi", tools=[double])
        await session.submit_tasks(task)
        with pytest.raises(UnsupportedTaskError, match="'plain' does not support 'tools'"):
            await task
