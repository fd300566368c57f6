"""The end of a run before its walltime: what may finish, and what is not started."""

import asyncio
import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import rhapsody
import rhapsody.walltime.guard
from asyncflow_ext import WorkflowEngine
from rhapsody.api import AITask, WalltimeReached
from rhapsody.backends import ConcurrentExecutionBackend
from rhapsody.journal.store import Store
from rhapsody.walltime import END_VARIABLE
from rhapsody.walltime.token_rates import TYPICAL
from tests.support.engines import Echo, make_task
from tests.support.scripted import ScriptedBackend
from tests.support.waiting import until

pytestmark = pytest.mark.asyncflow

LONG = 1000.0


def guard_of(flow: WorkflowEngine) -> Any:
    return flow._machine.walltime


async def test_running_task_finishes_and_the_others_are_not_started() -> None:
    backend = ScriptedBackend(on_task=lambda task: None)
    async with WorkflowEngine.create(backend=backend, walltime=LONG) as flow:
        task = make_task(flow)
        running = task()
        await asyncio.wait([running], timeout=0.01)
        following = task(running)
        guard_of(flow).begin("of a test")
        late = task()
        backend.done(backend.batches[0][0], "finished")
        assert await running == "finished"
        for future in (following, late):
            with pytest.raises(WalltimeReached, match="because of a test; start the program again"):
                await future
        assert following.state == "CANCELLED"
        assert len(backend.batches) == 1
        await flow.shutdown()
        with pytest.raises(WalltimeReached):
            task()


async def test_run_ends_when_the_margin_is_over() -> None:
    backend = ScriptedBackend(on_task=lambda task: None)
    async with WorkflowEngine.create(backend=backend, walltime=0.2, walltime_margin=0.1) as flow:
        with pytest.raises(WalltimeReached, match="the walltime is nearly over"):
            await make_task(flow)()


async def test_task_that_its_backend_has_not_started_is_taken_back() -> None:
    backend = ScriptedBackend(on_task=lambda task: None)
    backend.reports_running = True
    async with WorkflowEngine.create(backend=backend, walltime=LONG) as flow:
        started, waiting = (make_task(flow)() for _ in range(2))
        await asyncio.wait([started], timeout=0.01)
        backend._callback_func(backend.batches[0][0], "RUNNING")
        guard_of(flow).begin("of a test")
        await asyncio.sleep(0)
        backend._callback_func(backend.batches[0][1], "CANCELED")
        assert backend.cancelled == [waiting.uid]
        backend.done(backend.batches[0][0], "finished")
        assert await started == "finished"
        with pytest.raises(WalltimeReached):
            await waiting


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """End a run soon after nothing that may start is left."""
    monkeypatch.setattr(rhapsody.walltime.guard, "SETTLE_SECONDS", 0.01)


async def test_dependents_of_the_last_task_start_although_another_task_is_held(
    quick: None,
) -> None:
    def end_soon(task: Any) -> None:
        asyncio.get_running_loop().call_soon(backend.done, task, "fine")

    backend = ScriptedBackend(on_task=end_soon)
    async with WorkflowEngine.create(backend=backend, walltime=LONG) as flow:
        short = make_task(flow)
        long = make_task(flow, expected=2 * LONG)()

        @flow.block
        async def block() -> Any:
            return await short(await short())

        assert [await short(short()), await block()] == ["fine", "fine"]
        with pytest.raises(WalltimeReached):
            await long


async def test_task_that_cannot_end_in_time_is_not_started(quick: None) -> None:
    backend = ScriptedBackend()
    async with WorkflowEngine.create(backend=backend, walltime=LONG) as flow:
        short, long = make_task(flow, expected=1.0)(), make_task(flow, expected=2 * LONG)()
        with pytest.raises(WalltimeReached, match="what is left cannot end before the walltime"):
            await long
        assert await short is None
        assert len(backend.batches) == 1


class Caller(Echo):
    """A model that calls the tool `work`, whatever it is asked."""

    async def run_one(self, task: Any) -> dict[str, Any]:
        call = {"id": "1", "type": "function", "function": {"name": "work", "arguments": ""}}
        message = {"role": "assistant", "content": None, "tool_calls": [call]}
        return {"response": "", "usage": {}, "message": message}


async def test_run_ends_if_the_calls_of_an_agent_cannot_end_in_time(quick: None) -> None:
    async with WorkflowEngine.create(
        backend=[ConcurrentExecutionBackend("thread"), Caller()], walltime=LONG
    ) as flow:

        @flow.function_task(expected=2 * LONG)
        async def work() -> None: ...

        @flow.ai_task(tools=[work])
        async def agent() -> str:
            return "hi"

        with pytest.raises(WalltimeReached, match="what is left cannot end before the walltime"):
            await asyncio.wait_for(agent(), 20)


async def test_prompt_that_cannot_end_at_the_measured_rate_is_not_sent(
    quick: None, tmp_path: Path
) -> None:
    model = Echo()
    async with WorkflowEngine.create(
        backend=[ConcurrentExecutionBackend(), model],
        walltime=LONG,
        journal=tmp_path / "run.journal",
    ) as flow:

        @flow.ai_task
        async def ask(what: str, max_tokens: int) -> AITask:
            return AITask(what, max_tokens=max_tokens)

        guard = guard_of(flow)
        guard.token_rates.note(model.name, "other", {}, {"completion_tokens": 100}, 10.0)
        short, long = ask("short", 1000), ask("long", 20_000)
        assert await short == "<short>"
        with pytest.raises(WalltimeReached, match="what is left cannot end before the walltime"):
            await long
        assert [task["prompt"] for task in model.asked] == ["short"]


async def test_held_prompt_leaves_time_for_what_runs(quick: None) -> None:
    model = Echo()
    backend = ScriptedBackend(on_task=lambda task: None)
    async with WorkflowEngine.create(backend=[backend, model], walltime=LONG) as flow:
        ask = flow.ai_task(max_tokens=20_000)(_question)
        guard = guard_of(flow)
        guard.token_rates.note(model.name, "other", {}, {"completion_tokens": 100}, 10.0)
        running, held = make_task(flow)(), ask("long")
        await until(lambda: guard._held == {held})
        await asyncio.wait([running], timeout=0.05)
        assert guard.reached is None
        backend.done(backend.batches[0][0], "finished")
        assert await running == "finished"
        with pytest.raises(WalltimeReached):
            await held
        assert model.asked == []


async def test_responses_are_measured() -> None:
    model = Measured()
    async with WorkflowEngine.create(
        backend=[ConcurrentExecutionBackend(), model], walltime=LONG
    ) as flow:
        ask = flow.ai_task(max_tokens=20_000)(_question)
        for _ in range(TYPICAL):
            await ask("short")
        rates = guard_of(flow).token_rates
        rates.note(model.name, "other", {}, {"completion_tokens": 100}, 10.0)
        assert rates.seconds(model.name, "_question", {"max_tokens": 20_000}) == 0.8


class Measured(Echo):
    """Reports 8 tokens for each response."""

    async def run_one(self, task: Mapping[str, Any]) -> dict[str, Any]:
        return {**await super().run_one(task), "usage": {"completion_tokens": 8}}


async def _question(what: str) -> str:
    return what


@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGUSR1])
async def test_signal_begins_the_end(sig: signal.Signals) -> None:
    backend = ScriptedBackend(on_task=lambda task: None)
    async with WorkflowEngine.create(backend=backend, walltime=LONG) as flow:
        running = make_task(flow)()
        await asyncio.wait([running], timeout=0.01)
        following = make_task(flow)(running)
        os.kill(os.getpid(), sig)
        await asyncio.sleep(0.01)
        backend.done(backend.batches[0][0], "finished")
        assert await running == "finished"
        with pytest.raises(WalltimeReached, match=f"because of the signal {sig.name}"):
            await following


async def test_tasks_learn_the_remaining_walltime(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(END_VARIABLE, raising=False)
    backend = ConcurrentExecutionBackend()
    async with WorkflowEngine.create(backend=backend, walltime=LONG) as flow:

        @flow.function_task
        async def ask() -> Any:
            return rhapsody.remaining_walltime()

        @flow.executable_task
        async def show() -> str:
            return f"sh -c 'echo ${END_VARIABLE}'"

        assert LONG - 60 < await ask() <= LONG
        assert float(await show()) > 0
    assert END_VARIABLE not in os.environ


async def test_engine_without_walltime_and_journal_has_no_guard() -> None:
    async with WorkflowEngine.create(backend=ScriptedBackend()) as flow:
        assert guard_of(flow) is None


async def test_full_disk_ends_the_run_if_the_journal_is_required(tmp_path: Path) -> None:
    backend = ScriptedBackend(on_task=lambda task: None)
    async with WorkflowEngine.create(
        backend=backend, journal=tmp_path / "run.journal", journal_required=True
    ) as flow:
        waiting = make_task(flow)()
        await asyncio.wait([waiting], timeout=0.01)
        assert flow.journal is not None
        assert flow.journal.on_failure is not None
        error = rhapsody.api.JournalError("run.journal", "cannot be written")
        flow.journal.on_failure(error)
        with pytest.raises(rhapsody.api.JournalError, match="cannot be written"):
            await waiting


async def test_shutdown_says_that_a_required_journal_failed_after_the_last_task(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(*_: object) -> None:
        raise rhapsody.api.JournalError("run.journal", "cannot be written")

    monkeypatch.setattr(Store, "write", write)
    flow = await WorkflowEngine.create(
        backend=ScriptedBackend(), journal=tmp_path / "run.journal", journal_required=True
    )
    await make_task(flow)()
    assert flow.journal is not None
    monkeypatch.setattr(flow.journal, "on_failure", None)  # the engine ends before it
    with pytest.raises(rhapsody.api.JournalError, match="cannot be written"):
        await flow.shutdown()
