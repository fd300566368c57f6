"""Timeouts of tasks and blocks, for each attempt."""

import asyncio
import threading
import time
from contextlib import suppress

import pytest

from asyncflow_ext import WorkflowEngine, state_machine
from asyncflow_ext.component import Stage
from rhapsody.backends import ConcurrentExecutionBackend
from rhapsody.errors import ConfigurationError, QueueTimeoutError, TaskTimeoutError
from tests.support.engines import make_task
from tests.support.scripted import ScriptedBackend
from tests.support.waiting import LIMIT_S, until

pytestmark = pytest.mark.asyncflow


async def test_timeout_fails_task(engine: WorkflowEngine) -> None:
    @engine.executable_task(timeout=0.1)
    async def endless() -> str:
        return "/bin/sleep 60"

    with pytest.raises(TaskTimeoutError, match=r"timeout of 0\.1 s"):
        await asyncio.wait_for(endless(), 10)


async def test_timeout_fails_and_stops_block(engine: WorkflowEngine) -> None:
    stopped = asyncio.Event()

    @engine.block(timeout=0.05)
    async def endless() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            stopped.set()

    with pytest.raises(TaskTimeoutError):
        await endless()
    await asyncio.wait_for(stopped.wait(), 5)


async def test_timed_out_block_is_repeated(engine: WorkflowEngine) -> None:
    attempts = []

    @engine.block(timeout=0.05, retries=2, backoff=0.001)
    async def block() -> str:
        attempts.append(1)
        if len(attempts) < 3:
            await asyncio.Event().wait()
        return "fine"

    assert await asyncio.wait_for(block(), 10) == "fine"


@pytest.mark.parametrize("kind", ["function_task", "block"])
async def test_every_attempt_has_its_own_timeout(engine: WorkflowEngine, kind: str) -> None:
    attempts = []

    @getattr(engine, kind)(timeout=0.2, retries=2, backoff=0.001)
    async def stuck() -> None:
        attempts.append(1)
        await asyncio.Event().wait()

    with pytest.raises(TaskTimeoutError):
        await asyncio.wait_for(stuck(), 20)
    assert len(attempts) == 3


async def test_late_value_of_timed_out_block_is_ignored(engine: WorkflowEngine) -> None:
    @engine.block(timeout=0.05)
    async def block() -> str:
        with suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        return "too late"

    with pytest.raises(TaskTimeoutError):
        await asyncio.wait_for(block(), 10)


async def test_timeout_of_block_cancels_its_members() -> None:
    backend = ScriptedBackend(on_task=lambda task: None)
    backend.cancel_result = False
    async with WorkflowEngine.create(backend=backend) as flow:
        members: list[asyncio.Future[str]] = []

        @flow.block(timeout=0.05)
        async def block() -> None:
            members.append(make_task(flow)())
            await asyncio.Event().wait()

        with pytest.raises(TaskTimeoutError):
            await asyncio.wait_for(block(), 10)
        await until(lambda: members[0].cancelled())


async def test_unstopped_task_is_not_repeated() -> None:
    backend = ScriptedBackend(on_task=lambda task: backend._callback_func(task, "RUNNING"))
    backend.cancel_result = False
    async with WorkflowEngine.create(backend=backend) as flow:
        with pytest.raises(TaskTimeoutError):
            await asyncio.wait_for(make_task(flow, timeout=0.05, retries=2, backoff=0.001)(), 10)
    assert len(backend.batches) == 1


async def test_timeout_includes_command_function(engine: WorkflowEngine) -> None:
    @engine.executable_task(timeout=0.05)
    async def slow() -> None:
        await asyncio.Event().wait()

    with pytest.raises(TaskTimeoutError):
        await asyncio.wait_for(slow(), 5)


async def test_late_error_of_earlier_attempt_is_ignored(engine: WorkflowEngine) -> None:
    second_started, first_ended = asyncio.Event(), asyncio.Event()

    @engine.executable_task(timeout=0.5, retries=1, backoff=0.001)
    async def task() -> str:
        if future.attempt == 1:
            second_started.set()
            await first_ended.wait()
            return "/bin/echo second"
        try:
            await asyncio.Event().wait()
        finally:
            await second_started.wait()
            first_ended.set()
            raise OSError("late clean-up")

    future = task()
    assert await asyncio.wait_for(future, 10) == "second\n"


async def test_cancel_after_timeout_ends_task_cancelled() -> None:
    backend = ScriptedBackend(on_task=lambda task: backend._callback_func(task, "RUNNING"))
    async with WorkflowEngine.create(backend=backend) as flow:
        future = make_task(flow, timeout=0.01, retries=1)()
        await until(lambda: backend.cancelled)
        future.cancel()
        backend._callback_func(future.description, "CANCELED")
        assert future.cancelled()
    assert len(backend.batches) == 1


async def test_late_refusal_for_earlier_attempt_is_ignored() -> None:
    class Slow(ScriptedBackend):
        async def cancel_task(self, uid: str) -> bool:
            self.cancelled.append(uid)
            return await answers[len(self.cancelled) - 1]

    loop = asyncio.get_running_loop()
    answers: list[asyncio.Future[bool]] = [loop.create_future(), loop.create_future()]
    backend = Slow(on_task=lambda task: backend._callback_func(task, "RUNNING"))
    async with WorkflowEngine.create(backend=backend) as flow:
        future = make_task(flow, timeout=0.05, retries=1, backoff=0.0)()
        await until(lambda: len(backend.cancelled) == 1)
        backend._callback_func(future.description, "CANCELED")
        await until(lambda: len(backend.cancelled) == 2)  # the second attempt timed out too
        future.cancel()
        answers[0].set_result(False)
        await until(lambda: len(flow._machine.tasks._tasks) == 1)
        assert not future.done()
        answers[1].set_result(False)
        with pytest.raises(asyncio.CancelledError):
            await future


async def test_prompt_timed_out_in_queue_is_repeated() -> None:
    backend = ScriptedBackend()
    backend.hold = asyncio.Event()
    async with WorkflowEngine.create(backend=backend) as flow:
        first = make_task(flow)()
        await until(lambda: backend.batches)

        @flow.prompt_task(timeout=0.3, retries=1, backoff=0.0)
        async def task() -> str:
            return "hello"

        queued = task()
        await until(lambda: queued.attempt == 1 and queued.stage is Stage.QUEUED)
        backend.hold.set()
        await asyncio.gather(first, queued)
    assert [len(batch) for batch in backend.batches] == [1, 1]


async def test_timeout_starts_when_backend_reports_running() -> None:
    backend = ScriptedBackend(on_task=lambda task: None)
    backend.reports_running = True
    async with WorkflowEngine.create(backend=backend) as flow:
        future = make_task(flow, timeout=0.01)()
        await until(lambda: future.stage is Stage.SUBMITTED)
        assert future.timers is None
        backend._callback_func(future.description, "RUNNING")
        assert future.state == "RUNNING"
        await until(lambda: backend.cancelled)
        backend._callback_func(future.description, "CANCELED")
        with pytest.raises(TaskTimeoutError):
            await future


async def test_timeout_starts_at_submission_to_backend_without_running_reports() -> None:
    backend = ScriptedBackend(on_task=lambda task: None)
    async with WorkflowEngine.create(backend=backend) as flow:
        future = make_task(flow, timeout=0.01)()
        await until(lambda: backend.cancelled)
        backend._callback_func(future.description, "CANCELED")
        with pytest.raises(TaskTimeoutError):
            await future


async def test_timeout_of_executable_excludes_queue_after_its_function() -> None:
    backend = ScriptedBackend(on_task=lambda task: None)
    backend.reports_running = True
    release = asyncio.Event()
    async with WorkflowEngine.create(backend=backend) as flow:

        @flow.executable_task(timeout=60)
        async def task() -> str:
            await release.wait()
            return "/bin/true"

        future = task()
        await until(lambda: future.stage is Stage.PREPARING)
        assert future.timers.timeout is not None
        release.set()
        await until(lambda: future.stage is Stage.SUBMITTED)
        assert future.timers is None


async def test_tasks_that_wait_longer_than_their_timeout_succeed() -> None:
    async with WorkflowEngine.create(backend=ConcurrentExecutionBackend(max_workers=1)) as flow:

        @flow.executable_task(timeout=1)
        async def nap() -> str:
            return "/bin/sleep 0.2"

        @flow.function_task(timeout=1)
        async def block_worker() -> None:
            time.sleep(0.2)  # noqa: ASYNC251 - it occupies the only worker

        await asyncio.gather(*(nap() for _ in range(8)), *(block_worker() for _ in range(8)))


async def test_unstoppable_body_is_left_after_stop_seconds(
    engine: WorkflowEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state_machine, "STOP_SECONDS", 0.05)
    release = asyncio.Event()
    runs: list[int] = []

    @engine.block(timeout=0.05, retries=1, backoff=0.001)
    async def stubborn() -> None:
        runs.append(1)
        while not release.is_set():
            with suppress(asyncio.CancelledError):
                await release.wait()

    with pytest.raises(TaskTimeoutError):
        await asyncio.wait_for(stubborn(), 10)
    release.set()
    assert runs == [1]


@pytest.mark.parametrize("kind", ["function_task", "executable_task"])
async def test_timed_out_task_is_recorded_as_failure(engine: WorkflowEngine, kind: str) -> None:
    @getattr(engine, kind)(timeout=0.05)
    async def endless() -> str:
        if kind == "function_task":
            await asyncio.Event().wait()
        return "/bin/sleep 60"

    with pytest.raises(TaskTimeoutError):
        await asyncio.wait_for(endless(), 10)
    history = engine.backend.history
    assert history.counts == {"FAILED": 1}
    [failure] = history.failures()
    assert "did not finish within its timeout of 0.05 s" in failure.reason
    assert [(record.state, record.reason) for record in history.records()] == [
        ("FAILED", failure.reason)
    ]


async def test_attempts_are_recorded_as_one_task(engine: WorkflowEngine) -> None:
    attempts: list[int] = []

    @engine.function_task(retries=2, backoff=0.001, timeout=0.1)
    async def unsteady() -> str:
        attempts.append(1)
        if len(attempts) == 1:
            raise ConnectionError("not yet")
        if len(attempts) == 2:
            await asyncio.Event().wait()
        return "fine"

    assert await asyncio.wait_for(unsteady(), 10) == "fine"
    history = engine.backend.history
    assert history.counts == {"DONE": 1}
    assert history.failures() == []
    assert [record.state for record in history.records()] == ["DONE"]


async def test_task_that_fails_in_every_attempt_is_recorded_once(engine: WorkflowEngine) -> None:
    @engine.function_task(retries=2, backoff=0.001)
    async def failing() -> None:
        raise ValueError("intended")

    with pytest.raises(ValueError, match="intended"):
        await asyncio.wait_for(failing(), 10)
    history = engine.backend.history
    assert history.counts == {"FAILED": 1}
    assert [(failure.reason, failure.number) for failure in history.failures()] == [
        ("ValueError: intended", 1)
    ]


async def test_task_cancelled_before_its_next_attempt_is_recorded_as_canceled(
    engine: WorkflowEngine,
) -> None:
    @engine.function_task(retries=1, backoff=60)
    async def failing() -> None:
        raise ValueError("intended")

    future = failing()
    await until(lambda: future.stage is Stage.PAUSING)
    future.cancel()
    assert engine.backend.history.counts == {"CANCELED": 1}
    assert [record.state for record in engine.backend.history.records()] == ["CANCELED"]


@pytest.mark.parametrize("kind", ["function_task", "executable_task"])
async def test_queue_timeout_fails_waiting_task_without_repeating_it(kind: str) -> None:
    backend = ConcurrentExecutionBackend(max_workers=1, max_children=1)
    release = threading.Event()
    async with WorkflowEngine.create(backend=backend) as flow:

        @flow.function_task
        async def occupy() -> None:
            release.wait(LIMIT_S)  # the only worker

        @flow.executable_task
        async def occupy_child() -> str:
            return "/bin/sleep 60"

        @getattr(flow, kind)(queue_timeout=0.05, retries=3)
        async def waiting() -> str:
            return "/bin/true"

        occupying = [occupy(), occupy_child()]
        await until(lambda: all(future.state == "RUNNING" for future in occupying))
        with pytest.raises(
            QueueTimeoutError, match=r"not start within its queue_timeout of 0\.05 s"
        ):
            await asyncio.wait_for(waiting(), 10)
        release.set()
        assert backend.history.counts["FAILED"] == 1
        assert "QueueTimeoutError" in backend.history.failures()[0].reason


async def test_queue_timeout_includes_queue_of_engine() -> None:
    backend = ScriptedBackend()
    backend.reports_running = True
    backend.hold = asyncio.Event()
    async with WorkflowEngine.create(backend=backend) as flow:
        first = make_task(flow)()
        await until(lambda: backend.batches)
        with pytest.raises(QueueTimeoutError):
            await asyncio.wait_for(make_task(flow, queue_timeout=0.05)(), 10)
        backend.hold.set()
        await first
    assert len(backend.batches) == 1


async def test_queue_timeout_ends_with_start(engine: WorkflowEngine) -> None:
    @engine.executable_task(queue_timeout=0.5)
    async def nap() -> str:
        return "/bin/sleep 0.7"

    assert await asyncio.wait_for(nap(), 20) == ""


async def test_queue_timeout_is_refused_where_it_cannot_work() -> None:
    quiet = ScriptedBackend("quiet")
    async with WorkflowEngine.create(backend=[ConcurrentExecutionBackend(), quiet]) as flow:
        with pytest.raises(ConfigurationError, match="'quiet' does not report when a task starts"):
            flow.function_task(backend="quiet", queue_timeout=1)
        with pytest.raises(TypeError, match="a block has no 'queue_timeout'"):
            flow.block(queue_timeout=1)
        with pytest.raises(TypeError, match="a prompt has no 'queue_timeout'; its 'timeout'"):
            flow.prompt_task(queue_timeout=1)
        with pytest.raises(ValueError, match="'queue_timeout' must be a positive number"):
            flow.function_task(queue_timeout=0)
