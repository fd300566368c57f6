"""The checkpoint file: events, finished spans and metrics as JSON lines.

Each line is one object, whose key "section" is "event", "span" or "metric". Every event has the
`trace_id` of its session. Its `span_id` is that of the session, or of the task that it ended.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import logging
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rhapsody.telemetry.bounded_queue import BoundedQueue
from rhapsody.telemetry.events import BaseEvent
from rhapsody.telemetry.spans import span_dict
from rhapsody.waiting import done_within

__all__ = ["Checkpoint"]

logger = logging.getLogger(__name__)

_SPILL_LINES = 1000


class Checkpoint:
    """Writes `<directory>/<session_id>.<start>.telemetry.jsonl` in a thread.

    Pending lines are written every `interval` seconds together with a line of metrics, when there
    are many, and at the end. Lines that arrive faster than the disk takes them are dropped and
    counted.

    Args:
        directory: The directory of the file; it is created if it does not exist.
        session_id: The first part of the file's name.
        interval: Seconds between lines of metrics; None: one line at the end only.
        metrics: Returns the metrics as a dict; called on the loop.
        maxlen: The maximum number of pending lines.
    """

    def __init__(
        self,
        directory: str,
        session_id: str,
        interval: float | None,
        metrics: Callable[[], dict[str, Any]],
        maxlen: int,
    ) -> None:
        name = re.sub(r"[^\w.-]", "_", session_id)
        self.path = Path(directory) / f"{name}.{int(time.time())}.telemetry.jsonl"
        self._interval = interval
        self._metrics = metrics
        self._wake = asyncio.Event()
        self._queue: BoundedQueue[Any] = BoundedQueue(maxlen, self._on_items)
        self._write_lock = threading.Lock()
        self._task: asyncio.Task[None] | None = None
        self._closing = False
        self._broken = False

    @property
    def dropped(self) -> int:
        """The number of lines that were not written because too many were pending."""
        return self._queue.dropped

    async def create(self) -> None:
        """Create the file.

        Raises:
            OSError: The file cannot be created.
        """
        await asyncio.to_thread(self._create)

    def start(self) -> None:
        """Start writing, from a task on the running loop."""
        self._queue.bind()
        self._task = asyncio.create_task(self._run(), name="rhapsody-telemetry-checkpoint")

    def put(self, item: Any) -> None:
        """Queue a finished span, or an event with its span and the session's; from any thread."""
        self._queue.put(item)

    async def close(self) -> None:
        """Write the pending lines and a last line of metrics."""
        if self._task is None:
            return
        self._closing = True
        self._wake.set()
        await asyncio.gather(self._task, return_exceptions=True)

    def _on_items(self) -> None:
        if len(self._queue) >= _SPILL_LINES:
            self._wake.set()

    async def _run(self) -> None:
        try:
            while not self._closing:
                self._wake.clear()
                spilled = await done_within(self._wake.wait(), self._interval)
                if not self._closing:
                    metrics = None if spilled else self._metrics()
                    await asyncio.to_thread(self._write, metrics)
            await asyncio.to_thread(self._write, self._metrics())
        except asyncio.CancelledError:
            # The loop ends without stop(): a short write on the loop is better than lost lines.
            self._write(self._metrics())
            raise

    def _create(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.touch()

    def _write(self, metrics: dict[str, Any] | None) -> None:
        with self._write_lock:
            lines = [_line(item) for item in self._queue.take(len(self._queue))]
            if metrics is not None:
                times = {"section": "metric", "checkpoint_time": time.time()}
                lines.append({**times, **metrics, "lines_dropped": self.dropped})
            if not lines or self._broken:
                return
            try:
                with self.path.open("a", encoding="utf-8") as file:
                    file.writelines(_json(line) + "\n" for line in lines)
            except OSError:
                self._broken = True
                logger.exception(
                    "telemetry checkpoint %s cannot be written; telemetry writes no more lines",
                    self.path,
                )


def _line(item: Any) -> dict[str, Any]:
    if not isinstance(item, tuple) or not isinstance(item[0], BaseEvent):
        return {"section": "span", **span_dict(item)}
    event, span, root = item
    if event.task_id is None:
        span = root
    return {
        "section": "event",
        "name": event.event_type,
        "trace_id": f"{root.context.trace_id:032x}" if root is not None else None,
        "span_id": f"{span.context.span_id:016x}" if span is not None else None,
        **{field.name: getattr(event, field.name) for field in dataclasses.fields(event)},
    }


def _json(line: dict[str, Any]) -> str:
    try:
        return json.dumps(line, default=str)
    except (TypeError, ValueError):  # keys that are not strings, or a cycle
        return json.dumps({"section": line["section"], "repr": repr(line)})
