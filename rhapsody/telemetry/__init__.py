"""Telemetry: events, spans and metrics of tasks, for a Session or an AsyncFlow engine.

`await flow.start_telemetry()` returns a `TelemetryManager`. Events, summaries, subscribers, spans
and the checkpoint file need no other package. With OpenTelemetry installed
(`pip install ".[telemetry]"`), spans and metrics are OpenTelemetry's, and go to the given span
processors and metric readers.

Example:
    >>> import asyncio
    >>> async def main():
    ...     telemetry = TelemetryManager("demo")
    ...     await telemetry.start()
    ...     task = {"uid": "task.1", "backend": "local", "function": print}
    ...     telemetry.on_task_submitted(task)
    ...     telemetry.on_task_state(task, "DONE")
    ...     await telemetry.stop()
    ...     return telemetry.task_count()
    >>> asyncio.run(main())
    {'submitted': 1, 'running': 0, 'completed': 1, 'failed': 0, 'canceled': 0}
"""

from rhapsody.telemetry.events import (
    BaseEvent,
    ResourceUpdate,
    SessionEnded,
    SessionStarted,
    TaskCanceled,
    TaskCompleted,
    TaskCreated,
    TaskFailed,
    TaskQueued,
    TaskStarted,
    TaskSubmitted,
    define_event,
    make_event,
)
from rhapsody.telemetry.manager import TelemetryManager
from rhapsody.telemetry.readers import TelemetryReader, TelemetrySubscriber

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
    "TelemetryManager",
    "TelemetryReader",
    "TelemetrySubscriber",
    "define_event",
    "make_event",
]
