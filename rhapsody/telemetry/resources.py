"""Resources: the use of this node and of this process tree, and statistics of backends."""

from __future__ import annotations

import asyncio
import inspect
import logging
import platform
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

from rhapsody.telemetry.events import BaseEvent, ResourceUpdate, make_event
from rhapsody.telemetry.gpus import GpuSampler
from rhapsody.waiting import done_within

__all__ = ["NodeSampler", "ResourcePoller", "Usage"]

logger = logging.getLogger(__name__)

FIRST_INTERVAL = 0.1
"""Seconds over which the first sample measures the use of the CPUs."""


class Usage(NamedTuple):
    """Fields of a `ResourceUpdate` of a node; None for values that are not available."""

    cpu_percent: float | None = None
    memory_percent: float | None = None
    memory_bytes: int | None = None
    disk_read_bytes: float | None = None
    disk_write_bytes: float | None = None
    net_sent_bytes: float | None = None
    net_recv_bytes: float | None = None


class NodeSampler:
    """Samples CPUs, memory, disks and network of this node, and the memory of this process tree.

    The bytes of disks and network are those since the previous sample.
    """

    def __init__(self) -> None:
        self._cpu: tuple[float, float] | None = None
        self._disk: tuple[int, int] | None = None
        self._net: tuple[int, int] | None = None

    def sample(self) -> Usage:
        """Take a sample; blocks, the first time for `FIRST_INTERVAL` seconds."""
        import psutil

        if self._cpu is None:
            self._cpu = _cpu_seconds()
            time.sleep(FIRST_INTERVAL)
        before, self._cpu = self._cpu, _cpu_seconds()
        total = self._cpu[1] - before[1]
        busy = self._cpu[0] - before[0]
        disk = net = None
        with suppress(OSError, RuntimeError):  # not readable in some containers
            counted = psutil.disk_io_counters()
            disk = (counted.read_bytes, counted.write_bytes) if counted else None
        with suppress(OSError, RuntimeError):
            counted = psutil.net_io_counters()
            net = (counted.bytes_sent, counted.bytes_recv) if counted else None
        usage = Usage(
            min(100.0, max(0.0, 100 * busy / total)) if total > 0 else 0.0,
            psutil.virtual_memory().percent,
            _tree_memory(),
            *_since(self._disk, disk),
            *_since(self._net, net),
        )
        self._disk, self._net = disk, net
        return usage


@dataclass
class _Source:
    backend: Any
    session_id: str
    name: str
    interval: float
    due: float = 0.0
    failed: bool = False


class ResourcePoller:
    """Reports on backends, each at its own interval, from one asyncio task.

    Args:
        emit: Called with the events.
    """

    def __init__(self, emit: Callable[[BaseEvent], None]) -> None:
        self._emit = emit
        self._sources: list[_Source] = []
        self._sampler = NodeSampler()
        self._gpus: GpuSampler | None = None
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._started = False

    def add(self, backend: Any, session_id: str, name: str, interval: float) -> None:
        """Report on a backend every `interval` seconds once started."""
        self._sources.append(_Source(backend, session_id, name, interval))
        self._changed.set()
        if self._started:
            self.start()

    def start(self) -> None:
        """Start on the running loop; without backends, the first `add` does."""
        self._started = True
        if self._sources and self._task is None:
            self._task = asyncio.create_task(self._run(), name="rhapsody-telemetry-resources")

    async def stop(self) -> None:
        """Stop polling."""
        self._started = False
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            due = [source for source in self._sources if source.due <= loop.time()]
            if due:
                usage, gpus = await asyncio.to_thread(self._sample)
                for source in due:
                    source.due = loop.time() + source.interval
                    await self._report(source, usage, gpus)
            self._changed.clear()
            pause = max(0.0, min(source.due for source in self._sources) - loop.time())
            await done_within(self._changed.wait(), pause)

    def _sample(self) -> tuple[Usage, dict[int, float]]:
        if self._gpus is None:
            self._gpus = GpuSampler()
        return self._sampler.sample(), self._gpus.sample()

    async def _report(self, source: _Source, usage: Usage, gpus: dict[int, float]) -> None:
        self._emit_update(
            source,
            attributes=await _statistics(source),
            gpu_percent=max(gpus.values(), default=None),
            **usage._asdict(),
        )
        for gpu_id, percent in gpus.items():
            self._emit_update(source, gpu_id=gpu_id, gpu_percent=percent)

    def _emit_update(self, source: _Source, **fields: Any) -> None:
        self._emit(
            make_event(
                ResourceUpdate,
                session_id=source.session_id,
                backend=source.name,
                node_id=platform.node(),
                **fields,
            )
        )


async def _statistics(source: _Source) -> dict[str, Any]:
    """Return the statistics of a backend; empty if it has none, or if they fail."""
    get = getattr(source.backend, "get_statistics", None)
    if not callable(get):
        return {}
    try:
        statistics = get()
        if inspect.isawaitable(statistics):
            statistics = await statistics
        found = dict(statistics)
    except Exception:
        if not source.failed:
            logger.exception("get_statistics() of backend %r failed", source.name)
        source.failed = True
        return {}
    source.failed = False
    return found


def _cpu_seconds() -> tuple[float, float]:
    """Return the seconds that the node's CPUs were busy, and all their seconds."""
    import psutil

    times = psutil.cpu_times()
    # Linux counts the time of guests in `user` and `nice` as well.
    total = sum(times) - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0)
    return total - times.idle - getattr(times, "iowait", 0.0), total


def _since(
    before: tuple[int, int] | None, now: tuple[int, int] | None
) -> tuple[float | None, float | None]:
    if before is None or now is None:
        return None, None
    return float(now[0] - before[0]), float(now[1] - before[1])


def _tree_memory() -> int:
    """Return the resident bytes of this process and its children."""
    import psutil

    this = psutil.Process()
    resident = 0
    for process in (this, *this.children(recursive=True)):
        with suppress(psutil.Error):  # it has ended
            resident += process.memory_info().rss
    return resident
