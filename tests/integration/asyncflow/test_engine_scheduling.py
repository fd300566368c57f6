"""The event-driven engine: what ends wakes what waits for it."""

import asyncio
import time

import pytest

from asyncflow_ext import WorkflowEngine
from rhapsody.backends import ConcurrentExecutionBackend, NoopExecutionBackend
from tests.support.scripted import ScriptedBackend

pytestmark = pytest.mark.asyncflow


async def test_a_dependent_starts_when_what_it_waits_for_ends():
    async with WorkflowEngine.create(backend=ConcurrentExecutionBackend()) as flow:

        @flow.function_task
        async def step(*before):
            await asyncio.sleep(0.02)
            return len(before)

        since = time.monotonic()
        last = step()
        for _ in range(9):
            last = step(last)
        assert await last == 1
        # Ten steps of 20 ms; an engine that polls once a second takes nine seconds for them.
        assert time.monotonic() - since < 2


async def test_tasks_that_are_ready_together_leave_in_one_batch():
    backend = ScriptedBackend()
    async with WorkflowEngine.create(backend=backend) as flow:

        @flow.function_task
        async def task():
            return None

        await asyncio.gather(*(task() for _ in range(50)))
    assert [len(batch) for batch in backend.batches] == [50]


async def test_dependents_that_become_ready_together_leave_in_one_batch():
    backend = ScriptedBackend()
    async with WorkflowEngine.create(backend=backend) as flow:

        @flow.function_task
        async def task(*before):
            return None

        first = task()
        await asyncio.gather(*(task(first) for _ in range(20)))
    assert [len(batch) for batch in backend.batches] == [1, 20]


async def test_a_backend_that_is_slow_to_take_tasks_does_not_delay_another():
    slow, quick = ScriptedBackend("slow"), ScriptedBackend("quick")
    slow.hold = asyncio.Event()
    async with WorkflowEngine.create(backend=[slow, quick]) as flow:

        @flow.function_task(backend="slow")
        async def held():
            return None

        @flow.function_task(backend="quick")
        async def free():
            return None

        waiting = held()
        for _ in range(3):
            await asyncio.wait_for(free(), 5)
        assert not waiting.done()
        slow.hold.set()
        await waiting


async def test_calls_on_one_backend_are_serial():
    backend = ScriptedBackend()
    backend.hold = asyncio.Event()
    async with WorkflowEngine.create(backend=backend) as flow:

        @flow.function_task
        async def task():
            return None

        first = task()
        await asyncio.sleep(0.01)
        second = task()
        await asyncio.sleep(0.01)
        assert len(backend.batches) == 1
        backend.hold.set()
        await asyncio.gather(first, second)
    assert len(backend.batches) == 2


async def test_a_slow_body_of_one_task_delays_no_other():
    async with WorkflowEngine.create(backend=NoopExecutionBackend()) as flow:
        release = asyncio.Event()

        @flow.executable_task
        async def slow():
            await release.wait()
            return "/bin/true"

        @flow.function_task
        async def quick():
            return None

        waiting = slow()
        await asyncio.wait_for(quick(), 5)
        assert not waiting.done()
        release.set()
        await waiting


async def test_a_thousand_diamonds():
    async with WorkflowEngine.create(backend=ConcurrentExecutionBackend()) as flow:

        @flow.function_task
        async def add(*values):
            return sum(values) + 1

        def diamond():
            top = add()
            left, right = add(top), add(top)
            return add(left, right)

        assert await asyncio.gather(*(diamond() for _ in range(1000))) == [5] * 1000


async def test_a_finished_component_is_forgotten():
    async with WorkflowEngine.create(backend=NoopExecutionBackend()) as flow:

        @flow.function_task
        async def task(*before):
            return None

        last = task()
        for _ in range(100):
            last = task(last)
        await last
        await asyncio.sleep(0)
        assert not flow.components
        assert not flow.dependencies
        assert not flow.running


async def test_the_description_of_a_chain_keeps_no_earlier_ones():
    async with WorkflowEngine.create(backend=NoopExecutionBackend()) as flow:

        @flow.function_task
        async def task(*before):
            return None

        first = task()
        second = task(first)
        await second
        assert second.task["metadata"]["dependencies"] == (
            {"uid": first.task["uid"], "name": "task"},
        )
