"""An engine whose event loop was closed, or that is used on another loop than its own."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from asyncflow_ext import WorkflowEngine
from rhapsody.backends import NoopExecutionBackend
from rhapsody.errors import EngineError
from tests.support.engines import make_task
from tests.support.held import HeldBackend
from tests.support.scripted import ScriptedBackend
from tests.support.waiting import LIMIT_S, until

pytestmark = pytest.mark.asyncflow


async def call(flow: WorkflowEngine, _: Any) -> Any:
    return await make_task(flow)()


async def call_block(flow: WorkflowEngine, _: Any) -> Any:
    @flow.block
    async def block() -> None:
        pass

    return await block()


async def call_ai_task(flow: WorkflowEngine, _: Any) -> Any:
    @flow.ai_task
    async def ask() -> str:
        return "why?"

    return await ask()


async def await_component(_: WorkflowEngine, component: Any) -> Any:
    return await component


async def run(flow: WorkflowEngine, _: Any) -> Any:
    return await flow.run()


async def start_telemetry(flow: WorkflowEngine, _: Any) -> Any:
    return await flow.start_telemetry()


async def cancel(_: WorkflowEngine, component: Any) -> Any:
    return component.cancel()


USES = [call, call_block, call_ai_task, await_component, run, start_telemetry]
Use = Callable[[WorkflowEngine, Any], Awaitable[Any]]


async def create(backend: HeldBackend) -> tuple[WorkflowEngine, Any]:
    """Create an engine, and a task that its backend runs."""
    flow = await WorkflowEngine.create(backend=backend)
    component = make_task(flow)()
    await backend.wait_entered()
    return flow, component


@pytest.mark.parametrize("use", [*USES, cancel], ids=lambda use: use.__name__)
def test_use_after_end_of_loop_is_refused(use: Use) -> None:
    backend = HeldBackend()
    flow, component = asyncio.run(create(backend))
    with pytest.raises(EngineError, match=r"event loop <.*closed=True.*> is closed; create"):
        asyncio.run(asyncio.wait_for(use(flow, component), LIMIT_S))
    asyncio.run(flow.shutdown())


@pytest.mark.parametrize("use", USES, ids=lambda use: use.__name__)
def test_use_on_another_loop_of_the_thread_is_refused(use: Use) -> None:
    loop, backend = asyncio.new_event_loop(), HeldBackend()
    flow, component = loop.run_until_complete(create(backend))
    with pytest.raises(EngineError, match=r"event loop <.*closed=False.*> is another one"):
        asyncio.run(asyncio.wait_for(use(flow, component), LIMIT_S))
    loop.run_until_complete(flow.shutdown())
    assert component.cancelled()
    loop.close()


def test_shutdown_after_end_of_loop_ends_work() -> None:
    backend = HeldBackend()
    flow, component = asyncio.run(create(backend))
    asyncio.run(flow.shutdown())
    assert component.cancelled()
    assert backend.cancelled == [component.uid]
    assert backend.state() == "STOPPED"
    assert all(future.done() for future in flow.components.values())
    asyncio.run(flow.shutdown())


def test_shutdown_on_another_loop_ends_waiting_and_running_components() -> None:
    loop, backend = asyncio.new_event_loop(), HeldBackend()
    flow, component = loop.run_until_complete(create(backend))

    @flow.block
    async def block() -> Any:
        return await component

    @flow.executable_task
    async def preparing() -> str:
        return str(await component)

    async def start() -> list[Any]:
        made = [block(), make_task(flow)(component), preparing(), component]
        await asyncio.sleep(0)
        return made

    made = loop.run_until_complete(start())
    asyncio.run(flow.shutdown())
    assert [future.cancelled() for future in made] == [True] * 4
    loop.run_until_complete(asyncio.sleep(0))  # the bodies end
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()


async def test_shutdown_from_another_thread_runs_on_loop_of_engine() -> None:
    backend = HeldBackend()
    flow, component = await create(backend)
    await asyncio.to_thread(asyncio.run, flow.shutdown())
    with pytest.raises(asyncio.CancelledError):
        await component
    assert backend.state() == "STOPPED"


def test_ended_component_can_be_awaited_on_another_loop() -> None:
    async def end() -> Any:
        async with WorkflowEngine.create(backend=NoopExecutionBackend()) as flow:
            component = make_task(flow)()
            await component
        return component

    component = asyncio.run(end())
    assert asyncio.run(await_component(component, component)) == component.result()


def test_tasks_can_be_called_while_no_loop_runs() -> None:
    loop = asyncio.new_event_loop()
    flow = loop.run_until_complete(WorkflowEngine.create(backend=NoopExecutionBackend()))
    component = make_task(flow)()
    loop.run_until_complete(component)
    loop.run_until_complete(flow.shutdown())
    loop.close()


def test_report_after_end_of_loop_is_ignored() -> None:
    backend = ScriptedBackend(on_task=lambda task: None)

    async def start() -> tuple[WorkflowEngine, Any]:
        flow = await WorkflowEngine.create(backend=backend)
        component = make_task(flow)()
        await until(lambda: backend.batches)
        return flow, component

    flow, component = asyncio.run(start())
    asyncio.run(asyncio.to_thread(backend.done, backend.batches[0][0]))
    assert not component.done()
    asyncio.run(flow.shutdown())
