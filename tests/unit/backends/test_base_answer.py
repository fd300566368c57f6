"""`answer` of any backend: one task, for whoever awaits it."""

import asyncio
from typing import Any

import pytest

from rhapsody.api.errors import TaskCancelledError, UnsupportedTaskError
from rhapsody.backends import BaseBackend, NoopExecutionBackend
from rhapsody.testing.owners import FakeEngine
from tests.support.probe import Held, ProbeBackend, task


async def test_it_returns_the_result_fields() -> None:
    assert await NoopExecutionBackend().answer({"prompt": ["a", "b"]}) == {
        "response": ["", ""],
        "stdout": ["", ""],
        "return_value": ["", ""],
    }


async def test_it_raises_what_the_task_failed_with() -> None:
    class Failing(BaseBackend):
        async def execute(self, work: Any) -> dict[str, Any]:
            raise OSError("no disk")

    with pytest.raises(OSError, match="no disk"):
        await Failing().answer({"function": print})


async def test_it_refuses_what_the_backend_cannot_run() -> None:
    with pytest.raises(UnsupportedTaskError, match="cannot run a prompt task"):
        await BaseBackend().answer({"prompt": "hello"})


async def test_the_owner_hears_nothing_of_it(engine: FakeEngine) -> None:
    backend = NoopExecutionBackend()
    engine.attach(backend)
    await backend.answer({"prompt": "hello"})
    assert engine.reports.log == []


async def test_cancelling_it_stops_the_work() -> None:
    held = Held()
    backend = ProbeBackend(held)
    answering = asyncio.ensure_future(backend.answer(task()))
    await held.inside.wait()
    answering.cancel()
    with pytest.raises(asyncio.CancelledError):
        await answering
    await held.cleaned_up.wait()
    await backend.shutdown()


async def test_a_shutdown_ends_it() -> None:
    held = Held()
    backend = ProbeBackend(held)
    answering = asyncio.ensure_future(backend.answer(task()))
    await held.inside.wait()
    await backend.shutdown()
    with pytest.raises(TaskCancelledError):
        await answering
