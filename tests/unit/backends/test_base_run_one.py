import asyncio
from typing import Any

import pytest

from rhapsody.backends import BaseBackend, NoopExecutionBackend
from rhapsody.backends.core.execution import Execution
from rhapsody.errors import TaskCancelledError, UnsupportedTaskError
from rhapsody.testing.owners import FakeEngine
from tests.support.probe import Held, ProbeBackend, task


async def test_run_one_returns_result_fields() -> None:
    fields = await NoopExecutionBackend().run_one({"prompt": ["a", "b"]})
    assert isinstance(fields.pop("execution"), Execution)
    assert fields == {
        "response": ["", ""],
        "stdout": ["", ""],
        "return_value": ["", ""],
    }


async def test_run_one_raises_exception_of_task() -> None:
    class Failing(BaseBackend):
        async def execute(self, work: Any) -> dict[str, Any]:
            raise OSError("no disk")

    with pytest.raises(OSError, match="no disk"):
        await Failing().run_one({"function": print})


async def test_run_one_refuses_unsupported_kind() -> None:
    with pytest.raises(UnsupportedTaskError, match="cannot run a prompt task"):
        await BaseBackend().run_one({"prompt": "hello"})


async def test_run_one_is_not_reported_to_owner(engine: FakeEngine) -> None:
    backend = NoopExecutionBackend()
    engine.attach(backend)
    await backend.run_one({"prompt": "hello"})
    assert engine.reports.log == []


async def test_cancelling_run_one_stops_task() -> None:
    held = Held()
    backend = ProbeBackend(held)
    running = asyncio.ensure_future(backend.run_one(task()))
    await held.inside.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    await held.cleaned_up.wait()
    await backend.shutdown()


async def test_shutdown_cancels_run_one() -> None:
    held = Held()
    backend = ProbeBackend(held)
    running = asyncio.ensure_future(backend.run_one(task()))
    await held.inside.wait()
    await backend.shutdown()
    with pytest.raises(TaskCancelledError):
        await running
