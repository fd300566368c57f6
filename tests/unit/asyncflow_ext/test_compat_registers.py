"""The registers of components and resolved uids, during and after the life of a component."""

import asyncio
import gc
from typing import Any

import pytest

from asyncflow_ext import WorkflowEngine, compat
from tests.support.engines import make_task
from tests.support.scripted import ScriptedBackend
from tests.support.waiting import until

pytestmark = pytest.mark.asyncflow


async def test_components_can_be_read_after_their_end(engine: WorkflowEngine, number: Any) -> None:
    first = number(1)
    second = number(first)
    assert list(engine.components) == [first.uid, second.uid]
    assert await second == 1
    assert engine.components[second.uid]["future"] is second
    assert engine.components[second.uid]["description"]["name"] == "number"
    assert set(engine.components) == {first.uid, second.uid}
    assert len(engine.components) == 2
    assert "task.none" not in engine.components
    with pytest.raises(KeyError):
        engine.components["task.none"]


async def test_resolved_are_components_whose_dependencies_are_done(
    engine: WorkflowEngine, number: Any
) -> None:
    free = asyncio.get_running_loop().create_future()
    waiting, ended = number(free), number(1)
    await ended
    assert ended.uid in engine.resolved
    assert waiting.uid not in engine.resolved
    assert set(engine.resolved) == {ended.uid}
    free.set_result(2)
    await waiting
    assert set(engine.resolved) == {ended.uid, waiting.uid}


async def test_register_keeps_no_component_in_memory(engine: WorkflowEngine, number: Any) -> None:
    await number(1)
    await asyncio.sleep(0)  # the loop still refers to it while it wakes this coroutine up
    gc.collect()
    assert len(engine.components) == 0
    assert list(engine.components.values()) == []


async def test_register_of_ended_components_is_bounded(
    engine: WorkflowEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compat, "ENDED", 3)
    task = make_task(engine)
    futures = [task() for _ in range(5)]
    await asyncio.gather(*futures)
    assert len(engine.components) == 3


async def test_other_objects_can_be_registered(engine: WorkflowEngine) -> None:
    engine.components["mine"] = {"type": "task"}
    assert engine.components["mine"] == {"type": "task"}
    del engine.components["mine"]
    assert "mine" not in engine.components


async def test_running_are_components_that_a_backend_has() -> None:
    backend = ScriptedBackend()
    backend.hold = asyncio.Event()
    async with WorkflowEngine.create(backend=backend) as engine:
        task = make_task(engine)
        first = task()
        second = task(first)
        await until(lambda: first.uid in engine.running)
        assert set(engine.running) == {first.uid}
        assert list(engine.dependencies) == [first.uid, second.uid]
        assert engine.dependencies[second.uid] == ({"uid": first.uid, "name": first.name},)
        assert repr(engine.running) == repr({first.uid})
        backend.hold.set()
        await second
        assert not engine.running


async def test_register_forgets_a_component_with_its_last_reference(
    engine: WorkflowEngine, number: Any
) -> None:
    await number(1)
    await asyncio.sleep(0)
    gc.collect()
    assert not engine._components._ended
