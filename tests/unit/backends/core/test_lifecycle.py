import asyncio
import logging
import subprocess
import sys
import threading
from typing import Any

import pytest

from rhapsody.backends import BaseBackend, Work
from rhapsody.backends.core.attachment import DELIVERIES_PER_PASS
from rhapsody.backends.core.service_loop import service_loop
from rhapsody.errors import BackendError
from rhapsody.testing.owners import FakeEngine
from tests.support.probe import Flag, Held, ProbeBackend, done_at_once, task
from tests.support.waiting import LIMIT_S


@pytest.mark.parametrize("name", ["", 7])
def test_invalid_name_is_refused(name: Any) -> None:
    with pytest.raises(ValueError, match=r"non-empty string, got (''|7)"):
        BaseBackend(name)


def test_default_name_is_class_name() -> None:
    assert BaseBackend().name == "BaseBackend"


async def test_first_task_starts_backend(engine: FakeEngine) -> None:
    backend = ProbeBackend()
    engine.attach(backend)
    assert backend.state() == "IDLE"
    await engine.run(backend, task())
    assert backend.state() == "RUNNING"
    await engine.shutdown(backend)
    assert backend.state() == "STOPPED"


async def test_backend_starts_once() -> None:
    backend = ProbeBackend()
    await asyncio.gather(backend.initialize(), backend.initialize())
    assert await backend is backend
    async with backend as entered:
        assert entered is backend
    assert (backend.starts, backend.stops) == (1, 1)


async def test_failed_start_fails_tasks_and_can_be_repeated(engine: FakeEngine) -> None:
    async def fail_once() -> None:
        if backend.starts == 1:
            raise BackendError("probe", "no licence")

    backend = ProbeBackend(start=fail_once)
    engine.attach(backend)
    first = task("task.1")
    (report,) = await engine.run(backend, first)
    assert (report.state, str(first["exception"])) == ("FAILED", "Backend 'probe': no licence")
    assert backend.state() == "FAILED"
    (report,) = await engine.run(backend, task("task.2"))
    assert report.state == "DONE"
    await engine.shutdown(backend)


async def test_system_exit_in_start_does_not_end_service_loop() -> None:
    async def leave() -> None:
        raise SystemExit(2)

    with pytest.raises(BackendError, match="SystemExit"):
        await ProbeBackend(start=leave)
    await asyncio.wait_for(service_loop().run(asyncio.sleep(0)), LIMIT_S)


async def test_cancelled_initialize_does_not_cancel_start() -> None:
    starting, go = Flag(), Flag()

    async def slowly() -> None:
        starting.set()
        await go.wait()

    backend = ProbeBackend(start=slowly)
    first = asyncio.ensure_future(backend.initialize())
    await starting.wait()
    second = asyncio.ensure_future(backend.initialize())
    first.cancel()
    go.set()
    await second
    assert (backend.starts, backend.state()) == (1, "RUNNING")
    await backend.shutdown()


async def test_shutdown_during_start_cancels_start_and_tasks(engine: FakeEngine) -> None:
    starting, cleaned_up = Flag(), Flag()

    async def for_ever() -> None:
        starting.set()
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            cleaned_up.set()

    backend = ProbeBackend(start=for_ever)
    engine.attach(backend)
    await backend.submit_tasks([task()])
    waiting = asyncio.ensure_future(backend.initialize())
    await starting.wait()
    await engine.shutdown(backend)
    assert cleaned_up.is_set
    assert engine.reports.states("task.000001") == ["CANCELED"]
    with pytest.raises(BackendError, match="shut down while it was starting"):
        await waiting
    assert backend.state() == "STOPPED"


async def test_start_is_cancelled_only_once() -> None:
    starting, cleaned_up = Flag(), Flag()

    async def for_ever() -> None:
        starting.set()
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.01)  # a second cancellation would interrupt this
            cleaned_up.set()

    backend = ProbeBackend(start=for_ever)
    waiting = asyncio.ensure_future(backend.initialize())
    await starting.wait()
    waiting.cancel()
    await asyncio.gather(backend.shutdown(), backend.shutdown())
    assert cleaned_up.is_set


async def test_concurrent_shutdowns_stop_once() -> None:
    backend = await ProbeBackend()
    await asyncio.gather(backend.shutdown(), backend.shutdown())
    await backend.shutdown()
    assert backend.stops == 1


async def test_cancelled_shutdown_call_does_not_cancel_shutdown() -> None:
    stopping, stop, stopped = Flag(), Flag(), Flag()

    async def slowly() -> None:
        stopping.set()
        await stop.wait()
        stopped.set()

    backend = await ProbeBackend(stop=slowly)
    shutdown = asyncio.ensure_future(backend.shutdown())
    await stopping.wait()
    shutdown.cancel()
    stop.set()
    await stopped.wait()
    await backend.shutdown()
    assert (backend.stops, backend.state()) == (1, "STOPPED")


async def test_backend_restarts_after_shutdown(engine: FakeEngine) -> None:
    backend = ProbeBackend()
    engine.attach(backend)
    for uid in ("task.1", "task.2"):
        (report,) = await engine.run(backend, task(uid))
        assert report.state == "DONE"
        await backend.shutdown()
    assert (backend.starts, backend.stops) == (2, 2)


async def stopping_slowly(engine: FakeEngine) -> tuple[ProbeBackend, Flag, Flag]:
    """Return a backend, the flag that its `stop` sets, and the flag that `stop` waits for."""
    stopping, stop = Flag(), Flag()

    async def slowly() -> None:
        stopping.set()
        await stop.wait()

    backend = await ProbeBackend(stop=slowly)
    engine.attach(backend)
    return backend, stopping, stop


async def test_task_submitted_during_shutdown_runs_after_restart(
    engine: FakeEngine,
) -> None:
    backend, stopping, stop = await stopping_slowly(engine)
    shutdown = asyncio.ensure_future(backend.shutdown())
    await stopping.wait()
    await backend.submit_tasks([task()])
    stop.set()
    await shutdown
    assert (await engine.reports.end("task.000001")).state == "DONE"
    await engine.shutdown(backend)


async def test_second_shutdown_cancels_tasks_submitted_during_first(engine: FakeEngine) -> None:
    backend, stopping, stop = await stopping_slowly(engine)
    first = asyncio.ensure_future(backend.shutdown())
    await stopping.wait()
    await backend.submit_tasks([task()])
    second = asyncio.ensure_future(backend.shutdown())
    assert (await engine.reports.end("task.000001")).state == "CANCELED"
    stop.set()
    await asyncio.gather(first, second)
    assert (backend.starts, backend.state()) == (1, "STOPPED")


async def test_exception_in_stop_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def fail() -> None:
        raise OSError("the runtime has gone")

    backend = await ProbeBackend(stop=fail)
    await backend.shutdown()
    assert "the runtime has gone" in caplog.text
    assert backend.state() == "FAILED"


async def test_shutdown_returns_after_delivery_of_all_reports(
    engine: FakeEngine,
) -> None:
    held = Held()
    backend = ProbeBackend(held)
    engine.attach(backend)
    uids = [f"task.{n}" for n in range(3 * DELIVERIES_PER_PASS)]
    await backend.submit_tasks([task(uid) for uid in uids])
    await held.inside.wait()
    await engine.shutdown(backend)
    assert len(engine.reports.log) == len(uids)
    assert {report.state for report in engine.reports.log} == {"CANCELED"}


async def test_backend_works_while_caller_blocks(engine: FakeEngine) -> None:
    ended = threading.Event()

    async def execute(work: Work) -> dict[str, Any]:
        ended.set()
        return await done_at_once(work)

    backend = await ProbeBackend(execute)
    engine.attach(backend)
    await backend.submit_tasks([task()])
    assert ended.wait(LIMIT_S)  # blocks this thread, and its loop
    await engine.reports.end("task.000001")
    await engine.shutdown(backend)


async def test_start_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "rhapsody.backends.core.lifecycle"):
        backend = await ProbeBackend()
    assert "backend 'probe' is running" in caplog.text
    await backend.shutdown()


FORKED = """
import os, sys, warnings
from rhapsody import Session
from rhapsody.backends import ConcurrentExecutionBackend
from rhapsody.errors import BackendError, SessionError

warnings.simplefilter("ignore", DeprecationWarning)  # fork beside threads
backend = ConcurrentExecutionBackend("process", max_workers=1)
with Session([backend]) as session:
    assert session.submit(abs, -1).result() == 1
    child = os.fork()
    if child == 0:
        try:
            session.submit(abs, -1)
        except SessionError as error:
            print(error, flush=True)
        sys.exit(3)  # leaves the block
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3
    assert session.submit(abs, -2).result(timeout=20) == 2
"""


def test_forked_child_leaves_session_and_backend_to_the_parent() -> None:
    run = subprocess.run(
        [sys.executable, "-c", FORKED], capture_output=True, text=True, timeout=50, check=True
    )
    assert "from which this process was forked; make a session and backends in each" in run.stdout
    assert run.stderr == ""


FORKED_BACKEND = """
import asyncio, os, warnings
from rhapsody.backends import ConcurrentExecutionBackend
from rhapsody.errors import BackendError

warnings.simplefilter("ignore", DeprecationWarning)  # fork beside threads
backend = ConcurrentExecutionBackend()
asyncio.run(backend.initialize())
child = os.fork()
if child == 0:
    asyncio.run(backend.shutdown())
    try:
        asyncio.run(backend.initialize())
    except BackendError as error:
        os._exit("forked" in str(error))
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1
asyncio.run(backend.shutdown())
"""


def test_forked_child_cannot_use_the_backend_of_the_parent() -> None:
    subprocess.run([sys.executable, "-c", FORKED_BACKEND], timeout=50, check=True)
