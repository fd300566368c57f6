"""Components: what readers of the stock engine's futures find, cancelling, and timers."""

import asyncio
import gc
import weakref
from contextvars import copy_context
from typing import Any

import pytest

from asyncflow_ext import WorkflowEngine
from asyncflow_ext.component import Component, Event, Options, Stage, Timers
from rhapsody.backends import ConcurrentExecutionBackend

pytestmark = pytest.mark.asyncflow


class RecordingMachine:
    """Records the events of components, and allows all of them."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.released: list[Component] = []
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.ended.set_result(None)

    def launch(self, component: Component) -> None:
        raise NotImplementedError

    def handle(self, component: Component, event: Event, outcome: Any = None) -> bool:
        self.events.append(event)
        return True

    def release(self, component: Component) -> None:
        self.released.append(component)


@pytest.fixture
async def machine() -> RecordingMachine:
    return RecordingMachine()


@pytest.fixture
async def component(machine: RecordingMachine) -> Component:
    return Component(
        machine,
        asyncio.get_running_loop(),
        "function",
        function=len,
        options=Options(),
        description={"uid": "task.000007", "name": "len"},
    )


def test_component_waits_first(component: Component) -> None:
    assert (component.stage, component.state) == (Stage.WAITING, "PENDING")


def test_items_equal_entries_of_stock_engine(component: Component) -> None:
    assert component["future"] is component
    assert component["type"] == "task"
    assert component["description"] is component.task
    with pytest.raises(KeyError, match="state"):
        component["state"]


def test_id_is_number_of_uid(component: Component) -> None:
    assert component.id == "000007"


def test_cancel_sends_event(component: Component, machine: RecordingMachine) -> None:
    assert component.cancel("no more")
    assert machine.events == [Event.CANCEL]
    assert component.cancel_message == "no more"
    assert not component.done()


def test_end_releases_component_once(component: Component, machine: RecordingMachine) -> None:
    component.set_result(3)
    assert machine.released == [component]
    assert component.result() == 3


def test_events_after_the_end_are_ignored(component: Component, machine: RecordingMachine) -> None:
    component.set_exception(OSError("broken"))
    assert isinstance(component.exception(), OSError)
    assert not component.handle(Event.SUCCEED, 3)
    assert not component.cancel()
    assert machine.events == []


async def test_awaiting_task_is_woken_with_plain_future(component: Component) -> None:
    waiter, woken = next(component.__await__()), list[Any]()
    waiter.add_done_callback(woken.append, context=copy_context())
    component.set_result(3)
    await asyncio.sleep(0)
    assert [type(future) for future in woken] == [asyncio.Future]


async def test_cancelled_task_cancels_awaited_component(
    component: Component, machine: RecordingMachine
) -> None:
    async def wait() -> Any:
        return await component

    task = asyncio.create_task(wait())
    await asyncio.sleep(0)
    assert "wait_for=<await of task.000007 len>" in repr(task)
    assert "<await of task.000007 len>" in repr(component)
    task.cancel("no more")
    assert machine.events == [Event.CANCEL]
    await asyncio.sleep(0)
    assert not task.done()
    component.end_cancelled()
    with pytest.raises(asyncio.CancelledError, match="no more"):
        await component
    await asyncio.wait([task])
    assert task.cancelled()


@pytest.mark.parametrize("fails", [False, True])
async def test_task_is_cancelled_between_end_of_component_and_wake_up(
    component: Component, fails: bool
) -> None:
    async def wait() -> Any:
        return await component

    task = asyncio.create_task(wait())
    await asyncio.sleep(0)
    if fails:
        component.set_exception(OSError("broken"))
    else:
        component.set_result(3)
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    assert not component.cancelled()
    component.exception()


async def test_awaited_failure_is_freed_without_garbage_collection(
    machine: RecordingMachine,
) -> None:
    class BrokenError(Exception):
        pass

    async def fail() -> weakref.ref[BrokenError]:
        loop = asyncio.get_running_loop()
        options, description = Options(), {"uid": "task.000007", "name": "len"}
        component = Component(machine, loop, "function", len, options, description)
        error = BrokenError()
        loop.call_soon(component.set_exception, error)
        try:
            await component
        except BrokenError:
            return weakref.ref(error)
        finally:
            machine.released.clear()
            del component, error
        raise AssertionError("it did not fail")

    gc.disable()
    try:
        freed = await fail()
        await asyncio.sleep(0)  # the loop refers to its last call
        assert freed() is None
    finally:
        gc.enable()


async def test_stopped_timers_do_not_fire() -> None:
    loop, fired = asyncio.get_running_loop(), list[str]()
    timers = Timers()
    for name in set(Timers.__slots__) - {"waited_too_long"}:
        setattr(timers, name, loop.call_later(0, fired.append, name))
    timers.stop()
    later = asyncio.Event()
    loop.call_later(0, later.set)
    await later.wait()
    assert fired == []


async def test_components_can_be_passed_to_functions_of_asyncio() -> None:
    async with WorkflowEngine.create(backend=ConcurrentExecutionBackend()) as flow:

        @flow.function_task
        async def number(value: int) -> int:
            return value

        made = [number(value) for value in range(3)]
        done, pending = await asyncio.wait(made, timeout=30)
        assert done == set(made)
        assert not pending
        assert await asyncio.gather(*made) == [0, 1, 2]
        assert await asyncio.wait_for(number(3), 30) == 3
        assert sorted([await one for one in asyncio.as_completed(made)]) == [0, 1, 2]


async def test_functions_of_asyncio_take_futures_of_the_engine(engine: WorkflowEngine) -> None:
    @engine.function_task
    async def double(value: int) -> int:
        return value * 2

    @engine.function_task
    async def fail() -> None:
        raise OSError("intended")

    assert list(await asyncio.gather(double(1), double(2))) == [2, 4]
    assert await asyncio.wait_for(double(3), 20) == 6
    assert {await value for value in asyncio.as_completed([double(4), double(5)])} == {8, 10}
    futures = [double(6), fail()]
    done, pending = await asyncio.wait(futures)
    assert (done, pending) == (set(futures), set())
    assert (futures[0].result(), str(futures[1].exception())) == (12, "intended")
