"""Events: their creation, and the definition of new classes."""

import dataclasses
import time
from typing import Any

import pytest

from rhapsody.telemetry.events import (
    BaseEvent,
    ResourceUpdate,
    TaskCompleted,
    TaskFailed,
    TaskStarted,
    define_event,
    make_event,
)


def make(cls: type[BaseEvent] = TaskStarted, **fields: object) -> Any:
    return make_event(cls, session_id="s", backend="b", **fields)


def test_event_has_unique_id_and_time() -> None:
    before = time.time()
    first, second = make(task_id="t"), make(task_id="t")
    assert first.event_id != second.event_id
    assert before <= first.event_time == first.emit_time <= time.time()


def test_event_time_can_be_given() -> None:
    event = make(event_time=5.0)
    assert event.event_time == 5.0
    assert event.emit_time > 5.0


def test_event_names_its_type_and_is_frozen() -> None:
    event = make()
    assert event.event_type == "TaskStarted"
    assert dataclasses.asdict(event)["event_type"] == "TaskStarted"
    with pytest.raises(dataclasses.FrozenInstanceError):
        event.backend = "other"


def test_event_classes_have_their_own_fields() -> None:
    assert make(TaskCompleted, duration_seconds=2.0).duration_seconds == 2.0
    assert make(TaskFailed).error_type == "unknown"
    assert make(ResourceUpdate).cpu_percent is None


def test_attributes_are_not_shared_between_events() -> None:
    make().attributes["a"] = 1
    assert make().attributes == {}


def test_unknown_field_is_refused() -> None:
    with pytest.raises(TypeError, match="colour"):
        make(colour="red")


def test_defined_event_has_fields_with_defaults() -> None:
    cls = define_event("tests.Checked", score=float, label=(str, "none"), extra=list)
    event = make(cls, score=0.5)
    assert issubclass(cls, BaseEvent)
    assert event.event_type == "tests.Checked"
    assert (event.score, event.label, event.extra) == (0.5, "none", None)


def test_repeated_definition_returns_the_same_class() -> None:
    assert define_event("tests.Again", n=int) is define_event("tests.Again", n=int)
    with pytest.raises(ValueError, match="already defined"):
        define_event("tests.Again", n=float)


@pytest.mark.parametrize("name", ["Flat", ".NoNamespace", "tests.not an identifier", "tests."])
def test_name_without_namespace_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="namespace"):
        define_event(name)


def test_field_of_the_base_class_is_refused() -> None:
    with pytest.raises(ValueError, match="task_id"):
        define_event("tests.Clash", task_id=str)
