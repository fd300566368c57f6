"""The event-driven engine: cancelling is asked of the right backend and always ends."""

import asyncio
import os
import sys

import pytest

from asyncflow_ext import WorkflowEngine, cancelling
from rhapsody.backends import ConcurrentExecutionBackend, NoopExecutionBackend
from tests.support.scripted import ScriptedBackend

pytestmark = pytest.mark.asyncflow


@pytest.fixture(autouse=True)
def patience(monkeypatch):
    monkeypatch.setattr(cancelling, "CONFIRM_SECONDS", 0.2)


def holding(name="holding"):
    return ScriptedBackend(name, on_task=lambda task: None)


async def until(condition):
    async def watch():
        while not condition():  # noqa: ASYNC110 - of a process or a file there is no event
            await asyncio.sleep(0.005)

    await asyncio.wait_for(watch(), 10)


async def test_the_task_is_cancelled_at_its_own_backend():
    first, second = holding("first"), holding("second")
    second.cancel_answer = True
    async with WorkflowEngine.create(backend=[first, second]) as flow:

        @flow.function_task(backend="second")
        async def task():
            return None

        future = task()
        await until(lambda: second.batches)
        future.cancel()
        with pytest.raises(asyncio.CancelledError):
            await future
    assert second.cancelled == [future.task["uid"]]
    assert first.cancelled == []


@pytest.mark.parametrize("answer", [False, True, None])
async def test_a_backend_that_refuses_or_never_confirms_releases_the_waiter(answer):
    backend = holding()
    backend.cancel_answer = answer
    async with WorkflowEngine.create(backend=backend) as flow:

        @flow.function_task
        async def task():
            return None

        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(task(), 0.05)


async def test_a_backend_that_raises_from_cancel_releases_the_waiter():
    class Raising(ScriptedBackend):
        async def cancel_task(self, uid):
            raise OSError("no connection")

    async with WorkflowEngine.create(backend=Raising(on_task=lambda task: None)) as flow:

        @flow.function_task
        async def task():
            return None

        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(task(), 0.05)


async def test_a_task_on_its_way_to_the_backend_is_cancelled_there():
    backend = holding()
    backend.hold = asyncio.Event()
    async with WorkflowEngine.create(backend=backend) as flow:

        @flow.function_task
        async def task():
            return None

        future = task()
        await until(lambda: backend.batches)
        future.cancel()
        assert backend.cancelled == []
        backend.hold.set()
        with pytest.raises(asyncio.CancelledError):
            await future
    assert backend.cancelled == [future.task["uid"]]


async def test_a_task_in_front_of_a_busy_backend_never_gets_there():
    backend = holding()
    backend.hold = asyncio.Event()
    async with WorkflowEngine.create(backend=backend) as flow:

        @flow.function_task
        async def task():
            return None

        task()
        await until(lambda: backend.batches)
        queued = task()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        queued.cancel()
        assert queued.cancelled()
        backend.hold.set()
        await asyncio.sleep(0.01)
    assert len(backend.batches) == 1


async def test_a_task_that_waits_for_another_is_cancelled_at_once():
    async with WorkflowEngine.create(backend=holding()) as flow:

        @flow.function_task
        async def task(*before):
            return None

        waiting = task(task())
        waiting.cancel()
        assert waiting.cancelled()


async def test_dependents_of_a_cancelled_task_are_cancelled_at_once():
    async with WorkflowEngine.create(backend=holding()) as flow:

        @flow.function_task
        async def task(*before):
            return None

        never = task()
        first = task(never)
        second = task(first)
        third = task(second, never)
        first.cancel()
        for future in (second, third):
            with pytest.raises(asyncio.CancelledError):
                await asyncio.wait_for(asyncio.shield(future), 5)


async def test_the_members_of_a_block_are_cancelled_with_it():
    backend = holding()
    async with WorkflowEngine.create(backend=backend) as flow:
        members = []

        @flow.function_task
        async def task():
            return None

        @flow.block
        async def block():
            members.append(task())
            async with flow.workflow_scope("inner"):
                members.append(task())
            await asyncio.gather(*members)

        future = block()
        await until(lambda: backend.batches)
        future.cancel()
        with pytest.raises(asyncio.CancelledError):
            await future
        await until(lambda: all(member.done() for member in members))
        assert all(member.cancelled() for member in members)
        assert sorted(backend.cancelled) == sorted(m.task["uid"] for m in members)


async def test_blocks_nested_deeper_than_the_stack_are_cancelled():
    backend = holding()
    async with WorkflowEngine.create(backend=backend) as flow:

        @flow.function_task
        async def task():
            return None

        @flow.block
        async def block(depth):
            await (block(depth - 1) if depth else task())

        future = block(sys.getrecursionlimit())
        await until(lambda: backend.batches)
        future.cancel()
        with pytest.raises(asyncio.CancelledError):
            await future
        await until(lambda: not flow.components)


async def test_a_cancelled_task_of_a_block_cancels_the_block_that_awaits_it():
    async with WorkflowEngine.create(backend=holding()) as flow:
        made = asyncio.get_running_loop().create_future()

        @flow.function_task
        async def task():
            return None

        @flow.block
        async def block():
            member = task()
            made.set_result(member)
            await member

        future = block()
        (await made).cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(asyncio.shield(future), 5)


async def test_a_body_that_is_being_prepared_is_stopped():
    stopped = asyncio.Event()
    async with WorkflowEngine.create(backend=NoopExecutionBackend()) as flow:

        @flow.executable_task
        async def task():
            try:
                await asyncio.Event().wait()
            finally:
                stopped.set()

        future = task()
        await asyncio.sleep(0.01)
        future.cancel()
        assert future.cancelled()
        await asyncio.wait_for(stopped.wait(), 5)


async def test_a_body_that_awaits_something_cancelled_cancels_its_task():
    async with WorkflowEngine.create(backend=NoopExecutionBackend()) as flow:
        gone = asyncio.get_running_loop().create_future()
        gone.cancel()

        @flow.executable_task
        async def task():
            return await gone

        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(asyncio.shield(task()), 5)


async def test_an_executable_really_ends(tmp_path):
    mark = tmp_path / "pid"
    async with WorkflowEngine.create(backend=ConcurrentExecutionBackend()) as flow:

        @flow.executable_task
        async def task(task_description={"shell": True}):  # noqa: B006
            return f"'echo $$ > {mark}; exec sleep 60'"

        future = task()
        await until(lambda: mark.exists() and mark.read_text().strip())
        future.cancel()
        with pytest.raises(asyncio.CancelledError):
            await future
        pid = int(mark.read_text())
        await until(lambda: not _alive(pid))


def _alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def test_a_late_result_of_a_cancelled_task_is_ignored():
    backend = holding()
    backend.cancel_answer = False
    async with WorkflowEngine.create(backend=backend) as flow:

        @flow.function_task
        async def task():
            return None

        future = task()
        await until(lambda: backend.batches)
        future.cancel()
        with pytest.raises(asyncio.CancelledError):
            await future
        backend.done(backend.batches[0][0])
        assert future.cancelled()


async def test_the_shutdown_cancels_everything():
    flow = await WorkflowEngine.create(backend=holding())

    @flow.function_task
    async def task(*before):
        return None

    @flow.block
    async def block():
        await task()

    first = task()
    futures = [first, task(first), block()]
    await asyncio.sleep(0.01)
    await flow.shutdown()
    assert all(future.cancelled() for future in futures)
    await flow.shutdown()
