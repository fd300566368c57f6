"""A live view of a run on standard error: a table, or plain lines where that is no terminal."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from rhapsody.backends.history import STATES
from rhapsody.backends.protocol import TaskStates
from rhapsody.report.runs import BackendRun
from rhapsody.report.words import duration

__all__ = ["LiveView"]

REFRESH_SECONDS = 0.25
LINE_SECONDS = 5.0
RECENT_SECONDS = 5.0
"""The rate that is shown is that of this time."""
LATEST = 1000
"""Tasks whose latencies are shown."""
FAILURES = 3
BLOCKS = "▁▂▃▄▅▆▇█"


class LiveView:
    """Shows how tasks get on while the body of its `with` runs, from a thread of its own.

    Args:
        runs: The backends' parts in the run.
    """

    def __init__(self, runs: Sequence[BackendRun]) -> None:
        self._rows = [_Row(run) for run in runs]
        self._console = Console(stderr=True)
        self._began = time.monotonic()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._show, name="rhapsody-live", daemon=True)

    def __enter__(self) -> LiveView:
        self._began = time.monotonic()
        self._thread.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._ended.set()
        self._thread.join()

    def _show(self) -> None:
        if not self._console.is_terminal:
            while not self._ended.wait(LINE_SECONDS):
                self._print_line()
            self._print_line()
            return
        with Live(self._table(), console=self._console, auto_refresh=False) as live:
            while not self._ended.wait(REFRESH_SECONDS):
                live.update(self._table(), refresh=True)
            live.update(self._table(), refresh=True)

    def _print_line(self) -> None:
        seconds = time.monotonic() - self._began
        parts = "; ".join(row.line(seconds) for row in self._rows)
        self._console.print(f"[{seconds:6.1f} s] {parts}", highlight=False, soft_wrap=True)

    def _table(self) -> RenderableType:
        seconds = f"{time.monotonic() - self._began:.1f} s"
        table = Table(title=seconds, title_justify="left", box=box.SIMPLE, padding=(0, 1, 0, 0))
        table.add_column("backend", style="bold", no_wrap=True)
        for state in STATES:
            table.add_column(state.lower(), justify="right")
        table.add_column("ended/s", justify="right")
        table.add_column("", no_wrap=True)
        table.add_column("p50", justify="right", no_wrap=True)
        table.add_column("p99", justify="right", no_wrap=True)
        table.add_column("per batch", justify="right")
        for row in self._rows:
            row.add_to(table)
        return Group(table, *self._failures())

    def _failures(self) -> list[Text]:
        failures = [f for row in self._rows for f in row.run.history.failures()]
        failures.sort(key=lambda failure: -failure.number)
        return [
            Text(
                f" {failure.number} x {failure.reason.splitlines()[0]}", "red", overflow="ellipsis"
            )
            for failure in failures[:FAILURES]
        ]


class _Row:
    """What is shown of one backend."""

    def __init__(self, run: BackendRun) -> None:
        self.run = run
        self._ended_before = run.history.number_ended
        self._samples = [(time.monotonic(), self._ended_before)]
        self._rates: list[float] = []

    def add_to(self, table: Table) -> None:
        history = self.run.history
        counts = history.counts
        self._sample()
        latency = history.latency_seconds(LATEST)
        own = self.run.statistics()
        table.add_row(
            self.run.name,
            *(f"{counts.get(state, 0):,}" for state in STATES),
            f"{self._rates[-1]:,.1f}",
            _curve(self._rates[-12:]),
            duration(latency.get("p50")),
            duration(latency.get("p99")),
            _batch(own),
            style="red" if counts.get(TaskStates.FAILED) else None,
        )
        for replica in own.get("replicas", []):
            table.add_row(
                Text(f"  replica {replica['index']}", "dim"),
                "",
                f"{replica['in_flight']:,}",
                Text(replica["state"].lower(), "dim"),
            )

    def _sample(self) -> None:
        now, ended = time.monotonic(), self.run.history.number_ended
        while len(self._samples) > 1 and self._samples[1][0] < now - RECENT_SECONDS:
            del self._samples[0]
        since, before = self._samples[0]
        self._rates.append((ended - before) / max(now - since, 1e-3))
        del self._rates[:-12]
        self._samples.append((now, ended))

    def line(self, seconds: float) -> str:
        counts = self.run.history.counts
        states = [f"{counts[state]} {state.lower()}" for state in STATES if state in counts]
        rate = (self.run.history.number_ended - self._ended_before) / max(seconds, 1e-3)
        text = f"{self.run.name}: {', '.join(states) or 'no tasks'}, {rate:,.1f}/s"
        batch = _batch(self.run.statistics())
        return f"{text}, {batch} prompts a batch" if batch else text


def _batch(statistics: Mapping[str, Any]) -> str:
    mean = statistics.get("mean_batch_size")
    return "" if mean is None else f"{mean:.1f}"


def _curve(values: Sequence[float]) -> str:
    top = max(values, default=0.0)
    if top <= 0:
        return ""
    return "".join(BLOCKS[int(value / top * (len(BLOCKS) - 1))] for value in values)
