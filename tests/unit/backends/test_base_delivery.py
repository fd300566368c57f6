import asyncio
import threading
from functools import partial
from typing import Any

import pytest

from rhapsody.backends import NoopExecutionBackend, Work
from rhapsody.backends.core.attachment import DELIVERIES_PER_PASS
from rhapsody.backends.core.service_loop import service_loop
from rhapsody.testing.owners import FakeEngine, Reports
from tests.support.probe import Held, ProbeBackend, done_at_once, task
from tests.support.waiting import LIMIT_S


async def test_many_results_wake_owner_once(monkeypatch: pytest.MonkeyPatch) -> None:
    backend, reports = await ProbeBackend(), Reports()
    backend.register_callback(reports.callback)
    loop = asyncio.get_running_loop()
    call_soon_threadsafe = loop.call_soon_threadsafe
    wakes = []

    def count(callback: Any, *args: Any, **kwargs: Any) -> asyncio.Handle:
        wakes.append(callback)
        return call_soon_threadsafe(callback, *args, **kwargs)

    monkeypatch.setattr(loop, "call_soon_threadsafe", count)
    tasks = [task(f"task.{n}") for n in range(300)]
    await backend.submit_tasks(tasks)
    # This blocks the owner's loop until the service loop has finished all tasks.
    service_loop().run_blocking(asyncio.sleep(0))
    while backend._works:
        service_loop().run_blocking(asyncio.sleep(0))
    for one in tasks:
        await reports.end(one["uid"])
    assert len(wakes) == 1
    await backend.shutdown()


async def test_delivery_yields_to_loop() -> None:
    backend = NoopExecutionBackend()
    seen, at_turn = [], []
    backend.register_callback(lambda task, state: seen.append(task["uid"]))
    await backend.submit_tasks([task(f"task.{n}") for n in range(2 * DELIVERIES_PER_PASS)])
    while len(seen) < 2 * DELIVERIES_PER_PASS:
        await asyncio.sleep(0)
        at_turn.append(len(seen))
    assert DELIVERIES_PER_PASS in at_turn


async def test_calls_and_states_are_delivered_in_order() -> None:
    seen: list[Any] = []

    async def execute(work: Work) -> dict[str, Any]:
        report_running(work)
        for piece in "ab":
            work.attachment.call(partial(seen.append, piece))
        return await done_at_once(work)

    backend = ProbeBackend(execute)
    report_running = backend.report_running
    ended = asyncio.Event()

    def report(task: Any, state: str) -> None:
        seen.append(state)
        if state == "DONE":
            ended.set()

    backend.register_callback(report)
    await backend.submit_tasks([task()])
    await asyncio.wait_for(ended.wait(), LIMIT_S)
    assert seen == ["RUNNING", "a", "b", "DONE"]
    await backend.shutdown()


async def test_result_from_other_thread_is_delivered_in_owner_thread(engine: FakeEngine) -> None:
    async def execute(work: Work) -> dict[str, Any]:
        reporter = threading.Thread(target=backend.report_done, args=(work, {"return_value": 1}))
        reporter.start()
        return await done_at_once(work)

    backend = ProbeBackend(execute)
    engine.attach(backend)
    (report,) = await engine.run(backend, task())
    assert report.thread == threading.get_ident()
    await engine.shutdown(backend)
    assert len(engine.reports.terminal("task.000001")) == 1


async def test_running_is_reported_once_and_before_end(engine: FakeEngine) -> None:
    works = []

    async def execute(work: Work) -> dict[str, Any]:
        works.append(work)
        backend.report_running(work)
        backend.report_running(work)
        return await done_at_once(work)

    backend = ProbeBackend(execute)
    engine.attach(backend)
    await engine.run(backend, task())
    backend.report_running(works[0])
    await engine.shutdown(backend)
    assert engine.reports.states("task.000001") == ["RUNNING", "DONE"]


async def test_exception_in_callback_does_not_stop_delivery(
    caplog: pytest.LogCaptureFixture,
) -> None:
    reports = Reports()

    def callback(task: Any, state: str) -> None:
        reports.callback(task, state)
        raise RuntimeError("the owner has a bug")

    backend = NoopExecutionBackend()
    backend.register_callback(callback)
    await backend.submit_tasks([task("task.1"), task("task.2")])
    await reports.end("task.1")
    await reports.end("task.2")
    assert "the owner has a bug" in caplog.text


def test_owner_registered_without_loop_gets_reports_on_submitting_loop() -> None:
    backend, reports = ProbeBackend(), Reports()
    backend.register_callback(reports.callback)

    async def submit() -> None:
        await backend.submit_tasks([task()])
        await reports.end("task.000001")
        await backend.shutdown()

    asyncio.run(submit())
    assert reports.states("task.000001") == ["DONE"]


def test_reports_for_closed_loop_are_delivered_on_next_loop() -> None:
    held, reports = Held(), Reports()
    backend = ProbeBackend(held)
    backend.register_callback(reports.callback)

    async def submit_only() -> None:
        await backend.submit_tasks([task("task.1"), task("task.2")])
        await held.inside.wait()

    async def submit_and_wait() -> None:
        await backend.submit_tasks([task("task.3")])
        for uid in ("task.1", "task.2", "task.3"):
            await reports.end(uid)
        await backend.shutdown()

    asyncio.run(submit_only())
    held.go.set()
    while backend._works:
        service_loop().run_blocking(asyncio.sleep(0))
    asyncio.run(submit_and_wait())
    assert {report.state for report in reports.log} == {"DONE"}
