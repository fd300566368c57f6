"""The checkpoint: events, finished spans and metrics as JSON lines in a file.

Each line is one object; its key "section" is "event", "span" or "metric".
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

from rhapsody.telemetry.events import BaseEvent
from rhapsody.telemetry.inbox import Inbox
from rhapsody.telemetry.spans import span_dict
from rhapsody.waiting import done_within

__all__ = ["Checkpoint"]

logger = logging.getLogger(__name__)

_SPILL_LINES = 1000


class Checkpoint:
    """Writes `<directory>/<session_id>.<start>.telemetry.jsonl`, off the loop.

    Lines are written every `interval` seconds with a line of metrics, whenever many have
    gathered, and at the end. What comes faster than the disk takes it is dropped and counted.

    Args:
        directory: Where the file goes; it is made if missing.
        session_id: The first part of the file's name.
        interval: Seconds between lines of metrics, or None for one at the end only.
        metrics: Gives the metrics as a dict; called on the loop.
        maxlen: How many lines may wait to be written.
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
        self._inbox: Inbox[Any] = Inbox(maxlen, self._on_items)
        self._write_lock = threading.Lock()
        self._task: asyncio.Task[None] | None = None
        self._closing = False
        self._broken = False

    @property
    def dropped(self) -> int:
        """How many lines were not written because too many waited."""
        return self._inbox.dropped

    async def create(self) -> None:
        """Make the file.

        Raises:
            OSError: It cannot be made.
        """
        await asyncio.to_thread(self._create)

    def start(self) -> None:
        """Begin to write, on the running loop."""
        self._inbox.bind()
        self._task = asyncio.create_task(self._run(), name="rhapsody-telemetry-checkpoint")

    def put(self, item: Any) -> None:
        """Write an event or a finished span soon; any thread may call."""
        self._inbox.put(item)

    async def close(self) -> None:
        """Write what waits and a last line of metrics."""
        if self._task is None:
            return
        self._closing = True
        self._wake.set()
        await asyncio.gather(self._task, return_exceptions=True)

    def _on_items(self) -> None:
        if len(self._inbox) >= _SPILL_LINES:
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
            # The loop is going away without stop(): better a short write on it than a lost file.
            self._write(self._metrics())
            raise

    def _create(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.touch()

    def _write(self, metrics: dict[str, Any] | None) -> None:
        with self._write_lock:
            lines = [_line(item) for item in self._inbox.take(len(self._inbox))]
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
                logger.exception("telemetry checkpoint %s cannot be written any more", self.path)


def _line(item: Any) -> dict[str, Any]:
    if isinstance(item, BaseEvent):
        fields = {f.name: getattr(item, f.name) for f in dataclasses.fields(item)}
        return {"section": "event", **fields}
    return {"section": "span", **span_dict(item)}


def _json(line: dict[str, Any]) -> str:
    try:
        return json.dumps(line, default=str)
    except (TypeError, ValueError):  # keys that are no strings, or a cycle
        return json.dumps({"section": line["section"], "repr": repr(line)})
