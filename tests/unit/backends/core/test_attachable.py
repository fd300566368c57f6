import asyncio
import gc
import weakref
from pathlib import Path
from typing import Any

import pytest

from rhapsody.backends import NoopExecutionBackend, Work
from rhapsody.backends.protocol import TaskCallback
from rhapsody.errors import BackendInUseError
from rhapsody.testing.owners import FakeEngine, Reports
from tests.support.probe import Flag, Held, ProbeBackend, done_at_once, task


async def test_second_owner_is_refused_while_first_is_open(
    engine: FakeEngine, other: FakeEngine
) -> None:
    backend = NoopExecutionBackend()
    engine.attach(backend)
    with pytest.raises(BackendInUseError, match=r"'noop'.*FakeEngine engine\.1") as caught:
        other.attach(backend)
    assert caught.value.backend_name == "noop"


async def test_refused_owner_changes_nothing(engine: FakeEngine, other: FakeEngine) -> None:
    backend = NoopExecutionBackend()
    engine.attach(backend)
    before = backend._work_dir, list(backend.attached_to), backend._callback_func
    with pytest.raises(BackendInUseError):
        other.attach(backend)
    assert (backend._work_dir, backend.attached_to, backend._callback_func) == before
    (report,) = await engine.run(backend, task())
    assert report.state == "DONE"


async def test_same_owner_can_register_again(engine: FakeEngine) -> None:
    backend = NoopExecutionBackend()
    engine.attach(backend)
    engine.attach(backend)
    (report,) = await engine.run(backend, task())
    assert report.state == "DONE"


@pytest.mark.parametrize("skip_execution_backend", [False, True])
async def test_second_engine_attaches_after_shutdown_of_first(
    skip_execution_backend: bool, engine: FakeEngine, other: FakeEngine
) -> None:
    backend = ProbeBackend()
    engine.attach(backend)
    if skip_execution_backend:
        engine.close()
    else:
        await engine.shutdown(backend)
    other.attach(backend)
    (report,) = await other.run(backend, task())
    assert report.state == "DONE"
    await backend.shutdown()


async def test_second_owner_attaches_after_first_is_closed(other: FakeEngine) -> None:
    class Owner:
        closed = False

        def on_state(self, task: Any, state: str) -> None: ...

    backend, owner = NoopExecutionBackend(), Owner()
    backend.register_callback(owner.on_state)
    with pytest.raises(BackendInUseError):
        other.attach(backend)
    owner.closed = True
    other.attach(backend)


async def test_second_owner_attaches_after_detach(engine: FakeEngine, other: FakeEngine) -> None:
    backend = NoopExecutionBackend()
    engine.attach(backend)
    backend.detach(other)  # not the owner
    with pytest.raises(BackendInUseError):
        other.attach(backend)
    backend.detach(engine)
    other.attach(backend)


async def test_backend_does_not_keep_owner_alive(tmp_path: Path, other: FakeEngine) -> None:
    backend = NoopExecutionBackend()
    engine = FakeEngine(tmp_path)
    engine.attach(backend)
    gone = weakref.ref(engine)
    del engine
    gc.collect()
    assert gone() is None
    other.attach(backend)


def test_second_owner_attaches_after_loop_of_first_is_closed(tmp_path: Path) -> None:
    backend = NoopExecutionBackend()

    async def attach() -> FakeEngine:
        engine = FakeEngine(tmp_path)
        engine.attach(backend)
        return engine

    first = asyncio.run(attach())
    second = asyncio.run(attach())
    assert backend._callback_func == second.task_callbacks != first.task_callbacks


async def test_tasks_of_earlier_owner_are_cancelled_without_report(
    engine: FakeEngine, other: FakeEngine
) -> None:
    held = Held()
    backend = ProbeBackend(held)
    engine.attach(backend)
    await backend.submit_tasks([task()])
    await held.inside.wait()
    engine.close()
    other.attach(backend)
    await held.cleaned_up.wait()
    await other.shutdown(backend)
    assert engine.reports.log == other.reports.log == []


async def test_unstarted_tasks_of_earlier_owner_are_released(
    engine: FakeEngine, other: FakeEngine
) -> None:
    class Described(dict[str, Any]):
        """A dict that takes weak references."""

    backend = await ProbeBackend()
    engine.attach(backend)
    left = Described(task())
    kept = weakref.ref(left)
    await backend.submit_tasks([left])
    engine.close()
    other.attach(backend)
    del left
    await backend.submit_tasks([task()])
    await other.reports.end("task.000001")
    gc.collect()
    assert kept() is None
    await backend.shutdown()


async def test_plain_callback_takes_over_tasks_of_earlier_callback() -> None:
    held, first, second = Held(), Reports(), Reports()
    backend = ProbeBackend(held)
    backend.register_callback(first.callback)
    await backend.submit_tasks([task()])
    await held.inside.wait()
    backend.register_callback(second.callback)
    await backend.shutdown()
    assert first.log == []
    assert [report.state for report in second.log] == ["CANCELED"]


async def test_callback_can_be_assigned() -> None:
    backend, reports = NoopExecutionBackend(), Reports()
    backend._callback_func = None
    backend._callback_func = reports.callback
    await backend.submit_tasks([task()])
    assert (await reports.end("task.000001")).state == "DONE"


async def test_task_keeps_work_dir_of_its_owner(engine: FakeEngine, other: FakeEngine) -> None:
    directories = []

    async def execute(work: Work) -> dict[str, Any]:
        directories.append(work.work_dir)
        return await done_at_once(work)

    backend = ProbeBackend(execute)
    for owner in (engine, other):
        owner.attach(backend)
        await owner.run(backend, task())
        await owner.shutdown(backend)
    assert [Path(directory).name for directory in directories] == ["engine.1", "engine.2"]


async def test_owner_attached_during_shutdown_stays_attached(
    engine: FakeEngine, other: FakeEngine, tmp_path: Path
) -> None:
    stopping, stop = Flag(), Flag()

    async def slowly() -> None:
        stopping.set()
        await stop.wait()

    backend = await ProbeBackend(stop=slowly)
    engine.attach(backend)
    shutdown = asyncio.ensure_future(engine.shutdown(backend))
    await stopping.wait()
    other.attach(backend)
    stop.set()
    await shutdown
    with pytest.raises(BackendInUseError):
        FakeEngine(tmp_path, "engine.3").attach(backend)


def test_register_callback_of_a_subclass_may_assign_the_callback() -> None:
    class Assigning(NoopExecutionBackend):
        def register_callback(self, func: TaskCallback) -> None:
            self._callback_func = func

    def callback(task: Any, state: str) -> None:
        pass

    backend = Assigning()
    backend.register_callback(callback)
    assert backend._callback_func == callback


async def test_shutdown_releases_the_backend_from_its_open_owner(
    engine: FakeEngine, other: FakeEngine
) -> None:
    backend = NoopExecutionBackend()
    engine.attach(backend)
    await backend.initialize()
    await backend.shutdown()
    other.attach(backend)
    await backend.shutdown()
