"""The table of transitions: each event in each stage, with and without attempts left."""

import asyncio
from collections.abc import AsyncIterator
from contextvars import copy_context
from typing import Any

import pytest

from asyncflow_ext import WorkflowEngine
from asyncflow_ext.component import Component, Event, Options, Stage
from asyncflow_ext.state_machine import TRANSITIONS, StateMachine
from rhapsody.backends.protocol import KeptResult
from rhapsody.errors import TaskTimeoutError
from tests.support.engines import make_task
from tests.support.scripted import ScriptedBackend
from tests.support.waiting import until

pytestmark = pytest.mark.asyncflow

ENDED = (Stage.DONE, Stage.FAILED, Stage.CANCELLED)

# A row for each event: the stages that follow WAITING, PAUSING, PREPARING, QUEUED, SUBMITTING,
# SUBMITTED, RUNNING, CANCEL_PENDING, CANCELLING, TIMEOUT_PENDING, TIMING_OUT, STOPPING_BODY, KEPT
# and FETCHING.
# A dot: the event is not allowed in that stage.
NAMES = {
    ".": None,
    "prep": Stage.PREPARING,
    "run": Stage.RUNNING,
    "queue": Stage.QUEUED,
    "subm": Stage.SUBMITTING,
    "has": Stage.SUBMITTED,
    "wait": Stage.WAITING,
    "pause": Stage.PAUSING,
    "cpend": Stage.CANCEL_PENDING,
    "cing": Stage.CANCELLING,
    "tpend": Stage.TIMEOUT_PENDING,
    "ting": Stage.TIMING_OUT,
    "stop": Stage.STOPPING_BODY,
    "kept": Stage.KEPT,
    "fetch": Stage.FETCHING,
    "done": Stage.DONE,
    "fail": Stage.FAILED,
    "canc": Stage.CANCELLED,
}
ROWS = """
                WAIT  PAUSE PREP  QUEUE SUBM  HAS   RUN   CPEND CING  TPEND TING  STOP  KEPT  FETCH
PREPARE         prep  .     .     .     .     .     .     .     .     .     .     .     .     .
RUN             run   .     .     .     .     .     .     .     .     .     .     .     .     .
QUEUE           queue .     queue .     .     .     .     .     .     .     .     .     .     .
SUBMIT          .     .     .     subm  .     .     .     .     .     .     .     .     .     .
ACCEPT          .     .     .     .     has   .     .     cing  .     ting  .     .     .     .
START           .     .     .     .     subm  has   .     .     .     .     .     .     .     .
REJECT          .     .     .     .     pause .     .     canc  .     pause .     .     .     .
SUCCEED         .     .     .     .     done  done  done  canc  canc  done  done  pause .     done
KEEP            .     .     .     .     kept  kept  .     canc  canc  kept  kept  .     .     .
FETCH           .     .     .     .     .     .     .     .     .     .     .     .     fetch .
FAIL            pause .     pause pause pause pause pause canc  canc  pause pause pause fail  fail
FAIL_DEPENDENCY fail  .     .     .     .     .     .     .     .     .     .     .     .     .
STOP            .     .     canc  .     canc  canc  canc  canc  canc  pause pause pause .     .
CANCEL          canc  canc  canc  canc  cpend cing  canc  .     .     cpend cing  canc  canc  canc
TIMEOUT         .     .     pause pause tpend ting  stop  .     .     .     .     .     .     .
GIVE_UP         .     .     .     .     .     .     .     canc  canc  fail  fail  fail  .     .
RESUME          .     wait  .     .     .     .     .     .     .     .     .     .     .     .
RECALL          .     .     .     done  .     .     .     .     .     .     .     .     .     .
END             canc  canc  canc  canc  canc  canc  canc  canc  canc  canc  canc  canc  .     .
ABANDON         canc  canc  canc  canc  canc  canc  canc  canc  canc  canc  canc  canc  .     .
"""


def expected() -> dict[tuple[Event, Stage], Stage | None]:
    table: dict[tuple[Event, Stage], Stage | None] = {}
    for row in ROWS.strip().splitlines()[1:]:
        event, *following = row.split()
        stages = [NAMES[name] for name in following] + [None] * len(ENDED)
        table.update({(Event[event], s): f for s, f in zip(Stage, stages, strict=True)})
    return table


EXPECTED = expected()


class Parts:
    """A state machine, its backend, and a component that can be put into any stage."""

    def __init__(self, flow: WorkflowEngine, backend: ScriptedBackend) -> None:
        self.flow = flow
        self.backend = backend
        self.machine = StateMachine(flow, flow.loop, copy_context())
        self.queue = flow._machine.queues[backend.name]
        self.machine.queues[backend.name] = self.queue

    def component(
        self, stage: Stage, retries: int = 0, kind: str = "prompt", observed: bool = True
    ) -> Component:
        """Make a component in a stage, with a body, as if it had come there by itself."""
        component = Component(
            self.machine,
            self.flow.loop,
            kind,
            function=forever,
            options=Options(retries=retries, backoff=60.0, timeout=60.0),
            description={"uid": "task.1", "name": "forever", "args": (), "kwargs": {}},
        )
        if observed:
            component.add_done_callback(lambda future: future.cancelled() or future.exception())
        component.stage = stage
        if stage in (Stage.KEPT, Stage.FETCHING):
            component.kept = KEPT
        component.queue = self.queue
        component.description["metadata"] = {"dependencies": (), "output_files": ()}
        if stage in (Stage.PREPARING, Stage.RUNNING, Stage.STOPPING_BODY):
            component.job = self.flow.loop.create_task(forever())
            self.machine.tasks.add(component.job)
        return component


async def forever() -> str:
    await asyncio.Event().wait()
    raise AssertionError


KEPT = KeptResult("argument", forever)


@pytest.fixture
async def parts() -> AsyncIterator[Parts]:
    backend = ScriptedBackend(on_task=lambda task: None)
    async with WorkflowEngine.create(backend=backend) as flow:
        parts = Parts(flow, backend)
        yield parts
        await parts.machine.tasks.end(1.0)


def outcome_of(event: Event) -> Any:
    if event is Event.SUCCEED:
        return "value"
    if event is Event.KEEP:
        return KEPT
    if event is Event.RECALL:
        return {"return_value": "value", "stdout": "value"}
    failing = (Event.END, Event.FAIL, Event.REJECT, Event.FAIL_DEPENDENCY)
    return OSError("broken") if event in failing else None


def test_table_has_no_further_transition() -> None:
    table = {
        (event, stage): following
        for event, row in TRANSITIONS.items()
        for stage, (following, _) in row.items()
    }
    assert table == {key: stage for key, stage in EXPECTED.items() if stage is not None}


@pytest.mark.parametrize("stage", Stage, ids=lambda stage: stage.name)
@pytest.mark.parametrize("event", Event, ids=lambda event: event.name)
async def test_event_moves_component_to_next_stage(
    parts: Parts, event: Event, stage: Stage
) -> None:
    component = parts.component(stage, retries=1, observed=event is not Event.KEEP)
    allowed = parts.machine.handle(component, event, outcome_of(event))
    following = EXPECTED[event, stage]
    assert allowed is (following is not None)
    assert component.stage is (stage if following is None else following)
    assert component.done() is (allowed and component.stage in ENDED)


@pytest.mark.parametrize(
    ("event", "stage"),
    [key for key, following in EXPECTED.items() if following is Stage.PAUSING],
    ids=lambda member: member.name,
)
async def test_failed_attempt_without_retries_fails_component(
    parts: Parts, event: Event, stage: Stage
) -> None:
    component = parts.component(stage)
    assert parts.machine.handle(component, event, outcome_of(event))
    assert (component.stage, component.state) == (Stage.FAILED, "FAILED")
    if stage is Stage.STOPPING_BODY or event in (Event.STOP, Event.TIMEOUT):
        assert isinstance(component.exception(), TaskTimeoutError)
    else:
        assert str(component.exception()) == "broken"


@pytest.mark.parametrize("event", Event, ids=lambda event: event.name)
async def test_ended_component_keeps_its_result(parts: Parts, event: Event) -> None:
    component = parts.component(Stage.SUBMITTED)
    assert parts.machine.handle(component, Event.SUCCEED, "value")
    assert not component.handle(event, outcome_of(event))
    assert component.result() == "value"
    assert component.state == "DONE"


async def test_timeout_timer_runs_for_each_attempt(parts: Parts) -> None:
    component = parts.component(Stage.QUEUED, retries=1)
    component.handle(Event.SUBMIT)
    assert component.timers is not None
    first = component.timers.timeout
    assert first is not None
    component.handle(Event.FAIL, OSError("broken"))
    assert first.cancelled()
    assert component.timers.timeout is None
    assert component.timers.pause is not None
    assert component.attempt == 1


async def test_each_stop_has_its_own_timer(parts: Parts) -> None:
    submitted, running = parts.component(Stage.SUBMITTED), parts.component(Stage.RUNNING)
    for component in (submitted, running):
        component.handle(Event.TIMEOUT)
    assert submitted.timers is not None
    assert (submitted.timers.confirmation is None, submitted.timers.body_stop) == (False, None)
    assert running.timers is not None
    assert (running.timers.body_stop is None, running.timers.confirmation) == (False, None)


async def test_task_failed_inside_submit_tasks_is_not_submitted_afterwards() -> None:
    backend = ScriptedBackend(on_task=lambda task: backend.failed(task, OSError("broken")))
    async with WorkflowEngine.create(backend=backend) as flow:
        future = make_task(flow, retries=1, backoff=60.0)()
        await until(lambda: future.stage is Stage.PAUSING, limit=5.0)
        future.cancel()
        assert future.cancelled()
    assert backend.cancelled == []
