"""Telemetry: the events that Rhapsody's engine emits, in their order."""

from typing import Any

import pytest

from asyncflow_ext import WorkflowEngine
from rhapsody.backends import ConcurrentExecutionBackend
from tests.support.engines import Echo
from tests.support.scripted import ScriptedBackend

pytestmark = pytest.mark.asyncflow


async def record(flow: WorkflowEngine) -> tuple[Any, list[Any]]:
    """Start telemetry, and return its manager and the list of events."""
    telemetry = await flow.start_telemetry()
    events: list[Any] = []
    telemetry.subscribe(events.append)
    return telemetry, events


def types_of(events: list[Any], name: str) -> list[str]:
    return [event.event_type for event in events if event.attributes.get("executable") == name]


async def test_events_of_finished_task() -> None:
    def run(task: dict[str, Any]) -> None:
        backend._callback_func(task, "RUNNING")
        backend.done(task)

    backend = ScriptedBackend(on_task=run)
    async with WorkflowEngine.create(backend=backend) as flow:
        telemetry, events = await record(flow)

        @flow.function_task
        async def step() -> None:
            return None

        await step()
        await telemetry.stop()
    assert types_of(events, "step") == [
        "TaskCreated",
        "asyncflow.TaskResolved",
        "TaskQueued",
        "TaskSubmitted",
        "TaskStarted",
        "TaskCompleted",
    ]


async def test_events_of_each_attempt() -> None:
    backend = ScriptedBackend(on_task=lambda task: backend.failed(task, OSError("broken")))
    async with WorkflowEngine.create(backend=backend) as flow:
        telemetry, events = await record(flow)

        @flow.function_task(retries=1, backoff=0.0)
        async def step() -> None:
            return None

        with pytest.raises(OSError, match="broken"):
            await step()
        await telemetry.stop()
    assert types_of(events, "step") == [
        "TaskCreated",
        *["asyncflow.TaskResolved", "TaskQueued", "TaskSubmitted"] * 2,
        "TaskFailed",
    ]


async def test_events_of_cancelled_task() -> None:
    async with WorkflowEngine.create(backend=ScriptedBackend()) as flow:
        telemetry, events = await record(flow)

        @flow.function_task
        async def step() -> None:
            return None

        step().cancel()
        await telemetry.stop()
    assert types_of(events, "step") == ["TaskCreated", "TaskCanceled"]


async def test_ai_task_starts_on_the_callers_loop() -> None:
    async with WorkflowEngine.create(backend=Echo()) as flow:
        telemetry, events = await record(flow)

        @flow.ai_task
        async def ask() -> str:
            return "hi"

        await ask()
        await telemetry.stop()
    assert types_of(events, "ask")[2:] == [
        "TaskQueued",
        "TaskSubmitted",
        "TaskStarted",
        "TaskCompleted",
    ]


async def test_span_of_block_contains_its_tasks() -> None:
    async with WorkflowEngine.create(backend=ConcurrentExecutionBackend()) as flow:
        telemetry, _ = await record(flow)

        @flow.function_task
        async def step() -> None:
            return None

        @flow.block
        async def stage() -> None:
            await step()

        await stage()
        await telemetry.stop()
    spans = telemetry.read_traces()
    (task,) = (span for span in spans if span.name == "task")
    (block,) = (span for span in spans if span.name == "block")
    assert task.parent.span_id == block.context.span_id


async def test_executable_of_executable_task_is_its_program() -> None:
    async with WorkflowEngine.create(backend=ConcurrentExecutionBackend()) as flow:
        telemetry, events = await record(flow)

        @flow.executable_task
        async def greet() -> str:
            return "echo hello"

        await greet()
        await telemetry.stop()
        (span,) = telemetry.task_spans()
    assert (span["executable"], span["task_type"]) == ("echo", "executable")
    assert types_of(events, "greet") == ["TaskCreated", "asyncflow.TaskResolved"]
    assert types_of(events, "echo")[-1] == "TaskCompleted"
