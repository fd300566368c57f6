import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from rhapsody.backends import NoopExecutionBackend, Work
from rhapsody.backends.core.reports import TaskReports
from rhapsody.testing.owners import FakeEngine
from tests.support.probe import ProbeBackend, task


def test_backend_implements_the_protocol() -> None:
    reports: TaskReports = NoopExecutionBackend()
    for method in ("report_running", "report_done", "report_failed", "report_cancelled"):
        assert callable(getattr(reports, method))


@pytest.mark.parametrize(
    ("report", "state"),
    [
        (lambda reports, work: reports.report_done(work, {"return_value": 1}), "DONE"),
        (lambda reports, work: reports.report_failed(work, ValueError("no")), "FAILED"),
        (lambda reports, work: reports.report_cancelled(work), "CANCELED"),
    ],
)
async def test_first_end_is_reported_and_later_ones_are_dropped(
    report: Callable[[TaskReports, Work], bool], state: str, engine: FakeEngine
) -> None:
    accepted: list[bool] = []

    async def execute(work: Work) -> dict[str, Any]:
        accepted.append(report(backend, work))
        accepted.append(backend.report_done(work, {}))
        await asyncio.sleep(0)
        return {"return_value": 2}

    backend = ProbeBackend(execute)
    engine.attach(backend)
    (end,) = await engine.run(backend, task())
    await engine.shutdown(backend)
    assert accepted == [True, False]
    assert end.state == state
    assert engine.reports.states("task.000001") == [state]
