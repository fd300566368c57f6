"""A session repeats failed tasks that have `retries`."""

from typing import Any

import pytest

from rhapsody import AITask, ComputeTask, Session
from rhapsody.api import TaskCancelledError, TaskTimeoutError, TaskValidationError
from rhapsody.backends import ConcurrentExecutionBackend, NoopExecutionBackend
from tests.support.foreign import ForeignBackend
from tests.support.held import HeldBackend
from tests.support.sessions import boom, work
from tests.support.waiting import until


class Flaky:
    """Fails at its first calls."""

    __name__ = "flaky"

    def __init__(self, failures: int) -> None:
        self.failures = failures
        self.calls = 0

    def __call__(self) -> int:
        self.calls += 1
        if self.calls <= self.failures:
            raise OSError(f"failure {self.calls}")
        return self.calls


async def run(session: Session, task: ComputeTask) -> ComputeTask:
    await session.submit_tasks(task)
    await session.wait_tasks(task, timeout=20)
    return task


async def test_failed_task_is_repeated_and_counted_once() -> None:
    async with Session([ConcurrentExecutionBackend()]) as session:
        task = await run(session, ComputeTask(function=Flaky(2), retries=2, backoff=0.001))
        assert (task.state, task.return_value, task.exception) == ("DONE", 3, None)
        assert session.get_statistics()["tasks"] == {"DONE": 1}


async def test_last_failure_is_the_exception_of_the_task() -> None:
    flaky = Flaky(5)
    async with Session([ConcurrentExecutionBackend()]) as session:
        task = await run(session, ComputeTask(function=flaky, retries=1, backoff=0.001))
        assert (task.state, str(task.exception), flaky.calls) == ("FAILED", "failure 2", 2)
        assert session.get_statistics()["tasks"] == {"FAILED": 1}


async def test_executable_that_timed_out_is_repeated() -> None:
    async with Session([ConcurrentExecutionBackend()]) as session:
        task = ComputeTask("sleep", arguments=["20"], timeout=0.01, retries=1, backoff=0)
        await run(session, task)
        assert isinstance(task.exception, TaskTimeoutError)


async def test_cancel_during_the_pause_ends_the_task() -> None:
    flaky = Flaky(1)
    async with Session([ConcurrentExecutionBackend()]) as session:
        task = ComputeTask(function=flaky, retries=1, backoff=50)
        await session.submit_tasks(task)
        await until(
            lambda: flaky.calls == 1 and not session._submissions.active[task.uid].at_backend
        )
        assert await session.cancel(task)
        with pytest.raises(TaskCancelledError):
            await task
        assert flaky.calls == 1
        assert session.get_statistics()["tasks"] == {"CANCELED": 1}


async def test_close_during_the_pause_ends_the_task() -> None:
    flaky = Flaky(1)
    async with Session([ConcurrentExecutionBackend()]) as session:
        task = ComputeTask(function=flaky, retries=1, backoff=50)
        await session.submit_tasks(task)
        await until(
            lambda: flaky.calls == 1 and not session._submissions.active[task.uid].at_backend
        )
    assert task.cancelled()
    assert session.get_statistics()["tasks"] == {"CANCELED": 1}


async def test_no_retry_starts_a_backend_again_while_the_session_closes() -> None:
    class Slow(NoopExecutionBackend):
        async def shutdown(self) -> None:
            await until(lambda: task.done())
            await super().shutdown()

    failing = Flaky(1000)
    first = ConcurrentExecutionBackend()
    async with Session([first, Slow()]) as session:
        task = session.options(backend="concurrent", retries=9, backoff=0.1).submit(failing)
        await until(lambda: failing.calls > 0)
    assert task.state == "CANCELED"
    assert not first.is_up


async def test_cancelled_task_is_not_repeated(held: HeldBackend) -> None:
    async with Session([held]) as session:
        task = ComputeTask(function=work, retries=3, backoff=0)
        await session.submit_tasks(task)
        await held.wait_entered()
        assert await session.cancel(task)
        with pytest.raises(TaskCancelledError):
            await task


async def test_prompt_with_on_text_refuses_retries(held: HeldBackend) -> None:
    async with Session([held]) as session:
        with pytest.raises(TaskValidationError, match="leave out 'retries'"):
            await session.submit_tasks(AITask("hi", on_text=print, retries=1))


async def test_backend_that_keeps_no_history_is_counted_once() -> None:
    async with Session([ForeignBackend()]) as session:
        task = await run(session, ComputeTask(function=Flaky(2), retries=2, backoff=0.001))
        assert (task.state, task.return_value) == ("DONE", 3)
        assert session.get_statistics()["tasks"] == {"DONE": 1}


@pytest.mark.parametrize(
    ("field", "value"), [("retries", -1), ("retries", 1.5), ("backoff", -0.1), ("backoff", "soon")]
)
def test_invalid_retries_are_refused(field: str, value: Any) -> None:
    with pytest.raises(TaskValidationError, match=f"'{field}' must be"):
        ComputeTask(function=boom, **{field: value})
