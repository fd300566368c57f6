"""Telemetry events: what happened to a task, a session or a resource, and when.

An event is a frozen dataclass. `make_event` fills in the fields that every event has (its id, its
times). `define_event` creates event classes for other packages, with a namespace in their names:
`define_event("asyncflow.TaskResolved")`.

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
    """The fields of every event.

    Args:
        event_id: Unique across processes.
        event_time: When the thing happened, in seconds since the epoch.
        emit_time: When the event was created, in seconds since the epoch.
        session_id: The session or engine it belongs to.
        backend: Name of the backend, or "" if there is none.
        task_id: The task's uid, or None.
        node_id: The node's name, or None.
        attributes: Additional data; the emitter chooses the names.
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
    """Telemetry started."""

    event_type: str = dataclasses.field(default="SessionStarted", init=False)


@dataclasses.dataclass(frozen=True)
class SessionEnded(BaseEvent):
    """Telemetry ended, after `duration_seconds`."""

    duration_seconds: float = 0.0
    event_type: str = dataclasses.field(default="SessionEnded", init=False)


@dataclasses.dataclass(frozen=True)
class TaskCreated(BaseEvent):
    """A task was registered; it may still wait for its dependencies."""

    event_type: str = dataclasses.field(default="TaskCreated", init=False)


@dataclasses.dataclass(frozen=True)
class TaskQueued(BaseEvent):
    """A task is ready to be submitted to its backend."""

    event_type: str = dataclasses.field(default="TaskQueued", init=False)


@dataclasses.dataclass(frozen=True)
class TaskSubmitted(BaseEvent):
    """A task was submitted to its backend."""

    event_type: str = dataclasses.field(default="TaskSubmitted", init=False)


@dataclasses.dataclass(frozen=True)
class TaskStarted(BaseEvent):
    """A task started to run."""

    event_type: str = dataclasses.field(default="TaskStarted", init=False)


@dataclasses.dataclass(frozen=True)
class TaskCompleted(BaseEvent):
    """A task completed, `duration_seconds` after its start, or else its submission."""

    duration_seconds: float = 0.0
    event_type: str = dataclasses.field(default="TaskCompleted", init=False)


@dataclasses.dataclass(frozen=True)
class TaskFailed(BaseEvent):
    """A task failed; `error_type` is the class name of its exception, or "unknown"."""

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
    """The use of a node at one time, with a backend's statistics in `attributes`; or of one GPU.

    Percentages are between 0 and 100. Bytes of disks and network are those since the previous
    update; they are None in the first one. An update of a GPU has only the fields of the GPU.

    Args:
        cpu_percent: Use of all CPUs of the node.
        memory_percent: Use of the node's memory.
        memory_bytes: Resident memory of this process and its children.
        gpu_percent: Use of the GPU; of the busiest one in the update of a node.
        gpu_id: Index of the GPU. None: the update of a node.
        disk_read_bytes: Bytes read from the node's disks.
        disk_write_bytes: Bytes written to the node's disks.
        net_sent_bytes: Bytes sent by the node.
        net_recv_bytes: Bytes received by the node.

    Attributes:
        resource_scope: "per_node", or "per_gpu" if the update is that of a GPU.
    """

    cpu_percent: float | None = None
    memory_percent: float | None = None
    memory_bytes: int | None = None
    gpu_percent: float | None = None
    gpu_id: int | None = None
    disk_read_bytes: float | None = None
    disk_write_bytes: float | None = None
    net_sent_bytes: float | None = None
    net_recv_bytes: float | None = None
    event_type: str = dataclasses.field(default="ResourceUpdate", init=False)
    resource_scope: str = dataclasses.field(default="per_node", init=False)

    def __post_init__(self) -> None:
        if self.gpu_id is not None:
            object.__setattr__(self, "resource_scope", "per_gpu")  # the dataclass is frozen


E = TypeVar("E", bound=BaseEvent)


def make_event(cls: type[E], *, session_id: str, backend: str, **fields: Any) -> E:
    """Create an event with its id and times filled in.

    Args:
        cls: The event's class: one of this module, or one from `define_event`.
        session_id: The session or engine it belongs to.
        backend: Name of the backend, or "".
        **fields: The class's other fields; `event_time` defaults to now.

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
    """Create an event class; the same name and fields again return the same class.

    Args:
        name: A name with a namespace, such as "asyncflow.TaskResolved"; it becomes `event_type`.
        **fields: More fields: a type (with the default False, 0, "" or None) or (type, default).

    Returns:
        A frozen dataclass derived from `BaseEvent`, for `make_event`.

    Raises:
        ValueError: The name has no namespace, a field is one of `BaseEvent`'s, or the name is
            already defined with other fields.
    """
    namespace, _, short_name = name.rpartition(".")
    if not namespace or not short_name.isidentifier():
        raise ValueError(f"an event name must have a namespace, as in 'myapp.Name', got {name!r}")
    clash = sorted(_BASE_FIELDS & fields.keys())
    if clash:
        raise ValueError(
            f"event {name!r}: every event already has {', '.join(clash)}; rename the field"
        )
    if name in _defined:
        known_fields, known = _defined[name]
        if known_fields != fields:
            raise ValueError(f"event {name!r} is already defined, with the fields {known_fields}")
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
