"""The event-driven engine: its making and its end, several of them, signals, memory."""

import asyncio
import gc
import inspect
import os
import resource
import signal

import pytest
from radical.asyncflow import WorkflowEngine as StockEngine

from asyncflow_ext import WorkflowEngine, stock
from rhapsody.backends import NoopExecutionBackend
from tests.support.scripted import ScriptedBackend

pytestmark = pytest.mark.asyncflow


def task_of(flow):
    @flow.function_task
    async def task(*before):
        return None

    return task


async def test_create_can_be_awaited_and_entered():
    flow = await WorkflowEngine.create(backend=NoopExecutionBackend())
    async with flow:
        await task_of(flow)()
    assert flow._shutdown_event.is_set()
    async with WorkflowEngine.create(backend=NoopExecutionBackend()) as flow:
        await task_of(flow)()
    assert flow._shutdown_event.is_set()


async def test_create_can_be_run_as_a_task():
    flow = await asyncio.create_task(WorkflowEngine.create(dry_run=True))
    await flow.shutdown()


async def test_a_creation_that_nobody_awaits_is_closed_quietly():
    WorkflowEngine.create(dry_run=True).close()


def test_it_takes_what_the_stock_engine_takes():
    for method in ("__init__", "create", "shutdown"):
        theirs = inspect.signature(getattr(StockEngine, method)).parameters
        ours = inspect.signature(getattr(WorkflowEngine, method)).parameters
        assert [(p.name, p.default, p.kind) for p in ours.values()] == [
            (p.name, p.default, p.kind) for p in theirs.values()
        ]


async def test_a_dry_run_needs_no_backend():
    async with WorkflowEngine.create(dry_run=True) as flow:
        assert await task_of(flow)() == "Dummy Output"


async def test_uids_of_two_engines_never_collide():
    async with (
        WorkflowEngine.create(backend=NoopExecutionBackend("a")) as first,
        WorkflowEngine.create(backend=NoopExecutionBackend("b")) as second,
    ):
        futures = [task_of(flow)() for flow in (first, second) for _ in range(20)]
        await asyncio.gather(*futures)
        assert len({future.task["uid"] for future in futures}) == 40


async def test_the_shutdown_of_one_engine_leaves_the_other_alone():
    first = await WorkflowEngine.create(backend=NoopExecutionBackend("a"))
    async with WorkflowEngine.create(backend=NoopExecutionBackend("b")) as second:
        await first.shutdown()
        await task_of(second)()


async def test_a_backend_goes_from_one_engine_to_the_next():
    backend = NoopExecutionBackend()
    for _ in range(2):
        flow = await WorkflowEngine.create(backend=backend)
        await task_of(flow)()
        await flow.shutdown(skip_execution_backend=True)


async def test_a_signal_reaches_every_living_engine_and_is_given_back():
    before = signal.getsignal(signal.SIGTERM)
    first = await WorkflowEngine.create(backend=NoopExecutionBackend("a"))
    second = await WorkflowEngine.create(backend=NoopExecutionBackend("b"))
    assert signal.getsignal(signal.SIGTERM) is not before
    os.kill(os.getpid(), signal.SIGTERM)
    for flow in (first, second):
        await asyncio.wait_for(flow._shutdown_event.wait(), 5)
        await flow.shutdown()
    assert signal.getsignal(signal.SIGTERM) is before


async def test_signals_stay_taken_while_one_engine_lives():
    before = signal.getsignal(signal.SIGTERM)
    first = await WorkflowEngine.create(backend=NoopExecutionBackend("a"))
    second = await WorkflowEngine.create(backend=NoopExecutionBackend("b"))
    await first.shutdown()
    assert signal.getsignal(signal.SIGTERM) is not before
    await second.shutdown()
    assert signal.getsignal(signal.SIGTERM) is before


async def test_an_engine_outside_the_main_thread_takes_no_signals():
    async def other():
        async with WorkflowEngine.create(backend=NoopExecutionBackend()) as flow:
            await task_of(flow)()
        return signal.getsignal(signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    assert await asyncio.to_thread(asyncio.run, other()) is before


async def test_many_tasks_leave_the_memory_flat():
    async with WorkflowEngine.create(backend=NoopExecutionBackend()) as flow:
        task = task_of(flow)

        async def wave(last=None):
            for _ in range(20):
                last = await asyncio.gather(*(task(last) for _ in range(500)))

        await wave()
        gc.collect()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for _ in range(4):
            await wave()
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    # 40,000 tasks; the stock engine keeps 3.2 kB of each, which would be 128 MB.
    assert grown < 20_000


def test_an_asyncflow_whose_inner_names_moved_is_refused():
    class Moved(StockEngine):
        _attach_backend = None

        def __init__(self):
            self.components = {}

    with pytest.raises(ImportError, match=r"fits radical\.asyncflow 0\.6.*_attach_backend"):
        stock.check_stock(Moved)


def test_the_installed_asyncflow_fits():
    stock.check_stock()


async def test_a_loops_own_signal_handler_comes_back():
    loop, got = asyncio.get_running_loop(), asyncio.Event()
    loop.add_signal_handler(signal.SIGHUP, got.set)
    try:
        flow = await WorkflowEngine.create(backend=NoopExecutionBackend())
        await flow.shutdown()
        os.kill(os.getpid(), signal.SIGHUP)
        await asyncio.wait_for(got.wait(), 5)
    finally:
        loop.remove_signal_handler(signal.SIGHUP)


async def test_a_handler_that_came_later_stays():
    before = signal.getsignal(signal.SIGHUP)
    got = []
    flow = await WorkflowEngine.create(backend=NoopExecutionBackend())
    signal.signal(signal.SIGHUP, lambda *args: got.append(args))
    try:
        await flow.shutdown()
        os.kill(os.getpid(), signal.SIGHUP)
        assert len(got) == 1
    finally:
        signal.signal(signal.SIGHUP, before)


def test_the_end_of_a_program_that_forgot_the_shutdown_shows_its_own_error():
    async def main():
        flow = await WorkflowEngine.create(backend=ScriptedBackend(on_task=lambda task: None))
        waiting = asyncio.ensure_future(task_of(flow)())
        await asyncio.sleep(0.01)
        assert not waiting.done()
        raise ValueError("the program's own")

    with pytest.raises(ValueError, match="the program's own"):
        asyncio.run(main())


@pytest.mark.skipif(not hasattr(asyncio, "eager_task_factory"), reason="Python 3.12 and later")
async def test_it_works_with_eager_tasks():
    asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
    async with WorkflowEngine.create(backend=NoopExecutionBackend()) as flow:
        for _ in range(3):
            await asyncio.wait_for(task_of(flow)(), 5)
