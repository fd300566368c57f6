"""The end of a session's run before its walltime."""

import asyncio
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import rhapsody.walltime.guard
from rhapsody.api import AITask, ComputeTask, JournalError, Session, WalltimeReached
from rhapsody.api.submissions.parts import AT_ONCE
from rhapsody.backends import ConcurrentExecutionBackend
from rhapsody.backends.base import BaseBackend
from rhapsody.backends.core.work import Work
from rhapsody.journal.store import Store
from rhapsody.walltime import END_VARIABLE
from rhapsody.walltime.token_rates import TYPICAL
from tests.support.scripted import ScriptedBackend

LONG = 1000.0


def executable(**options: Any) -> ComputeTask:
    return ComputeTask(executable="true", **options)


class ScriptedModel(ScriptedBackend):
    """A scripted backend for prompts."""

    task_kinds = frozenset({"prompt"})


async def until(condition: Callable[[], Any]) -> None:
    async def wait() -> None:
        while not condition():  # noqa: ASYNC110 - no event says so
            await asyncio.sleep(0.001)

    await asyncio.wait_for(wait(), 20)


async def begin(session: Session) -> None:
    """Begin the end of a run, when the session has found out when its job ends."""
    guard = session._submissions.walltime
    assert guard is not None
    await until(lambda: END_VARIABLE in os.environ)
    assert guard.begin("of a test")


async def test_running_task_finishes_and_what_is_left_raises(tmp_path: Path) -> None:
    backend = ScriptedBackend(on_task=lambda task: None)
    async with Session([backend], journal=tmp_path / "run.journal", walltime=LONG) as session:
        first, equal = (executable(cache=True) for _ in range(2))
        await session.submit_tasks([first, equal])
        await begin(session)
        with pytest.raises(WalltimeReached, match="because of a test; start the program again"):
            await session.submit_tasks(executable())
        other = asyncio.ensure_future(session.wait_tasks([first, equal]))
        backend.failed(first, OSError("broken"))  # so the equal one would run
        with pytest.raises(WalltimeReached):
            await other
        assert (first.state, equal.state) == ("FAILED", "CANCELED")
        with pytest.raises(WalltimeReached):
            await equal
        assert len(backend.batches) == 1
    assert END_VARIABLE not in os.environ


async def test_tasks_that_are_being_submitted_when_the_run_ends_end_with_it() -> None:
    backend = ScriptedBackend(on_task=lambda task: None)
    async with Session([backend], walltime=LONG) as session:
        guard = session._submissions.walltime
        assert guard is not None
        guard.bind(asyncio.get_running_loop())
        await until(lambda: END_VARIABLE in os.environ)
        tasks = [executable() for _ in range(8 * AT_ONCE)]
        submission = asyncio.ensure_future(session.submit_tasks(tasks))
        while not session._submissions.active:  # noqa: ASYNC110 - it counts passes of the loop
            await asyncio.sleep(0)
        guard.begin("of a test")
        await asyncio.wait_for(submission, 20)
        with pytest.raises(WalltimeReached):
            await asyncio.wait_for(session.wait_tasks(tasks), 20)
        assert {task.state for task in tasks} == {"CANCELED"}
        assert all(isinstance(task.exception, WalltimeReached) for task in tasks)
        assert backend.batches == []


async def test_run_ends_if_its_journal_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(store: Store, *_: Any) -> None:
        raise JournalError(store.path, "cannot be written because the disk is full")

    monkeypatch.setattr(Store, "write", write)
    backend = ScriptedBackend(on_task=lambda task: None)
    async with Session([backend], journal=tmp_path / "run.journal", walltime=LONG) as session:
        first, equal = (executable(cache=True) for _ in range(2))
        await session.submit_tasks([first, equal])
        await begin(session)
        backend.failed(first, OSError("broken"))
        with pytest.raises(WalltimeReached):
            await asyncio.wait_for(session.wait_tasks([first, equal]), 20)


async def test_waits_for_finished_tasks_do_not_raise() -> None:
    backend = ScriptedBackend(on_task=lambda task: None)
    async with Session([backend], walltime=LONG) as session:
        task = executable()
        await session.submit_tasks(task)
        await begin(session)
        backend.done(task, "fine")
        assert await session.wait_tasks(task) == [task]


async def test_task_that_its_backend_has_not_started_is_taken_back() -> None:
    backend = ScriptedBackend(on_task=lambda task: None)
    backend.reports_running = True
    async with Session([backend], walltime=LONG) as session:
        started, waiting = executable(), executable()
        await session.submit_tasks([started, waiting])
        backend._callback_func(started, "RUNNING")
        await begin(session)
        await until(lambda: backend.cancelled == [waiting.uid])
        backend._callback_func(waiting, "CANCELED")
        assert waiting.uid in session._submissions.active
        backend.done(started, "fine")
        with pytest.raises(WalltimeReached):
            await waiting
        assert (await started).stdout == "fine"


async def test_task_that_cannot_end_in_time_is_not_started(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(rhapsody.walltime.guard, "SETTLE_SECONDS", 0.01)
    backend = ScriptedBackend()
    async with Session([backend], walltime=LONG) as session:
        await session.submit_tasks(executable())
        await until(lambda: END_VARIABLE in os.environ)
        short, long = executable(timeout=1.0), executable(timeout=2 * LONG)
        await session.submit_tasks([short, long])
        with pytest.raises(WalltimeReached, match="cannot end before the walltime"):
            await long
        await short
        assert sum(map(len, backend.batches)) == 2


async def test_prompt_that_cannot_end_at_the_measured_rate_is_not_handed_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(rhapsody.walltime.guard, "SETTLE_SECONDS", 0.01)

    def respond(task: dict[str, Any]) -> None:
        task["usage"] = {"completion_tokens": 8}
        backend.done(task, "fine")

    backend = ScriptedModel(on_task=respond)
    async with Session([backend], walltime=LONG) as session:
        guard = session._submissions.walltime
        assert guard is not None
        first = [AITask("hi", max_tokens=20_001) for _ in range(TYPICAL)]
        await session.submit_tasks(first)
        await asyncio.gather(*first)
        await until(lambda: END_VARIABLE in os.environ)
        guard.token_rates.note(backend.name, "", {}, {"completion_tokens": 100}, 10.0)
        short, long = AITask("short", max_tokens=1000), AITask("long", max_tokens=20_000)
        usually_short = AITask("short", max_tokens=20_001, timeout=2 * LONG)
        await session.submit_tasks([short, long, usually_short])
        with pytest.raises(WalltimeReached, match="cannot end before the walltime"):
            await long
        await asyncio.gather(short, usually_short)


class Model(BaseBackend):
    """A model that calls a tool in its first turn."""

    task_kinds = frozenset({"prompt"})

    async def execute(self, work: Work) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": "done"}
        if len(work.task["prompt"]) == 1:
            call = {"id": "1", "type": "function", "function": {"name": "boil", "arguments": ""}}
            message = {"role": "assistant", "content": None, "tool_calls": [call]}
        usage = {"completion_tokens": 50}
        return {"response": "", "return_value": "", "usage": usage, "message": message}


def boil() -> None: ...


async def test_run_ends_if_the_calls_of_an_agent_cannot_end_in_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(rhapsody.walltime.guard, "SETTLE_SECONDS", 0.01)
    backends = [Model("model"), ConcurrentExecutionBackend("thread")]
    async with Session(backends, walltime=LONG) as session:
        await session.submit_tasks(AITask("hi", tools=[boil]))
        await until(lambda: END_VARIABLE in os.environ)
        agent = AITask("hi", tools=[ComputeTask(function=boil, timeout=2 * LONG)])
        await session.submit_tasks(agent)
        with pytest.raises(WalltimeReached, match="cannot end before the walltime"):
            await asyncio.wait_for(session.wait_tasks(agent), 20)
        assert session._submissions.agents.waits == {}


async def test_rate_does_not_count_what_an_agent_recalls(tmp_path: Path) -> None:
    noted = []
    for _ in range(2):
        backends = [Model("model"), ConcurrentExecutionBackend("thread")]
        async with Session(backends, walltime=LONG, journal=tmp_path / "journal") as session:
            await session.submit_tasks(agent := AITask("hi", tools=[boil]))
            await agent
            guard = session._submissions.walltime
            assert guard is not None
            noted.append([len(rates) for rates in guard.token_rates._rates.values()])
    assert noted == [[2], []]


@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGUSR1])
async def test_signal_ends_the_run(sig: signal.Signals) -> None:
    before = signal.getsignal(sig)
    async with Session([ScriptedBackend(on_task=lambda task: None)], walltime=LONG) as session:
        task = executable()
        await session.submit_tasks(task)
        await until(lambda: END_VARIABLE in os.environ)
        os.kill(os.getpid(), sig)
        guard = session._submissions.walltime
        assert guard is not None
        await until(lambda: guard.reached is not None)
        session._on_state(task, "FAILED")
        with pytest.raises(WalltimeReached, match=f"of the signal {sig.name}"):
            await session.submit_tasks(executable())
    assert signal.getsignal(sig) is before


def test_blocking_run_raises_when_the_margin_is_over() -> None:
    released = threading.Event()
    backend = ConcurrentExecutionBackend()
    with Session([backend], walltime=0.3, walltime_margin=0.2) as session:
        with pytest.raises(WalltimeReached, match="the walltime is nearly over"):
            session.run([ComputeTask(function=released.wait, args=[20])])
        released.set()
