"""Signal handlers, installed while an engine is open and restored after the last one."""

import asyncio
import os
import signal
import subprocess
import sys
from typing import Any

import pytest

from asyncflow_ext import WorkflowEngine
from rhapsody.backends import NoopExecutionBackend
from tests.support.engines import make_task
from tests.support.notebooks import pretend_kernel

pytestmark = pytest.mark.asyncflow


async def create() -> WorkflowEngine:
    return await WorkflowEngine.create(backend=NoopExecutionBackend())


async def test_signal_shuts_down_all_engines_and_handler_is_restored() -> None:
    before = signal.getsignal(signal.SIGTERM)
    first = await WorkflowEngine.create(backend=NoopExecutionBackend("a"))
    second = await WorkflowEngine.create(backend=NoopExecutionBackend("b"))
    assert signal.getsignal(signal.SIGTERM) is not before
    os.kill(os.getpid(), signal.SIGTERM)
    for flow in (first, second):
        await asyncio.wait_for(flow._shutdown_event.wait(), 5)
        await flow.shutdown()
    assert signal.getsignal(signal.SIGTERM) is before


async def test_handlers_stay_until_last_engine_shuts_down() -> None:
    before = signal.getsignal(signal.SIGTERM)
    first = await WorkflowEngine.create(backend=NoopExecutionBackend("a"))
    second = await WorkflowEngine.create(backend=NoopExecutionBackend("b"))
    await first.shutdown()
    assert signal.getsignal(signal.SIGTERM) is not before
    await second.shutdown()
    assert signal.getsignal(signal.SIGTERM) is before


async def test_engine_in_a_notebook_leaves_interrupts_to_the_kernel(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pretend_kernel(monkeypatch)
    interrupted = asyncio.Event()
    loop = asyncio.get_running_loop()
    before = signal.signal(
        signal.SIGINT, lambda *_: loop.call_soon_threadsafe(interrupted.set)
    )  # as a kernel does while a cell runs
    try:
        flow = await create()
        os.kill(os.getpid(), signal.SIGINT)
        await asyncio.wait_for(interrupted.wait(), 5)
        assert await make_task(flow)() is None
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.wait_for(flow._shutdown_event.wait(), 5)
        await flow.shutdown()
    finally:
        signal.signal(signal.SIGINT, before)


async def test_engine_in_other_thread_installs_no_handlers() -> None:
    async def other() -> object:
        async with WorkflowEngine.create(backend=NoopExecutionBackend()) as flow:
            await make_task(flow)()
        return signal.getsignal(signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    assert await asyncio.to_thread(asyncio.run, other()) is before


async def test_handler_of_loop_is_restored() -> None:
    loop, received = asyncio.get_running_loop(), asyncio.Event()
    loop.add_signal_handler(signal.SIGHUP, received.set)
    try:
        flow = await WorkflowEngine.create(backend=NoopExecutionBackend())
        await flow.shutdown()
        os.kill(os.getpid(), signal.SIGHUP)
        await asyncio.wait_for(received.wait(), 5)
    finally:
        loop.remove_signal_handler(signal.SIGHUP)


async def test_handler_installed_later_stays() -> None:
    before = signal.getsignal(signal.SIGHUP)
    calls: list[object] = []
    flow = await WorkflowEngine.create(backend=NoopExecutionBackend())
    signal.signal(signal.SIGHUP, lambda *args: calls.append(args))
    try:
        await flow.shutdown()
        os.kill(os.getpid(), signal.SIGHUP)
        assert len(calls) == 1
    finally:
        signal.signal(signal.SIGHUP, before)


async def test_later_handler_may_call_ours() -> None:
    received = asyncio.Event()
    before = signal.signal(signal.SIGHUP, lambda *_: received.set())
    try:
        flow = await WorkflowEngine.create(backend=NoopExecutionBackend())
        ours: Any = signal.getsignal(signal.SIGHUP)
        signal.signal(signal.SIGHUP, lambda *args: ours(*args))
        await flow.shutdown()
        os.kill(os.getpid(), signal.SIGHUP)
        await asyncio.wait_for(received.wait(), 5)
    finally:
        signal.signal(signal.SIGHUP, before)


async def test_handler_of_loop_installed_later_stays() -> None:
    loop, received = asyncio.get_running_loop(), asyncio.Event()
    flow = await WorkflowEngine.create(backend=NoopExecutionBackend())
    loop.add_signal_handler(signal.SIGHUP, received.set)
    try:
        await flow.shutdown()
        os.kill(os.getpid(), signal.SIGHUP)
        await asyncio.wait_for(received.wait(), 5)
    finally:
        loop.remove_signal_handler(signal.SIGHUP)


SIGNALS_IN_LOOP = """
import asyncio, os, signal, sys, threading
from asyncflow_ext import WorkflowEngine
from rhapsody.backends import NoopExecutionBackend

async def main():
    flow = await WorkflowEngine.create(backend=NoopExecutionBackend())
    os.kill(os.getpid(), signal.SIGTERM)
    await asyncio.wait_for(flow.run(), 10)
    await flow.shutdown()
    print("shut down", flush=True)
    threading.Timer(10, os._exit, (1,)).start()
    os.kill(os.getpid(), signal.SIGTERM)
    await asyncio.sleep(20)

if sys.argv[1] == "uvloop":
    import uvloop
    loop = uvloop.new_event_loop()
else:
    loop = asyncio.new_event_loop()
loop.run_until_complete(main())
"""

SIGNAL_AFTER_LOOP = """
import asyncio, os, signal, time
from asyncflow_ext import WorkflowEngine
from rhapsody.backends import NoopExecutionBackend

async def main():
    return await WorkflowEngine.create(backend=NoopExecutionBackend())

flow = asyncio.run(main())
os.kill(os.getpid(), signal.SIGTERM)
time.sleep(10)
"""


SIGNAL_TO_FORKED_CHILD = """
import asyncio, os, signal, time
from asyncflow_ext import WorkflowEngine
from rhapsody.backends import NoopExecutionBackend

async def main():
    async with WorkflowEngine.create(backend=NoopExecutionBackend()):
        reading, writing = os.pipe()
        child = os.fork()
        if not child:
            os.write(writing, b"1")  # Python drops signals that come during the fork
            time.sleep(20)
            os._exit(3)
        os.read(reading, 1)
        os.kill(child, signal.SIGTERM)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))

asyncio.run(main())
"""


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_signal_ends_engine_and_next_one_the_program(loop: str) -> None:
    if loop == "uvloop":
        pytest.importorskip("uvloop")
    command = [sys.executable, "-c", SIGNALS_IN_LOOP, loop]
    ended = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert (ended.stdout, ended.returncode) == ("shut down\n", -signal.SIGTERM)


def test_signal_ends_child_forked_while_engine_is_open() -> None:
    command = [sys.executable, "-c", SIGNAL_TO_FORKED_CHILD]
    ended = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert ended.stdout == f"{-signal.SIGTERM}\n"


def test_signal_after_end_of_loop_ends_program() -> None:
    command = [sys.executable, "-c", SIGNAL_AFTER_LOOP]
    ended = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert ended.returncode == -signal.SIGTERM


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_engines_of_two_loops_restore_previous_handler(order: tuple[int, int]) -> None:
    before = signal.getsignal(signal.SIGTERM)
    loops = [asyncio.new_event_loop() for _ in range(2)]
    engines = [loop.run_until_complete(create()) for loop in loops]
    for index in order:
        loops[index].run_until_complete(engines[index].shutdown())
    assert signal.getsignal(signal.SIGTERM) is before
    for loop in loops:
        loop.close()


def test_signal_reaches_engines_of_running_loop_only() -> None:
    paused, running = asyncio.new_event_loop(), asyncio.new_event_loop()

    async def raise_signal() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.wait_for(second.run(), 5)

    first = paused.run_until_complete(create())
    second = running.run_until_complete(create())
    running.run_until_complete(raise_signal())
    assert not first._shutdown_event.is_set()
    running.run_until_complete(second.shutdown())
    paused.run_until_complete(first.shutdown())
    paused.close()
    running.close()


def test_signal_while_no_loop_runs_goes_to_previous_handler() -> None:
    calls: list[object] = []
    before = signal.signal(signal.SIGHUP, lambda *args: calls.append(args))
    loop = asyncio.new_event_loop()

    try:
        flow = loop.run_until_complete(create())
        os.kill(os.getpid(), signal.SIGHUP)
        assert len(calls) == 1
        assert not flow._shutdown_event.is_set()
        loop.run_until_complete(flow.shutdown())
    finally:
        signal.signal(signal.SIGHUP, before)
        loop.close()


async def test_ignored_signal_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        async with WorkflowEngine.create(backend=NoopExecutionBackend()) as flow:
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
            os.kill(os.getpid(), signal.SIGHUP)
            await make_task(flow)()
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
