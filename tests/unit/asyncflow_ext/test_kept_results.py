"""Results that stay with their backend until somebody asks for them."""

import asyncio
import gc
import weakref
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from radical.asyncflow.errors import DependencyFailureError

from asyncflow_ext import WorkflowEngine, allow_failures
from asyncflow_ext import state_machine as state_machine_module
from asyncflow_ext.component import Component, KeptComponent, Stage
from rhapsody.backends import ConcurrentExecutionBackend
from rhapsody.backends.protocol import KEEP_KEY, KeptResult
from rhapsody.errors import EngineError
from tests.support.scripted import ScriptedBackend
from tests.support.waiting import until

pytestmark = pytest.mark.asyncflow


class Stand:
    """Stands for a result among arguments."""

    def __init__(self, value: Any) -> None:
        self.value = value


def in_place(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return type(value)(map(in_place, value))
    return value.value if isinstance(value, Stand) else value


class Keeper(ScriptedBackend):
    """Runs functions at once, and keeps all results that it may keep."""

    keeps_results = True

    def __init__(self) -> None:
        super().__init__("keeper", self.run)
        self.fetched: list[Any] = []
        self.taken: list[Any] = []
        self.hold_fetch: asyncio.Event | None = None
        self.lost = False
        self.stands: weakref.WeakSet[Stand] = weakref.WeakSet()

    def run(self, task: dict[str, Any]) -> None:
        self.batches.clear()  # they would keep the results
        may_keep = task.pop(KEEP_KEY, False)
        self.taken.append([type(value).__name__ for value in task["args"]])
        try:
            value = task["function"](*in_place(task["args"]))
        except Exception as error:
            self.failed(task, error)
            return
        if may_keep:
            stand = Stand(value)
            self.stands.add(stand)
            task["return_value"] = KeptResult(stand, lambda: self.fetch(value))
            self._callback_func(task, "DONE")
        else:
            self.done(task, value)

    async def fetch(self, value: Any) -> Any:
        self.fetched.append(value)
        if self.hold_fetch is not None:
            await self.hold_fetch.wait()
        if self.lost:
            raise OSError("its worker has died")
        return value


@pytest.fixture
def keeper() -> Keeper:
    return Keeper()


@pytest.fixture
async def flow(keeper: Keeper) -> AsyncIterator[Any]:
    backends = [keeper, ConcurrentExecutionBackend(name="threads")]
    async with WorkflowEngine.create(backend=backends) as engine:
        yield engine


@pytest.fixture
def add(flow: Any) -> Any:
    @flow.function_task
    def add(*values: Any) -> Any:
        return sum(value if isinstance(value, int) else sum(value) for value in values)

    return add


async def kept(component: Component) -> None:
    await until(lambda: component.stage is Stage.KEPT)


async def test_only_the_awaited_result_of_a_chain_is_fetched(keeper: Keeper, add: Any) -> None:
    assert await add(add(add(1), 1), 1) == 3
    assert keeper.fetched == [3]
    assert keeper.taken == [["int"], ["Stand", "int"], ["Stand", "int"]]


async def test_results_in_containers_stay_with_the_backend(keeper: Keeper, add: Any) -> None:
    assert await add([add(1), add(2)], add(3)) == 6
    assert keeper.fetched == [6]


async def test_later_task_takes_a_kept_result(keeper: Keeper, add: Any) -> None:
    first = add(1)
    await kept(first)
    assert await add(first, first) == 2
    assert keeper.fetched == [2]
    assert first.stage is Stage.KEPT


@pytest.mark.parametrize(
    "look",
    [
        lambda future: future,
        lambda future: asyncio.gather(future),
        lambda future: asyncio.shield(future),
        lambda future: asyncio.wait([future]),
        lambda future: asyncio.wait_for(future, 10),
        lambda future: until(lambda: future.done()),  # noqa: PLW0108: another method later
    ],
    ids=["await", "gather", "shield", "wait", "wait_for", "done"],
)
async def test_result_is_fetched_when_somebody_looks(keeper: Keeper, add: Any, look: Any) -> None:
    for pause in (0, 1):
        future = add(5)
        if pause:
            await kept(future)
        await look(future)
        assert future.done()
        assert future.result() == 5
        assert type(future) is Component
    assert keeper.fetched == [5, 5]


async def test_result_asks_for_the_value_as_a_pending_future_does(add: Any) -> None:
    first, second = add(5), add(6)
    await kept(first)
    await kept(second)
    with pytest.raises(asyncio.InvalidStateError):
        first.result()
    with pytest.raises(asyncio.InvalidStateError):
        second.exception()
    await until(lambda: first.stage is second.stage is Stage.DONE)
    assert (first.result(), second.exception()) == (5, None)


async def test_other_threads_may_look(add: Any) -> None:
    future = add(5)
    await kept(future)
    await asyncio.to_thread(lambda: future.done())
    await until(lambda: future.stage is Stage.DONE)
    assert await asyncio.to_thread(lambda: future.result()) == 5


async def test_callback_is_called_with_the_result(add: Any) -> None:
    future, called = add(5), asyncio.Event()
    await kept(future)
    future.add_done_callback(lambda one: called.set())
    await called.wait()
    assert future.result() == 5


async def test_task_of_another_backend_gets_the_value(flow: Any, keeper: Keeper, add: Any) -> None:
    @flow.function_task(backend="threads")
    def here(*values: Any) -> Any:
        return [type(value).__name__ for value in values]

    @flow.block
    async def block(value: Any) -> Any:
        return value

    first, second = add(1), add(2)
    on_backend = add(first)
    assert await here(first) == ["int"]
    await kept(second)
    assert await here(second) == ["int"]
    assert await block(add(4)) == 4
    assert await on_backend == 1
    assert sorted(keeper.fetched) == [1, 1, 2, 4]


async def test_tasks_wait_for_the_rest_of_their_arguments(keeper: Keeper, add: Any) -> None:
    value: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    first = add(1)
    last = add(first, value)
    await kept(first)
    assert await first == 1  # its dependent has not started
    value.set_result(2)
    assert await last == 3
    assert keeper.taken[-1] == ["int", "int"]


async def test_cancelled_kept_component_does_not_stop_those_that_use_it(
    keeper: Keeper, add: Any
) -> None:
    first = add(1)
    await kept(first)
    assert first.cancel()
    assert first.cancelled()
    assert not first.cancel()
    later = add(first)
    with pytest.raises(asyncio.CancelledError):
        await later
    await until(lambda: gc.collect() >= 0 and not keeper.stands)


async def test_task_that_ended_while_it_was_cancelled_keeps_nothing(
    keeper: Keeper, flow: Any
) -> None:
    @flow.function_task
    def make() -> int:
        return 1

    running: list[Any] = []
    keeper.on_task = running.append
    future = make()
    await until(lambda: future.stage is Stage.SUBMITTED)
    future.cancel()
    keeper.run(running.pop())
    assert future.cancelled()
    await until(lambda: gc.collect() >= 0 and not keeper.stands)


async def test_failed_fetch_fails_the_component(keeper: Keeper, add: Any, flow: Any) -> None:
    @flow.block
    async def block(value: Any) -> Any:
        return value

    keeper.lost = True
    with pytest.raises(OSError, match="has died"):
        await add(1)
    with pytest.raises(DependencyFailureError, match="has died"):
        await block(add(1))


async def test_retry_of_a_task_takes_kept_results_again(keeper: Keeper, flow: Any) -> None:
    tries: list[int] = []

    @flow.function_task
    def make() -> int:
        return 4

    @flow.function_task(retries=2, backoff=0.0)
    def fragile(value: int) -> int:
        tries.append(value)
        if len(tries) < 3:
            raise OSError("again")
        return value

    assert await fragile(make()) == 4
    assert tries == [4, 4, 4]
    assert keeper.fetched == [4]


async def test_failures_are_tolerated_beside_kept_results(keeper: Keeper, flow: Any) -> None:
    @flow.function_task
    def make(number: int) -> float:
        return 1 / number

    @flow.function_task
    def names(values: Any) -> list[str]:
        return [type(value).__name__ for value in values]

    assert await names(allow_failures([make(1), make(0)])) == ["float", "ZeroDivisionError"]
    assert keeper.fetched == [["float", "ZeroDivisionError"]]


async def test_result_is_freed_with_its_component_and_its_users(keeper: Keeper, add: Any) -> None:
    last = add(add(1), 2)
    assert await last == 3
    await until(lambda: gc.collect() >= 0 and not keeper.stands)
    assert last.result() == 3


async def test_kept_component_counts_as_done(flow: Any, add: Any) -> None:
    future = add(1)
    await kept(future)
    assert isinstance(future, KeptComponent)
    assert future.state == "DONE"
    assert flow.components[future.uid] is future
    assert future.uid not in flow._components.active
    assert states_of(flow, "add") == {"DONE": 1}
    await future
    assert states_of(flow, "add") == {"DONE": 1}


def states_of(flow: Any, name: str) -> dict[str, int]:
    [node] = [node for node in flow._graph.graph([]).nodes if node.name == name]
    return dict(node.states)


async def test_report_and_walltime_fetch_nothing(keeper: Keeper) -> None:
    async with WorkflowEngine.create(backend=keeper, walltime=3600) as flow:

        @flow.function_task
        def make() -> int:
            return 1

        @flow.function_task
        def add(*values: int) -> int:
            return sum(values)

        value: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        first = make()
        await kept(first)
        waiting = add(first, value)
        graph = await asyncio.to_thread(flow._graph.graph, list(flow._components.active.values()))
        assert flow._machine.walltime is not None
        assert not flow._machine.walltime._is_idle()
        await asyncio.sleep(0)
        assert first.stage is Stage.KEPT
        assert [edge.waiting for edge in graph.edges if edge.source == "make"] == [0]
        value.set_result(2)
        assert await waiting == 3


async def test_block_does_not_cancel_what_is_kept(flow: Any, keeper: Keeper) -> None:
    made: list[Any] = []

    @flow.function_task
    def make() -> int:
        return 7

    @flow.block
    async def block() -> None:
        made.append(make())
        await asyncio.sleep(60)

    running = block()
    await until(lambda: made and made[0].stage is Stage.KEPT)
    running.cancel()
    await until(running.cancelled)
    assert await made[0] == 7


async def test_shutdown_fetches_what_the_program_refers_to(keeper: Keeper) -> None:
    async with WorkflowEngine.create(backend=keeper) as flow:

        @flow.function_task
        def make(number: int) -> int:
            return number

        held, _ = make(1), make(2)
        del _
        await kept(held)
        await until(lambda: gc.collect() >= 0 and len(keeper.stands) == 1)
    assert held.result() == 1
    assert keeper.fetched == [1]


async def test_shutdown_gives_up_results_that_do_not_come(
    keeper: Keeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state_machine_module, "FETCH_SECONDS", 0.05)
    async with WorkflowEngine.create(backend=keeper) as flow:

        @flow.function_task
        def make() -> int:
            return 1

        held = make()
        await kept(held)
        keeper.hold_fetch = asyncio.Event()
    assert isinstance(held.exception(), EngineError)
    assert "await it before" in str(held.exception())


@pytest.mark.parametrize("is_awaited", [False, True])
def test_shutdown_on_another_loop_fails_what_is_kept(keeper: Keeper, is_awaited: bool) -> None:
    async def run() -> tuple[WorkflowEngine, Component]:
        flow = await WorkflowEngine.create(backend=keeper)

        @flow.function_task
        def make() -> int:
            return 1

        future = make()
        await kept(future)
        return flow, future

    loop = asyncio.new_event_loop()
    flow, future = loop.run_until_complete(run())
    if is_awaited:
        future.add_done_callback(lambda one: None)
    loop.close()
    asyncio.run(flow.shutdown())
    assert future.done()
    assert isinstance(future.exception(), EngineError)


def test_end_of_the_loop_fails_what_is_fetched(keeper: Keeper) -> None:
    async def run() -> tuple[WorkflowEngine, Component]:
        flow = await WorkflowEngine.create(backend=keeper)

        @flow.function_task
        def make() -> int:
            return 1

        future = make()
        await kept(future)
        keeper.hold_fetch = asyncio.Event()
        assert not future.done()
        await until(lambda: keeper.fetched)
        return flow, future

    flow, future = asyncio.run(run())
    assert isinstance(future.exception(), EngineError)
    assert "loop ended" in str(future.exception())
    asyncio.run(flow.shutdown())


async def test_engine_with_a_journal_keeps_nothing(keeper: Keeper, tmp_path: Path) -> None:
    async with WorkflowEngine.create(backend=keeper, journal=tmp_path / "journal") as flow:

        @flow.function_task
        def make() -> int:
            return 1

        assert await make() == 1
    assert keeper.fetched == []
