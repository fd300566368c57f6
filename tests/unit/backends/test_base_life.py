"""Start and shutdown of any backend."""

import asyncio
import logging
import threading
from typing import Any

import pytest

from rhapsody.api.errors import BackendError
from rhapsody.backends import Work
from rhapsody.backends.attachment import DELIVERIES_PER_PASS
from rhapsody.backends.service import service_loop
from rhapsody.testing.owners import FakeEngine
from tests.support.probe import Flag, Held, ProbeBackend, done_at_once, task
from tests.support.waiting import LIMIT_S


async def test_it_starts_by_itself_at_the_first_task(engine: FakeEngine) -> None:
    backend = ProbeBackend()
    engine.attach(backend)
    assert backend.state() == "IDLE"
    await engine.run(backend, task())
    assert backend.state() == "RUNNING"
    await engine.shutdown(backend)
    assert backend.state() == "STOPPED"


async def test_awaiting_initialising_and_entering_start_it_once() -> None:
    backend = ProbeBackend()
    await asyncio.gather(backend.initialize(), backend.initialize())
    assert await backend is backend
    async with backend as entered:
        assert entered is backend
    assert (backend.starts, backend.stops) == (1, 1)


async def test_a_failed_start_fails_its_tasks_and_a_later_one_works(engine: FakeEngine) -> None:
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


async def test_a_start_that_exits_ends_nothing_else() -> None:
    async def leave() -> None:
        raise SystemExit(2)

    with pytest.raises(BackendError, match="SystemExit"):
        await ProbeBackend(start=leave)
    await asyncio.wait_for(service_loop().run(asyncio.sleep(0)), LIMIT_S)


async def test_a_caller_that_gives_up_does_not_end_the_start_for_others() -> None:
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


async def test_a_shutdown_ends_the_start_and_cancels_its_tasks(engine: FakeEngine) -> None:
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


async def test_giving_up_on_a_start_and_shutting_down_cleans_up_in_full() -> None:
    starting, cleaned_up = Flag(), Flag()

    async def for_ever() -> None:
        starting.set()
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.01)  # a second cancellation would strike here
            cleaned_up.set()

    backend = ProbeBackend(start=for_ever)
    waiting = asyncio.ensure_future(backend.initialize())
    await starting.wait()
    waiting.cancel()
    await asyncio.gather(backend.shutdown(), backend.shutdown())
    assert cleaned_up.is_set


async def test_two_shutdowns_at_once_are_one() -> None:
    backend = await ProbeBackend()
    await asyncio.gather(backend.shutdown(), backend.shutdown())
    await backend.shutdown()
    assert backend.stops == 1


async def test_a_caller_that_gives_up_does_not_end_the_shutdown() -> None:
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


async def test_it_starts_again_after_a_shutdown(engine: FakeEngine) -> None:
    backend = ProbeBackend()
    engine.attach(backend)
    for uid in ("task.1", "task.2"):
        (report,) = await engine.run(backend, task(uid))
        assert report.state == "DONE"
        await backend.shutdown()
    assert (backend.starts, backend.stops) == (2, 2)


async def stopping_slowly(engine: FakeEngine) -> tuple[ProbeBackend, Flag, Flag]:
    """A backend, the flag that its stop sets, and the one that its stop waits for."""
    stopping, stop = Flag(), Flag()

    async def slowly() -> None:
        stopping.set()
        await stop.wait()

    backend = await ProbeBackend(stop=slowly)
    engine.attach(backend)
    return backend, stopping, stop


async def test_a_task_that_comes_during_a_shutdown_waits_for_the_next_start(
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


async def test_a_second_shutdown_ends_what_came_since_the_first_began(engine: FakeEngine) -> None:
    backend, stopping, stop = await stopping_slowly(engine)
    first = asyncio.ensure_future(backend.shutdown())
    await stopping.wait()
    await backend.submit_tasks([task()])
    second = asyncio.ensure_future(backend.shutdown())
    assert (await engine.reports.end("task.000001")).state == "CANCELED"
    stop.set()
    await asyncio.gather(first, second)
    assert (backend.starts, backend.state()) == (1, "STOPPED")


async def test_a_stop_that_raises_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def fail() -> None:
        raise OSError("the runtime has gone")

    backend = await ProbeBackend(stop=fail)
    await backend.shutdown()
    assert "the runtime has gone" in caplog.text
    assert backend.state() == "FAILED"


async def test_when_shutdown_returns_every_owner_has_been_told_everything(
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


async def test_a_blocked_caller_does_not_hold_up_the_backend(engine: FakeEngine) -> None:
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


async def test_state_changes_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "rhapsody.backends.lifecycle"):
        backend = await ProbeBackend()
    assert "backend 'probe' is running" in caplog.text
    await backend.shutdown()
