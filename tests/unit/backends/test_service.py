"""The service loop: one for the process, never in the caller's way."""

import asyncio
import os
import subprocess
import sys
import threading

import pytest

from rhapsody.backends.service import THREAD_NAME, ServiceLoop, service_loop


async def thread_name() -> str:
    return threading.current_thread().name


async def test_a_coroutine_runs_on_its_thread_and_is_awaited_on_the_callers() -> None:
    assert await service_loop().run(thread_name()) == THREAD_NAME
    assert threading.current_thread().name != THREAD_NAME


async def test_from_the_loop_itself_a_coroutine_is_awaited_directly() -> None:
    async def nested() -> str:
        return await service_loop().run(thread_name())

    assert await service_loop().run(nested()) == THREAD_NAME


def test_a_blocking_call_needs_no_loop() -> None:
    assert service_loop().run_blocking(thread_name()) == THREAD_NAME


async def test_a_blocking_call_from_the_loop_itself_is_refused() -> None:
    async def nested() -> str:
        return service_loop().run_blocking(thread_name())

    with pytest.raises(RuntimeError, match="would wait for itself"):
        await service_loop().run(nested())


async def test_an_exception_reaches_the_caller() -> None:
    async def fail() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await service_loop().run(fail())


async def test_cancelling_the_caller_cancels_the_coroutine() -> None:
    begun, cancelled = threading.Event(), threading.Event()

    async def wait() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    caller = asyncio.ensure_future(service_loop().run(wait()))
    assert await asyncio.to_thread(begun.wait, 20)
    caller.cancel()
    assert await asyncio.to_thread(cancelled.wait, 20)


def test_there_is_one_for_all_threads() -> None:
    found: list[ServiceLoop] = []
    threads = [threading.Thread(target=lambda: found.append(service_loop())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(found) == {service_loop()}


def test_it_works_while_the_callers_thread_is_blocked() -> None:
    done = threading.Event()
    service_loop().call(done.set)
    assert done.wait(20)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_gets_one_of_its_own() -> None:
    script = """
import asyncio, os
from rhapsody.backends.service import service_loop
async def pid(): return os.getpid()
assert service_loop().run_blocking(pid()) == os.getpid()
child = os.fork()
if child == 0:
    os._exit(0 if service_loop().run_blocking(pid()) == os.getpid() else 1)
assert os.waitpid(child, 0)[1] == 0
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=50)
