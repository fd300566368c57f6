"""One owner's time with a backend: who gets it, and what of an earlier one is left."""

import asyncio
import gc
import weakref
from pathlib import Path
from typing import Any

import pytest

from rhapsody.api.errors import BackendInUseError
from rhapsody.backends import NoopExecutionBackend, Work
from rhapsody.testing.owners import FakeEngine, Reports
from tests.support.probe import Flag, Held, ProbeBackend, done_at_once, task


async def test_a_second_owner_is_refused_while_the_first_is_open(
    engine: FakeEngine, other: FakeEngine
) -> None:
    backend = NoopExecutionBackend()
    engine.attach(backend)
    with pytest.raises(BackendInUseError, match=r"'noop'.*FakeEngine engine\.1") as caught:
        other.attach(backend)
    assert caught.value.backend_name == "noop"


async def test_a_refused_owner_leaves_everything_as_it_was(
    engine: FakeEngine, other: FakeEngine
) -> None:
    backend = NoopExecutionBackend()
    engine.attach(backend)
    before = backend._work_dir, list(backend.attached_to), backend._callback_func
    with pytest.raises(BackendInUseError):
        other.attach(backend)
    assert (backend._work_dir, backend.attached_to, backend._callback_func) == before
    (report,) = await engine.run(backend, task())
    assert report.state == "DONE"


async def test_the_same_owner_may_register_again(engine: FakeEngine) -> None:
    backend = NoopExecutionBackend()
    engine.attach(backend)
    engine.attach(backend)
    (report,) = await engine.run(backend, task())
    assert report.state == "DONE"


@pytest.mark.parametrize("skip_execution_backend", [False, True])
async def test_another_engine_may_attach_after_shutdown(
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


async def test_an_owner_that_says_it_is_closed_makes_room(other: FakeEngine) -> None:
    class Owner:
        closed = False

        def on_state(self, task: Any, state: str) -> None: ...

    backend, owner = NoopExecutionBackend(), Owner()
    backend.register_callback(owner.on_state)
    with pytest.raises(BackendInUseError):
        other.attach(backend)
    owner.closed = True
    other.attach(backend)


async def test_a_released_owner_makes_room(engine: FakeEngine, other: FakeEngine) -> None:
    backend = NoopExecutionBackend()
    engine.attach(backend)
    backend.release(other)  # not its to release
    with pytest.raises(BackendInUseError):
        other.attach(backend)
    backend.release(engine)
    other.attach(backend)


async def test_a_forgotten_owner_is_not_kept_alive_and_makes_room(
    tmp_path: Path, other: FakeEngine
) -> None:
    backend = NoopExecutionBackend()
    engine = FakeEngine(tmp_path)
    engine.attach(backend)
    gone = weakref.ref(engine)
    del engine
    gc.collect()
    assert gone() is None
    other.attach(backend)


def test_an_owner_whose_loop_is_closed_makes_room(tmp_path: Path) -> None:
    backend = NoopExecutionBackend()

    async def attach() -> FakeEngine:
        engine = FakeEngine(tmp_path)
        engine.attach(backend)
        return engine

    first = asyncio.run(attach())
    second = asyncio.run(attach())
    assert backend._callback_func == second.task_callbacks != first.task_callbacks


async def test_a_later_owner_cancels_what_an_earlier_one_left_and_reports_nothing(
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


async def test_what_was_left_before_it_began_is_let_go_as_well(
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


async def test_a_plain_callback_takes_over_the_tasks_of_the_one_before() -> None:
    held, first, second = Held(), Reports(), Reports()
    backend = ProbeBackend(held)
    backend.register_callback(first.callback)
    await backend.submit_tasks([task()])
    await held.inside.wait()
    backend.register_callback(second.callback)
    await backend.shutdown()
    assert first.log == []
    assert [report.state for report in second.log] == ["CANCELED"]


async def test_the_callback_can_be_set_as_an_attribute() -> None:
    backend, reports = NoopExecutionBackend(), Reports()
    backend._callback_func = None
    backend._callback_func = reports.callback
    await backend.submit_tasks([task()])
    assert (await reports.end("task.000001")).state == "DONE"


async def test_a_task_keeps_the_directory_of_its_own_owner(
    engine: FakeEngine, other: FakeEngine
) -> None:
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


async def test_one_that_attaches_during_a_shutdown_is_open_after_it(
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
