"""Telemetry events: what happened to a task, a session or a resource, and when.

An event is a frozen dataclass. `make_event` fills in what every event has (its id, its times), so
a caller names only what is particular; `define_event` makes new kinds for layers above, whose
names carry a namespace: `define_event("asyncflow.TaskResolved")`.

Example:
    >>> event = make_event(TaskStarted, session_id="s", backend="local", task_id="task.1")
    >>> event.event_type, event.task_id
    ('TaskStarted', 'task.1')
"""

from __future__ import annotations

import dataclasses
import itertools
import secrets
import time
from typing import Any, TypeVar

__all__ = [
    "BaseEvent",
    "ResourceUpdate",
    "SessionEnded",
    "SessionStarted",
    "TaskCanceled",
    "TaskCompleted",
    "TaskCreated",
    "TaskFailed",
    "TaskQueued",
    "TaskStarted",
    "TaskSubmitted",
    "define_event",
    "make_event",
]

# One random prefix per process and a counter: a uuid4 for each event costs more than the event.
_ID_PREFIX = secrets.token_hex(6)
_next_number = itertools.count(1).__next__


@dataclasses.dataclass(frozen=True)
class BaseEvent:
    """What every event has.

    Args:
        event_id: Unique in all processes.
        event_time: When it happened, in seconds since the epoch.
        emit_time: When the event was made, in seconds since the epoch.
        session_id: The session or engine it belongs to.
        backend: Name of the backend, or "" where there is none.
        task_id: The task's uid, or None.
        node_id: The node's name, or None.
        attributes: Whatever else is known, under names of the emitter's choice.
    """

    event_id: str
    event_time: float
    emit_time: float
    session_id: str
    backend: str
    task_id: str | None = None
    node_id: str | None = None
    attributes: dict[str, Any] = dataclasses.field(default_factory=dict, hash=False)
    event_type: str = dataclasses.field(default="BaseEvent", init=False)


@dataclasses.dataclass(frozen=True)
class SessionStarted(BaseEvent):
    """Telemetry began."""

    event_type: str = dataclasses.field(default="SessionStarted", init=False)


@dataclasses.dataclass(frozen=True)
class SessionEnded(BaseEvent):
    """Telemetry ended, after `duration_seconds`."""

    duration_seconds: float = 0.0
    event_type: str = dataclasses.field(default="SessionEnded", init=False)


@dataclasses.dataclass(frozen=True)
class TaskCreated(BaseEvent):
    """A task was registered; it may still wait for others."""

    event_type: str = dataclasses.field(default="TaskCreated", init=False)


@dataclasses.dataclass(frozen=True)
class TaskQueued(BaseEvent):
    """A task is ready to be handed to its backend."""

    event_type: str = dataclasses.field(default="TaskQueued", init=False)


@dataclasses.dataclass(frozen=True)
class TaskSubmitted(BaseEvent):
    """A task was handed to its backend."""

    event_type: str = dataclasses.field(default="TaskSubmitted", init=False)


@dataclasses.dataclass(frozen=True)
class TaskStarted(BaseEvent):
    """A task began to run."""

    event_type: str = dataclasses.field(default="TaskStarted", init=False)


@dataclasses.dataclass(frozen=True)
class TaskCompleted(BaseEvent):
    """A task ended well, `duration_seconds` after its start (or submission)."""

    duration_seconds: float = 0.0
    event_type: str = dataclasses.field(default="TaskCompleted", init=False)


@dataclasses.dataclass(frozen=True)
class TaskFailed(BaseEvent):
    """A task failed; `error_type` is the name of its exception's class, where known."""

    duration_seconds: float = 0.0
    error_type: str = "unknown"
    event_type: str = dataclasses.field(default="TaskFailed", init=False)


@dataclasses.dataclass(frozen=True)
class TaskCanceled(BaseEvent):
    """A task was cancelled."""

    duration_seconds: float = 0.0
    event_type: str = dataclasses.field(default="TaskCanceled", init=False)


@dataclasses.dataclass(frozen=True)
class ResourceUpdate(BaseEvent):
    """A backend's own statistics (in `attributes`) and what this process and its children use.

    Args:
        cpu_percent: CPU time used since the last sample; 100 is one core. None in the first.
        memory_percent: Resident memory as a share of the machine's.
        memory_bytes: Resident memory.
    """

    cpu_percent: float | None = None
    memory_percent: float | None = None
    memory_bytes: int | None = None
    event_type: str = dataclasses.field(default="ResourceUpdate", init=False)


E = TypeVar("E", bound=BaseEvent)


def make_event(cls: type[E], *, session_id: str, backend: str, **fields: Any) -> E:
    """Make an event of the given class, with its id and times filled in.

    Args:
        cls: The event's class: one of this module's, or one from `define_event`.
        session_id: The session or engine it belongs to.
        backend: Name of the backend, or "".
        **fields: The class's other fields; `event_time` is now unless given.

    Returns:
        The event.

    Raises:
        TypeError: The class has no such field.
    """
    now = time.time()
    return cls(
        event_id=f"{_ID_PREFIX}-{_next_number():x}",
        event_time=fields.pop("event_time", now),
        emit_time=now,
        session_id=session_id,
        backend=backend,
        **fields,
    )


_BASE_FIELDS = frozenset(field.name for field in dataclasses.fields(BaseEvent))
_TYPE_DEFAULTS: dict[Any, Any] = {bool: False, float: 0.0, int: 0, str: ""}
_defined: dict[str, tuple[dict[str, Any], type[BaseEvent]]] = {}


def define_event(name: str, **fields: Any) -> type[BaseEvent]:
    """Make a new event class; the same name and fields again give the same class.

    Args:
        name: With a namespace, such as "asyncflow.TaskResolved"; it becomes `event_type`.
        **fields: More fields: a type (its default is False, 0, "" or None), or (type, default).

    Returns:
        A frozen dataclass derived from `BaseEvent`, to be given to `make_event`.

    Raises:
        ValueError: The name has no namespace, a field is one that every event has already, or
            the name is taken by an event with other fields.
    """
    namespace, _, short_name = name.rpartition(".")
    if not namespace or not short_name.isidentifier():
        raise ValueError(f"event name {name!r}: expected a namespace, as in 'myapp.{short_name}'")
    clash = sorted(_BASE_FIELDS & fields.keys())
    if clash:
        raise ValueError(f"event {name!r}: every event has {', '.join(clash)}; rename the field")
    if name in _defined:
        known_fields, known = _defined[name]
        if known_fields != fields:
            raise ValueError(f"event {name!r} is defined already, with fields {known_fields}")
        return known
    specs: list[tuple[str, Any, Any]] = []
    for field_name, spec in fields.items():
        kind, default = spec if isinstance(spec, tuple) else (spec, _TYPE_DEFAULTS.get(spec))
        specs.append((field_name, kind, dataclasses.field(default=default)))
    specs.append(("event_type", str, dataclasses.field(default=name, init=False)))
    cls: type[BaseEvent] = dataclasses.make_dataclass(
        short_name, specs, bases=(BaseEvent,), frozen=True
    )
    _defined[name] = (fields, cls)
    return cls
