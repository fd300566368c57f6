"""Cancelling: the backend of a task is asked to stop it, and the future always ends."""

import asyncio
import os
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from asyncflow_ext import WorkflowEngine, state_machine
from asyncflow_ext.component import Component, Stage
from rhapsody.backends import ConcurrentExecutionBackend, NoopExecutionBackend
from rhapsody.errors import TaskTimeoutError
from tests.support.engines import make_task
from tests.support.scripted import ScriptedBackend
from tests.support.waiting import until

pytestmark = pytest.mark.asyncflow

LIMIT_S = 5.0


def holding(name: str = "holding") -> ScriptedBackend:
    """Make a backend that keeps its tasks until the test reports them."""
    return ScriptedBackend(name, on_task=lambda task: None)


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def submitted(backend: ScriptedBackend, flow: WorkflowEngine) -> Component:
    """Call a task, and return its future once the backend has it."""
    future: Component = make_task(flow, backend=backend.name)()
    await until(lambda: future.stage is Stage.SUBMITTED)
    return future


async def ends_cancelled(future: Component) -> None:
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(asyncio.shield(future), LIMIT_S)
    assert future.state == "CANCELLED"


async def test_cancel_asks_backend_of_task() -> None:
    first, second = holding("first"), holding("second")
    async with WorkflowEngine.create(backend=[first, second]) as flow:
        future = await submitted(second, flow)
        future.cancel()
        await until(lambda: second.cancelled)
    assert second.cancelled == [future.uid]
    assert first.cancelled == []


async def test_refused_cancel_ends_task_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state_machine, "CONFIRM_SECONDS", 10 * LIMIT_S)
    backend = holding()
    backend.cancel_result = False
    async with WorkflowEngine.create(backend=backend) as flow:
        future = await submitted(backend, flow)
        future.cancel()
        await ends_cancelled(future)


@pytest.mark.parametrize("confirmed", [True, None])
async def test_cancel_without_report_ends_task_after_confirm_seconds(
    confirmed: bool | None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(state_machine, "CONFIRM_SECONDS", 0.1)
    backend = holding()
    backend.cancel_result = confirmed
    async with WorkflowEngine.create(backend=backend) as flow:
        future = await submitted(backend, flow)
        since = time.monotonic()
        future.cancel()
        await ends_cancelled(future)
        assert time.monotonic() - since >= 0.1
    assert f"did not confirm within 0.1 s that it stopped task {future.uid}" in caplog.text


async def test_error_of_cancel_task_ends_task_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    class Raising(ScriptedBackend):
        async def cancel_task(self, uid: str) -> None:
            raise OSError("no connection")

    monkeypatch.setattr(state_machine, "CONFIRM_SECONDS", 10 * LIMIT_S)
    backend = Raising(on_task=lambda task: None)
    async with WorkflowEngine.create(backend=backend) as flow:
        future = await submitted(backend, flow)
        future.cancel()
        await ends_cancelled(future)


async def test_second_cancel_does_not_ask_backend_again() -> None:
    backend = holding()
    async with WorkflowEngine.create(backend=backend) as flow:
        future = await submitted(backend, flow)
        assert future.cancel()
        assert future.cancel()
        await until(lambda: backend.cancelled)
        backend._callback_func(future.description, "CANCELED")
        await ends_cancelled(future)
    assert backend.cancelled == [future.uid]


async def test_cancel_message_is_raised() -> None:
    async with WorkflowEngine.create(backend=holding()) as flow:
        future = make_task(flow)()
        future.cancel("no more")
        with pytest.raises(asyncio.CancelledError, match="no more"):
            await future


async def test_cancel_during_submit_asks_backend_afterwards() -> None:
    backend = holding()
    backend.hold = asyncio.Event()
    backend.cancel_result = False
    async with WorkflowEngine.create(backend=backend) as flow:
        future = make_task(flow)()
        await until(lambda: backend.batches)
        future.cancel()
        assert backend.cancelled == []
        backend.hold.set()
        await ends_cancelled(future)
    assert backend.cancelled == [future.uid]


async def test_cancel_in_queue_never_reaches_backend() -> None:
    backend = holding()
    backend.hold = asyncio.Event()
    async with WorkflowEngine.create(backend=backend) as flow:
        task = make_task(flow)
        task()
        await until(lambda: backend.batches)
        queued, later = task(), task()
        await until(lambda: later.stage is Stage.QUEUED)
        queued.cancel()
        assert queued.cancelled()
        backend.hold.set()
        await until(lambda: later.stage is Stage.SUBMITTED)
    assert [description["uid"] for description in backend.batches[1]] == [later.uid]


async def test_cancel_before_dependencies_finish_ends_task() -> None:
    async with WorkflowEngine.create(backend=holding()) as flow:
        task = make_task(flow)
        waiting = task(task())
        waiting.cancel()
        assert waiting.cancelled()


async def test_cancel_ends_dependents() -> None:
    async with WorkflowEngine.create(backend=holding()) as flow:
        task = make_task(flow)
        never = task()
        first = task(never)
        second = task(first)
        third = task(second, never)
        first.cancel()
        for future in (second, third):
            await ends_cancelled(future)


async def test_cancel_of_block_ends_its_members() -> None:
    backend = holding()
    async with WorkflowEngine.create(backend=backend) as flow:
        task = make_task(flow)
        members: list[Component] = []

        @flow.block
        async def block() -> None:
            members.append(task())
            async with flow.workflow_scope("inner"):
                members.append(task())
            await asyncio.gather(*members)

        future = block()
        await until(lambda: backend.batches)
        future.cancel()
        await ends_cancelled(future)
        await until(lambda: len(backend.cancelled) == 2)
        for description in backend.batches[0]:
            backend._callback_func(description, "CANCELED")
        assert all(member.cancelled() for member in members)
        assert sorted(backend.cancelled) == sorted(member.uid for member in members)


async def test_cancel_ends_blocks_nested_deeper_than_stack() -> None:
    backend = holding()
    backend.cancel_result = False
    async with WorkflowEngine.create(backend=backend) as flow:
        task = make_task(flow)

        @flow.block
        async def block(depth: int) -> None:
            await (block(depth - 1) if depth else task())

        future = block(sys.getrecursionlimit())
        await until(lambda: backend.batches)
        future.cancel()
        await ends_cancelled(future)
        await until(lambda: not flow._components.active)


async def test_cancelled_task_cancels_awaiting_block() -> None:
    backend = holding()
    backend.cancel_result = False
    async with WorkflowEngine.create(backend=backend) as flow:
        task = make_task(flow)
        made: asyncio.Future[Component] = asyncio.get_running_loop().create_future()

        @flow.block
        async def block() -> None:
            member = task()
            made.set_result(member)
            await member

        future = block()
        (await made).cancel()
        await ends_cancelled(future)


async def test_block_cancelled_before_it_starts_does_not_run() -> None:
    async with WorkflowEngine.create(backend=NoopExecutionBackend()) as flow:
        runs: list[int] = []

        @flow.block
        async def block() -> None:
            runs.append(1)

        future = block()
        asyncio.get_running_loop().call_soon(future.cancel)  # after its launch in this pass
        await block()
        assert future.cancelled()
    assert runs == [1]


async def test_cancel_stops_command_function() -> None:
    started, stopped = asyncio.Event(), asyncio.Event()
    async with WorkflowEngine.create(backend=NoopExecutionBackend()) as flow:

        @flow.executable_task
        async def task() -> None:
            started.set()
            try:
                await asyncio.Event().wait()
            finally:
                stopped.set()

        future = task()
        await asyncio.wait_for(started.wait(), LIMIT_S)
        future.cancel()
        assert future.cancelled()
        await asyncio.wait_for(stopped.wait(), LIMIT_S)


async def test_awaiting_cancelled_future_cancels_task() -> None:
    async with WorkflowEngine.create(backend=NoopExecutionBackend()) as flow:
        cancelled: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        cancelled.cancel()

        @flow.executable_task
        async def task() -> str:
            return await cancelled

        await ends_cancelled(task())


async def test_cancel_ends_process_of_executable(tmp_path: Path) -> None:
    mark = tmp_path / "pid"
    async with WorkflowEngine.create(backend=ConcurrentExecutionBackend()) as flow:

        @flow.executable_task
        async def task(task_description: Any = {"shell": True}) -> str:  # noqa: B006
            return f"'echo $$ > {mark}; exec sleep 60'"

        future = task()
        await until(lambda: mark.exists() and mark.read_text().strip())
        future.cancel()
        await ends_cancelled(future)
        pid = int(mark.read_text())
        await until(lambda: not is_alive(pid))


async def test_late_result_of_cancelled_task_is_ignored() -> None:
    backend = holding()
    backend.cancel_result = False
    async with WorkflowEngine.create(backend=backend) as flow:
        future = await submitted(backend, flow)
        future.cancel()
        await ends_cancelled(future)
        backend.done(backend.batches[0][0])
        assert future.cancelled()


async def test_result_before_confirmation_does_not_undo_the_cancelling_of_a_caller() -> None:
    backend = holding()
    async with WorkflowEngine.create(backend=backend) as flow:
        future = await submitted(backend, flow)

        async def call() -> None:
            await future

        calling = asyncio.ensure_future(call())
        await asyncio.sleep(0)  # now it awaits the future
        calling.cancel()
        backend.done(backend.batches[0][0])
        with pytest.raises(asyncio.CancelledError):
            await calling
        assert future.state == "CANCELLED"


async def test_journal_keeps_a_result_that_came_before_the_confirmation(tmp_path: Path) -> None:
    journal = tmp_path / "run.journal"
    first, second = holding("a"), holding("a")
    async with WorkflowEngine.create(backend=first, journal=journal) as flow:
        future = await submitted(first, flow)
        future.cancel()
        first.done(first.batches[0][0], "computed")
        await ends_cancelled(future)
    async with WorkflowEngine.create(backend=second, journal=journal) as flow:
        assert await make_task(flow, backend="a")() == "computed"
    assert second.batches == []


async def test_shutdown_cancels_all_components() -> None:
    backend = holding()
    flow = await WorkflowEngine.create(backend=backend)
    task = make_task(flow)

    @flow.block
    async def block() -> None:
        await task()

    first = task()
    futures = [first, task(first), block()]
    await until(lambda: sum(map(len, backend.batches)) == 2)  # the first task, and the block's
    await flow.shutdown()
    assert all(future.cancelled() for future in futures)
    await flow.shutdown()


@pytest.mark.parametrize("timed_out", [False, True])
async def test_task_accepted_after_its_end_is_cancelled_at_backend(
    monkeypatch: pytest.MonkeyPatch, timed_out: bool
) -> None:
    monkeypatch.setattr(state_machine, "CONFIRM_SECONDS", 0.05)
    backend = holding()
    backend.hold = asyncio.Event()
    async with WorkflowEngine.create(backend=backend) as flow:
        future = make_task(flow, timeout=0.05 if timed_out else None)()
        await until(lambda: backend.batches)
        if not timed_out:
            future.cancel()
        await asyncio.wait([future], timeout=LIMIT_S)
        assert backend.cancelled == []
        backend.hold.set()
        await until(lambda: backend.cancelled)
        assert backend.cancelled == [future.uid]
        if timed_out:
            assert isinstance(future.exception(), TaskTimeoutError)
        else:
            assert future.cancelled()
