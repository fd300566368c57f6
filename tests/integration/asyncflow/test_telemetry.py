"""`flow.start_telemetry()` of AsyncFlow's engine, with its local backend."""

import asyncio
import json
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.asyncflow


@pytest.fixture
async def flow(tmp_path: Path) -> AsyncIterator[Any]:
    radical = pytest.importorskip("radical.asyncflow")
    backend = await radical.LocalExecutionBackend(ThreadPoolExecutor(2), name="local")
    spare = radical.NoopExecutionBackend(name="spare")
    engine = await radical.WorkflowEngine.create(backend=[backend, spare], work_dir=str(tmp_path))
    yield engine
    await engine.shutdown()


async def test_tasks_are_counted_by_outcome(flow: Any) -> None:
    telemetry = await flow.start_telemetry()

    @flow.function_task
    async def good() -> int:
        return 1

    @flow.function_task
    async def bad() -> None:
        raise ValueError("no")

    @flow.executable_task
    async def echo() -> str:
        return "/bin/echo hello"

    outcomes = await asyncio.gather(good(), bad(), echo(), return_exceptions=True)
    assert outcomes[0] == 1
    assert isinstance(outcomes[1], ValueError)
    counts = telemetry.task_count()
    assert (counts["submitted"], counts["completed"], counts["failed"]) == (3, 2, 1)
    assert telemetry.summary()["duration"]["count"] == 3
    by_status = {span["status"]: span for span in telemetry.task_spans()}
    assert by_status["failed"]["executable"] == "bad"
    assert by_status["failed"]["status_code"] == "ERROR"
    await telemetry.stop()
    assert telemetry.session_id == flow.uid


async def test_events_of_dependent_task_come_in_order(flow: Any) -> None:
    telemetry = await flow.start_telemetry()
    events: list[Any] = []
    telemetry.subscribe(events.append)

    @flow.function_task
    async def first() -> int:
        return 1

    @flow.function_task
    async def second(value: int) -> int:
        return value + 1

    assert await second(first()) == 2
    await telemetry.stop()
    of_second = [event for event in events if event.attributes.get("executable") == "second"]
    types = [event.event_type for event in of_second]
    assert types[0] == "TaskCreated"
    assert [kind for kind in types if kind != "TaskStarted"] == [
        "TaskCreated",
        "asyncflow.TaskResolved",
        "TaskQueued",
        "TaskSubmitted",
        "TaskCompleted",
    ]
    assert {event.session_id for event in events} == {flow.uid}
    assert len({event.event_id for event in events}) == len(events)


async def test_workflow_and_block_spans_contain_their_tasks(flow: Any) -> None:
    telemetry = await flow.start_telemetry()

    @flow.function_task
    async def step() -> int:
        return 1

    @flow.block
    async def stage() -> int:
        result: int = await step()
        return result

    async with flow.workflow_scope("wf-1"):
        await step()
    await stage()
    await telemetry.stop()
    spans = telemetry.read_traces()
    by_id = {span.context.span_id: span for span in spans}
    tasks = [span for span in spans if span.name == "task"]
    assert {by_id[span.parent.span_id].name for span in tasks} == {"workflow", "block"}
    for span in tasks:
        scope = by_id[span.parent.span_id]
        key = "asyncflow.workflow_id"
        assert span.attributes[key] == scope.attributes[key]
    assert len({span.context.trace_id for span in spans}) == 1


async def test_tasks_are_counted_by_backend(flow: Any) -> None:
    telemetry = await flow.start_telemetry()

    @flow.function_task
    async def here() -> int:
        return 1

    @flow.function_task(backend="spare")
    async def there() -> int:
        return 1

    await asyncio.gather(here(), there(), there())
    backends = telemetry.summary()["backends"]
    assert backends["local"]["tasks"]["completed"] == 1
    assert backends["spare"]["tasks"]["completed"] == 2
    await telemetry.stop()


async def test_canceled_task_is_counted_once(flow: Any) -> None:
    telemetry = await flow.start_telemetry()
    running = asyncio.Event()
    telemetry.subscribe(
        lambda event: running.set() if event.event_type == "TaskSubmitted" else None
    )

    @flow.executable_task
    async def sleep() -> str:
        return "/bin/sleep 2"  # AsyncFlow's backend leaves it running on Python 3.10

    future = sleep()
    await asyncio.wait_for(running.wait(), 10)
    future.cancel()
    with pytest.raises(asyncio.CancelledError):
        await future
    for _ in range(200):
        if telemetry.task_count()["canceled"]:
            break
        await asyncio.sleep(0.01)
    await telemetry.stop()
    assert telemetry.task_count()["canceled"] == 1
    assert [span["status"] for span in telemetry.task_spans()] == ["canceled"]


async def test_checkpoint_contains_whole_run(flow: Any, tmp_path: Path) -> None:
    telemetry = await flow.start_telemetry(
        checkpoint_interval=60, checkpoint_path=str(tmp_path / "telemetry")
    )

    @flow.function_task
    async def step(number: int) -> int:
        return number

    await asyncio.gather(*(step(number) for number in range(20)))
    await flow.shutdown()
    await telemetry.stop()
    (path,) = (tmp_path / "telemetry").iterdir()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    completed = [line for line in lines if line.get("event_type") == "TaskCompleted"]
    assert len(completed) == 20
    assert lines[-1]["section"] == "metric"
    assert lines[-1]["tasks_completed"] == 20


async def test_span_processors_of_caller_are_used(flow: Any) -> None:
    export = pytest.importorskip("opentelemetry.sdk.trace.export")
    memory = pytest.importorskip("opentelemetry.sdk.trace.export.in_memory_span_exporter")
    exporter = memory.InMemorySpanExporter()
    telemetry = await flow.start_telemetry(span_processors=[export.SimpleSpanProcessor(exporter)])

    @flow.function_task
    async def step() -> int:
        return 1

    await step()
    await telemetry.stop()
    assert {span.name for span in exporter.get_finished_spans()} == {"task", "session"}
