"""The live view of a run: a table in a notebook or on a terminal, otherwise plain lines."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextvars import copy_context
from types import TracebackType
from typing import Any

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from rhapsody.backends.core.history import STATES
from rhapsody.backends.core.html import as_html
from rhapsody.backends.protocol import TaskStates
from rhapsody.errors import printable
from rhapsody.report.formatting import format_duration
from rhapsody.report.notebook import Output, in_notebook
from rhapsody.report.runs import BackendRun
from rhapsody.report.servers import replicas_of, scaling_of

__all__ = ["LiveView"]

REFRESH_SECONDS = 0.25
LINE_SECONDS = 5.0
RECENT_SECONDS = 5.0
"""The time over which the rate is measured."""
LATEST = 1000
"""The number of latest tasks from which latencies are computed."""
FAILURES = 3
BLOCKS = "▁▂▃▄▅▆▇█"
WIDE = 110
"""Columns of a terminal that has room for all states; a narrower one gets a bar instead."""
NAME_CHARACTERS, BAR_CHARACTERS = 11, 8
FULL, EMPTY = "█", "░"


class LiveView:
    """Shows the progress of tasks while the body of its `with` runs, from its own thread.

    In a notebook it is an output of the cell, and otherwise goes to standard error.

    Args:
        runs: The tasks at each backend.
    """

    def __init__(self, runs: Sequence[BackendRun]) -> None:
        self._rows = [_Row(run) for run in runs]
        self._console = Console(stderr=True)
        self._started_at = time.monotonic()
        self._stopping = threading.Event()
        # In the context of the caller, from which a kernel knows the cell.
        self._thread = threading.Thread(
            target=copy_context().run, args=(self._show,), name="rhapsody-live", daemon=True
        )

    def __enter__(self) -> LiveView:
        self._started_at = time.monotonic()
        self._thread.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stopping.set()
        self._thread.join()

    def _show(self) -> None:
        if in_notebook():
            output = Output(self._html(), self._line())
            while not self._stopping.wait(REFRESH_SECONDS):
                output.update(self._html(), self._line())
            output.update(self._html(), self._line())
            return
        if not self._console.is_terminal:
            while not self._stopping.wait(LINE_SECONDS):
                self._print_line()
            self._print_line()
            return
        with Live(self._table(), console=self._console, auto_refresh=False) as live:
            while not self._stopping.wait(REFRESH_SECONDS):
                live.update(self._table(), refresh=True)
            live.update(self._table(), refresh=True)

    def _print_line(self) -> None:
        self._console.print(self._line(), markup=False, highlight=False, soft_wrap=True)

    def _line(self) -> str:
        seconds = time.monotonic() - self._started_at
        parts = "; ".join(row.line(seconds) for row in self._rows)
        return printable(f"[{seconds:6.1f} s] {parts}")

    def _html(self) -> str:
        rows = [["backend", "", "ended", "/s", "left", "failed"]]
        rows += [row.cells() for row in self._rows]
        shown = as_html(f"{time.monotonic() - self._started_at:.1f} s", {}, rows)
        failures = {reason: f"{number:,}" for number, reason in self._frequent_failures()}
        return shown + as_html("failures", failures) if failures else shown

    def _table(self) -> RenderableType:
        seconds = f"{time.monotonic() - self._started_at:.1f} s"
        table = Table(title=seconds, title_justify="left", box=box.SIMPLE, padding=(0, 1, 0, 0))
        if self._console.width < WIDE:
            table.box, table.pad_edge = None, False
            return Group(self._narrow(table), *self._failures())
        table.add_column("backend", style="bold", no_wrap=True)
        for state in STATES:
            table.add_column(state.lower(), justify="right")
        table.add_column("ended/s", justify="right")
        table.add_column("", no_wrap=True)
        table.add_column("left", justify="right", no_wrap=True)
        table.add_column("p50", justify="right", no_wrap=True)
        table.add_column("p99", justify="right", no_wrap=True)
        table.add_column("per batch", justify="right")
        for row in self._rows:
            row.add_to(table)
        return Group(table, *self._failures())

    def _narrow(self, table: Table) -> Table:
        """Fill a table that fits into 60 columns."""
        table.add_column("backend", style="bold", no_wrap=True, max_width=NAME_CHARACTERS)
        table.add_column("", no_wrap=True)
        for heading in ("ended", "/s", "left", "failed"):
            table.add_column(heading, justify="right", no_wrap=True)
        for row in self._rows:
            row.add_narrow_to(table)
        return table

    def _failures(self) -> list[Text]:
        return [
            Text(f" {number} x {reason}", "red", overflow="ellipsis")
            for number, reason in self._frequent_failures()
        ]

    def _frequent_failures(self) -> list[tuple[int, str]]:
        """Return the most frequent failures: their number, and the first line of the reason."""
        numbers: Counter[str] = Counter()
        for row in self._rows:
            for failure in row.run.history.failures():
                numbers[failure.reason.splitlines()[0]] += failure.number
        return [(number, reason) for reason, number in numbers.most_common(FAILURES)]


class _Row:
    """The lines of one backend."""

    def __init__(self, run: BackendRun) -> None:
        self.run = run
        self._ended_at_start = run.history.number_ended
        self._samples = [(time.monotonic(), self._ended_at_start)]
        self._rates: list[float] = []

    def add_to(self, table: Table) -> None:
        history = self.run.history
        counts = history.counts
        self._sample()
        latency = history.latency_seconds(LATEST)
        own = self.run.statistics()
        table.add_row(
            Text(printable(self.run.name)),  # a str would be read as markup
            *(f"{counts.get(state, 0):,}" for state in STATES),
            f"{self._rates[-1]:,.1f}",
            _curve(self._rates[-12:]),
            self._left(self._rates[-1]),
            format_duration(latency.get("p50")),
            format_duration(latency.get("p99")),
            _batch(own),
            style="red" if counts.get(TaskStates.FAILED) else None,
        )
        if (scaling := scaling_of(own)) is not None:
            bounds = f"{scaling['smallest']} to {scaling['largest']}"
            table.add_row(Text(f"  replicas wanted: {scaling['wanted']} of {bounds}", "dim"))
        for replica in replicas_of(own):
            table.add_row(
                Text(f"  replica {replica['index']}", "dim"),
                "",
                f"{replica['in_flight']:,}",
                Text(replica["state"].lower(), "dim"),
            )

    def add_narrow_to(self, table: Table) -> None:
        self._sample()
        ended, total = self._ended_of_total()
        failed = self.run.history.counts.get(TaskStates.FAILED, 0)
        table.add_row(
            Text(printable(self.run.name), overflow="ellipsis"),
            ProgressBar(max(total, 1), ended, width=BAR_CHARACTERS),
            f"{ended:,}/{total:,}",
            _short(self._rates[-1]),
            self._left(self._rates[-1]),
            f"{failed:,}" if failed else "",
            style="red" if failed else None,
        )

    def cells(self) -> list[str]:
        """Return the row of a table in a notebook."""
        self._sample()
        ended, total = self._ended_of_total()
        full = ended * BAR_CHARACTERS // max(total, 1)
        failed = self.run.history.counts.get(TaskStates.FAILED, 0)
        return [
            self.run.name,
            FULL * full + EMPTY * (BAR_CHARACTERS - full),
            f"{ended:,}/{total:,}",
            _short(self._rates[-1]),
            self._left(self._rates[-1]),
            f"{failed:,}" if failed else "",
        ]

    def _ended_of_total(self) -> tuple[int, int]:
        return self.run.history.number_ended, sum(self.run.history.counts.values())

    def _left(self, rate: float) -> str:
        """Return the time until all tasks have ended at a rate, or "" if that is not known."""
        ended, total = self._ended_of_total()
        return format_duration((total - ended) / rate) if rate > 0 and total > ended else ""

    def _sample(self) -> None:
        now, ended = time.monotonic(), self.run.history.number_ended
        while len(self._samples) > 1 and self._samples[1][0] < now - RECENT_SECONDS:
            del self._samples[0]
        since, before = self._samples[0]
        # A failed task that is repeated counts as ended only until then.
        self._rates.append(max(0, ended - before) / max(now - since, 1e-3))
        del self._rates[:-12]
        self._samples.append((now, ended))

    def line(self, seconds: float) -> str:
        counts = self.run.history.counts
        states = [f"{counts[state]} {state.lower()}" for state in STATES if state in counts]
        rate = (self.run.history.number_ended - self._ended_at_start) / max(seconds, 1e-3)
        text = f"{self.run.name}: {', '.join(states) or 'no tasks'}, {rate:,.1f}/s"
        ended, total = self._ended_of_total()
        if ended < total:
            left = self._left(rate)
            text += f", {ended:,} of {total:,} ended" + (f", {left} left" if left else "")
        batch = _batch(self.run.statistics())
        return f"{text}, {batch} prompts a batch" if batch else text


def _batch(statistics: Mapping[str, Any]) -> str:
    mean = statistics.get("mean_batch_size")
    return "" if mean is None else f"{mean:.1f}"


def _short(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.1f}"


def _curve(values: Sequence[float]) -> str:
    top = max(values, default=0.0)
    if top <= 0:
        return ""
    return "".join(BLOCKS[int(value / top * (len(BLOCKS) - 1))] for value in values)
