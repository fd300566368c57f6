import asyncio
import os
import subprocess
import sys
import textwrap
import threading

import pytest

from rhapsody.backends.core.service_loop import THREAD_NAME, ServiceLoop, service_loop
from tests.support.waiting import until_blocking


async def thread_name() -> str:
    return threading.current_thread().name


async def test_run_uses_service_thread() -> None:
    assert await service_loop().run(thread_name()) == THREAD_NAME
    assert threading.current_thread().name != THREAD_NAME


def test_loop_is_not_the_one_of_the_policy(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> asyncio.AbstractEventLoop:
        raise NotImplementedError

    monkeypatch.setattr(asyncio, "new_event_loop", fail)
    service = ServiceLoop()
    assert service.run_blocking(thread_name()) == THREAD_NAME
    assert type(service.loop) is asyncio.SelectorEventLoop
    service.call(service.loop.stop)
    until_blocking(lambda: not service.loop.is_running())
    service.loop.close()


async def test_run_on_service_loop_awaits_directly() -> None:
    async def nested() -> str:
        return await service_loop().run(thread_name())

    assert await service_loop().run(nested()) == THREAD_NAME


def test_run_blocking_needs_no_running_loop() -> None:
    assert service_loop().run_blocking(thread_name()) == THREAD_NAME


async def test_run_blocking_on_service_loop_is_refused() -> None:
    async def nested() -> str:
        return service_loop().run_blocking(thread_name())

    with pytest.raises(RuntimeError, match="would deadlock"):
        await service_loop().run(nested())


async def test_exception_reaches_caller() -> None:
    async def fail() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await service_loop().run(fail())


async def test_cancelling_caller_cancels_coroutine() -> None:
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


def test_all_threads_share_one_loop() -> None:
    found: list[ServiceLoop] = []
    threads = [threading.Thread(target=lambda: found.append(service_loop())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(found) == {service_loop()}


def test_loop_runs_while_caller_blocks() -> None:
    done = threading.Event()
    service_loop().call(done.set)
    assert done.wait(20)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_forked_child_has_its_own_loop() -> None:
    script = """
import asyncio, os
from rhapsody.backends.core.service_loop import service_loop
async def pid(): return os.getpid()
assert service_loop().run_blocking(pid()) == os.getpid()
child = os.fork()
if child == 0:
    os._exit(0 if service_loop().run_blocking(pid()) == os.getpid() else 1)
assert os.waitpid(child, 0)[1] == 0
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=50)


MADE_LATE = """
def late():
    session = Session([get_backend("concurrent")])
"""

STARTED_LATE = """
session = Session([get_backend("concurrent")])

def late():
    session.submit(int, 3).result()
"""

OPEN = """
session = Session([get_backend("concurrent")])
assert session.submit(int, 3).result() == 3

def late():
    session.submit(int, 3).result()
"""

END = """
def main():
    threading.main_thread().join()
    try:
        late()
    except RhapsodyError as error:
        print(error)

threading.Thread(target=main).start()
"""


@pytest.mark.parametrize("program", [MADE_LATE, STARTED_LATE, OPEN])
def test_use_after_the_end_of_the_main_thread_is_refused_in_one_sentence(program: str) -> None:
    begin = """
    import threading
    from rhapsody import RhapsodyError, Session, get_backend
    """
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(begin) + program + END],
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert run.stdout.startswith("the main thread of this program has ended"), run
    assert run.stderr == ""
