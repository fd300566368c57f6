"""Scheduling: dependencies, batches, and the queue of each backend."""

import asyncio
import gc
import sys
import time
import tracemalloc
import weakref
from typing import Any

import pytest
from radical.asyncflow.errors import DependencyFailureError

from asyncflow_ext import WorkflowEngine, allow_failures
from asyncflow_ext.component import Stage
from asyncflow_ext.scheduling import MOST_EDGES_PER_PASS, MOST_PER_PASS
from rhapsody.backends import (
    BaseBackend,
    ConcurrentExecutionBackend,
    NoopExecutionBackend,
    Work,
)
from tests.support.engines import make_task
from tests.support.scripted import ScriptedBackend
from tests.support.waiting import until

pytestmark = pytest.mark.asyncflow


async def test_dependent_starts_as_soon_as_its_dependency_finishes() -> None:
    async with WorkflowEngine.create(backend=ConcurrentExecutionBackend()) as flow:

        @flow.function_task
        async def step(*before: int) -> int:
            await asyncio.sleep(0.02)
            return len(before)

        since = time.monotonic()
        last = step()
        for _ in range(9):
            last = step(last)
        assert await last == 1
        # Ten steps of 20 ms; an engine that polls once a second takes nine seconds for them.
        assert time.monotonic() - since < 2


async def test_tasks_ready_together_are_submitted_in_one_batch() -> None:
    backend = ScriptedBackend()
    async with WorkflowEngine.create(backend=backend) as flow:
        task = make_task(flow)
        await asyncio.gather(*(task() for _ in range(50)))
    assert [len(batch) for batch in backend.batches] == [50]


async def test_loop_runs_while_many_tasks_are_submitted() -> None:
    backend = ScriptedBackend()
    async with WorkflowEngine.create(backend=backend) as flow:
        task = make_task(flow)
        futures = [task() for _ in range(2 * MOST_PER_PASS + 1)]
        await asyncio.gather(*futures)
    assert sum(len(batch) for batch in backend.batches) == len(futures)
    assert max(len(batch) for batch in backend.batches) <= MOST_PER_PASS


async def test_dependents_ready_together_are_submitted_in_one_batch() -> None:
    backend = ScriptedBackend()
    async with WorkflowEngine.create(backend=backend) as flow:
        task = make_task(flow)
        first = task()
        await asyncio.gather(*(task(first) for _ in range(20)))
    assert [len(batch) for batch in backend.batches] == [1, 20]


async def test_dependents_of_one_task_are_submitted_in_their_order() -> None:
    backend = ScriptedBackend()
    async with WorkflowEngine.create(backend=backend) as flow:
        task = make_task(flow)
        first = task()
        futures = [task(first) for _ in range(MOST_EDGES_PER_PASS + 1)]
        await asyncio.gather(*futures)
    submitted = [task["uid"] for batch in backend.batches for task in batch]
    assert submitted == [first.uid, *(future.uid for future in futures)]


async def test_cancelled_dependency_ends_dependent_before_its_others_finish() -> None:
    backend = ScriptedBackend(on_task=lambda task: None)
    async with WorkflowEngine.create(backend=backend) as flow:
        task = make_task(flow)
        running, withdrawn = task(), task()
        dependent, tolerant = task(running, withdrawn), task(running, allow_failures(withdrawn))
        withdrawn.cancel()
        await until(dependent.cancelled)
        assert not running.done()
        assert not tolerant.done()


async def test_cancel_ends_chain_longer_than_stack() -> None:
    backend = ScriptedBackend(on_task=lambda task: None)
    async with WorkflowEngine.create(backend=backend) as flow:
        task = make_task(flow)
        first = last = task()
        for _ in range(2 * sys.getrecursionlimit()):
            last = task(last)
        first.cancel()
        await until(last.cancelled)


async def test_result_is_released_with_its_last_user(engine: WorkflowEngine, number: Any) -> None:
    class Result:
        """Takes weak references."""

    @engine.block
    async def make() -> Result:
        return Result()

    @engine.block
    async def use(result: Result) -> weakref.ref[Result]:
        return weakref.ref(result)

    gc.collect()
    gc.disable()  # a cycle would keep large results until the next collection
    try:
        end = await asyncio.gather(*(use(make()) for _ in range(2)))
        await asyncio.sleep(0)  # the loop still refers to the last of them
        assert [result() for result in end] == [None, None]
    finally:
        gc.enable()


async def test_slow_submit_of_one_backend_delays_no_other() -> None:
    slow, quick = ScriptedBackend("slow"), ScriptedBackend("quick")
    slow.hold = asyncio.Event()
    async with WorkflowEngine.create(backend=[slow, quick]) as flow:
        held, free = make_task(flow, backend="slow"), make_task(flow, backend="quick")
        waiting = held()
        for _ in range(3):
            await asyncio.wait_for(free(), 5)
        assert not waiting.done()
        slow.hold.set()
        await waiting


async def test_submit_calls_of_one_backend_do_not_overlap() -> None:
    backend = ScriptedBackend()
    backend.hold = asyncio.Event()
    async with WorkflowEngine.create(backend=backend) as flow:
        task = make_task(flow)
        first = task()
        await until(lambda: first.stage is Stage.SUBMITTING)
        second = task()
        await until(lambda: second.stage is Stage.QUEUED)
        assert len(backend.batches) == 1
        backend.hold.set()
        await asyncio.gather(first, second)
    assert len(backend.batches) == 2


async def test_thousand_diamonds_give_their_sums() -> None:
    async with WorkflowEngine.create(backend=ConcurrentExecutionBackend()) as flow:

        @flow.function_task
        async def add(*values: int) -> int:
            return sum(values) + 1

        def diamond() -> Any:
            top = add()
            left, right = add(top), add(top)
            return add(left, right)

        assert await asyncio.gather(*(diamond() for _ in range(1000))) == [5] * 1000


async def test_finished_components_are_forgotten() -> None:
    async with WorkflowEngine.create(backend=NoopExecutionBackend()) as flow:
        task = make_task(flow)
        last = task()
        for _ in range(100):
            last = task(last)
        await last
        assert not flow._components.active
        assert not flow.dependencies
        assert not flow.running


async def test_futures_inside_containers_become_values(engine: WorkflowEngine, number: Any) -> None:
    @engine.function_task
    async def collect(values: Any, table: Any, pair: Any) -> tuple[Any, Any, Any]:
        return values, table, pair

    result = await collect([number(1), [number(2)]], {"k": number(3)}, (number(4), 5))
    assert result == ([1, [2]], {"k": 3}, (4, 5))


async def test_plain_future_is_a_dependency(engine: WorkflowEngine) -> None:
    @engine.function_task
    async def take(value: int, other: int) -> int:
        return value + other

    plain: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    task = asyncio.get_running_loop().create_task(asyncio.sleep(0, 2))
    result = take(plain, task)
    plain.set_result(1)
    assert await result == 3


async def test_future_of_replaced_class_is_a_dependency(
    engine: WorkflowEngine, number: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Replacement(asyncio.Future[Any]):
        """`nest_asyncio.apply` replaces the class in the same way."""

    monkeypatch.setattr(asyncio, "Future", Replacement)
    assert await number(number(1)) == 1


async def test_failed_plain_future_fails_dependent(engine: WorkflowEngine, number: Any) -> None:
    plain: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    result = number(plain)
    plain.set_exception(OSError("no file"))
    with pytest.raises(DependencyFailureError, match="OSError: no file"):
        await result


async def test_future_of_another_engine_is_a_dependency(
    engine: WorkflowEngine, number: Any
) -> None:
    async with WorkflowEngine.create(backend=NoopExecutionBackend()) as other:

        @other.executable_task
        async def foreign() -> str:
            return "/bin/true"

        assert await number(foreign()) == ""


async def test_finished_future_is_a_dependency(engine: WorkflowEngine, number: Any) -> None:
    one = number(1)
    await one
    assert await number(one) == 1


async def test_dependent_waits_for_executable_function(engine: WorkflowEngine, number: Any) -> None:
    release = asyncio.Event()

    @engine.executable_task
    async def slow() -> str:
        await release.wait()
        return "/bin/echo late"

    first = slow()
    dependent = number(first)
    await until(lambda: first.stage is Stage.PREPARING)
    assert dependent.stage is Stage.WAITING
    release.set()
    assert await dependent == "late\n"


async def test_arguments_without_futures_keep_their_identity(
    engine: WorkflowEngine, number: Any
) -> None:
    seen: list[int] = []

    @engine.block
    async def block(value: int, out: list[int]) -> None:
        out.append(value)

    await block(number(1), seen)
    assert seen == [1]


async def test_list_changed_after_call_does_not_change_arguments(
    engine: WorkflowEngine, number: Any
) -> None:
    @engine.block
    async def take(values: list[int]) -> list[int]:
        return list(values)

    numbers = [number(1)]
    numbers.append(take(numbers))
    assert await asyncio.wait_for(numbers[1], 10) == [1]


async def test_container_may_contain_itself(engine: WorkflowEngine, number: Any) -> None:
    loop: list[Any] = [1]
    loop.append(loop)

    @engine.block
    async def block(value: int, ring: list[Any]) -> bool:
        return ring is loop

    assert await block(number(1), loop)


async def test_error_of_submit_tasks_fails_only_its_batch() -> None:
    bad, good = ScriptedBackend("bad"), NoopExecutionBackend("good")
    bad.submit_error = OSError("the scheduler is down")
    async with WorkflowEngine.create(backend=[bad, good]) as flow:
        failing, fine = make_task(flow, backend="bad")(), make_task(flow, backend="good")()
        with pytest.raises(OSError, match="the scheduler is down"):
            await failing
        await fine
        bad.submit_error = None
        await make_task(flow, backend="bad")()


async def test_future_of_another_loop_is_rejected(engine: WorkflowEngine) -> None:
    other = asyncio.new_event_loop()
    try:
        with pytest.raises(RuntimeError, match="another event loop"):
            make_task(engine)(other.create_future())
    finally:
        other.close()
    assert await make_task(engine)() == "fine"


MOST_BYTES = 1000 if sys.version_info >= (3, 11) else 1400


class Waiting(BaseBackend):
    """Starts no task."""

    def begin(self, work: Work) -> None:
        self.begun = work


async def test_waiting_task_takes_little_memory() -> None:
    count, backend = 2000, Waiting()
    async with WorkflowEngine.create(backend=backend) as flow:
        task = make_task(flow)
        tracemalloc.start()
        try:
            before = tracemalloc.get_traced_memory()[0]
            futures = [task(1000 + number) for number in range(count)]
            await until(lambda: len(flow.running) == count)
            waiting = tracemalloc.get_traced_memory()[0] - before
            for work in list(backend._works.values()):
                backend.report_done(work, {"return_value": None})
            await asyncio.gather(*futures)
            del futures, work
            await asyncio.sleep(0)  # the loop still refers to the last of them
            gc.collect()
            after = tracemalloc.get_traced_memory()[0] - before
        finally:
            tracemalloc.stop()
    assert waiting / count <= MOST_BYTES
    assert after < waiting / 2
