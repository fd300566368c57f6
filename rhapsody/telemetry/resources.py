"""Resources: what backends say of themselves, and what this process and its children use."""

from __future__ import annotations

import asyncio
import importlib
import inspect
import logging
import os
import platform
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from rhapsody.telemetry.events import BaseEvent, ResourceUpdate, make_event
from rhapsody.waiting import done_within

__all__ = ["ProcessSampler", "ResourcePoller", "Usage"]

logger = logging.getLogger(__name__)

_PROC = Path("/proc")


class Usage(NamedTuple):
    """CPU and memory of a process tree; None where the system does not say."""

    cpu_percent: float | None = None
    memory_percent: float | None = None
    memory_bytes: int | None = None


class ProcessSampler:
    """Samples this process and its children, from /proc, or with psutil where there is none."""

    def __init__(self) -> None:
        self._read: Callable[[], dict[int, tuple[float, int]]] = (
            _read_proc if _PROC.joinpath("self", "stat").exists() else _read_psutil
        )
        self._last_time: float | None = None
        self._last_cpu: dict[int, float] = {}

    def sample(self) -> Usage:
        """Return the usage now; CPU is relative to the previous sample."""
        tree = self._read()
        if not tree:
            return Usage()
        now = time.monotonic()
        cpu = {pid: seconds for pid, (seconds, _) in tree.items()}
        used = sum(max(0.0, cpu[pid] - self._last_cpu.get(pid, 0.0)) for pid in cpu)
        percent = None
        if self._last_time is not None and now > self._last_time:
            percent = 100 * used / (now - self._last_time)
        self._last_time, self._last_cpu = now, cpu
        resident = sum(memory for _, memory in tree.values())
        total = _machine_memory()
        return Usage(percent, 100 * resident / total if total else None, resident)


@dataclass
class _Source:
    backend: Any
    session_id: str
    name: str
    interval: float
    due: float = 0.0
    failed: bool = False


class ResourcePoller:
    """Asks backends for their statistics, each at its interval, from one task of its own.

    Args:
        emit: Takes the events.
    """

    def __init__(self, emit: Callable[[BaseEvent], None]) -> None:
        self._emit = emit
        self._sources: list[_Source] = []
        self._sampler = ProcessSampler()
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._started = False

    def add(self, backend: Any, session_id: str, name: str, interval: float) -> None:
        """Ask `backend.get_statistics()` every `interval` seconds once started."""
        self._sources.append(_Source(backend, session_id, name, interval))
        self._changed.set()
        if self._started:
            self.start()

    def start(self) -> None:
        """Begin on the running loop, if there is anything to ask."""
        self._started = True
        if self._sources and self._task is None:
            self._task = asyncio.create_task(self._run(), name="rhapsody-telemetry-resources")

    async def close(self) -> None:
        """Stop asking."""
        self._started = False
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            due = [source for source in self._sources if source.due <= loop.time()]
            if due:
                usage = await asyncio.to_thread(self._sampler.sample)
                for source in due:
                    source.due = loop.time() + source.interval
                    await self._report(source, usage)
            self._changed.clear()
            pause = max(0.0, min(source.due for source in self._sources) - loop.time())
            await done_within(self._changed.wait(), pause)

    async def _report(self, source: _Source, usage: Usage) -> None:
        try:
            statistics = source.backend.get_statistics()
            if inspect.isawaitable(statistics):
                statistics = await statistics
            attributes = dict(statistics)
        except Exception:
            if not source.failed:
                logger.exception("backend %r gave no statistics", source.name)
            source.failed = True
            return
        source.failed = False
        self._emit(
            make_event(
                ResourceUpdate,
                session_id=source.session_id,
                backend=source.name,
                node_id=platform.node(),
                attributes=attributes,
                **usage._asdict(),
            )
        )


def _machine_memory() -> int | None:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):  # not every system has them
        return None


def _read_proc() -> dict[int, tuple[float, int]]:
    """Return CPU seconds and resident bytes by process id, for this process and below it."""
    ticks, page = os.sysconf("SC_CLK_TCK"), os.sysconf("SC_PAGE_SIZE")
    tree: dict[int, tuple[float, int]] = {}
    waiting = [os.getpid()]
    while waiting:
        pid = waiting.pop()
        try:
            stat = (_PROC / str(pid) / "stat").read_text()
            for children in (_PROC / str(pid) / "task").glob("*/children"):
                waiting.extend(map(int, children.read_text().split()))
        except (OSError, ValueError):  # it ended meanwhile
            continue
        # proc(5): the command, in parentheses, may hold anything; fields are counted after it.
        fields = stat.rpartition(")")[2].split()
        tree[pid] = ((int(fields[11]) + int(fields[12])) / ticks, int(fields[21]) * page)
    return tree


def _read_psutil() -> dict[int, tuple[float, int]]:
    """Do as `_read_proc` does, with psutil; empty where that is not installed."""
    try:
        psutil: Any = importlib.import_module("psutil")
    except ImportError:
        return {}
    tree: dict[int, tuple[float, int]] = {}
    this = psutil.Process()
    for process in (this, *this.children(recursive=True)):
        with suppress(psutil.Error):
            times = process.cpu_times()
            tree[process.pid] = (times.user + times.system, process.memory_info().rss)
    return tree
