"""Functions to run on an increasing number of workers, and the chart of their rates."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from benchmarks.figures import Chart, Line, Panel

__all__ = ["KINDS", "WORKER_NUMBERS", "compute", "nothing", "wait", "workers_chart"]

WORKER_NUMBERS = (1, 2, 4, 8)


def nothing() -> None:
    return None


def compute() -> int:
    """Keep a core busy for about a millisecond."""
    return sum(range(40_000))


def wait() -> None:
    """Wait 10 ms, as for a disk or a network."""
    time.sleep(0.01)


KINDS = {
    "no-op": (nothing, 4_000),
    "about 1 ms of computing": (compute, 1_000),
    "10 ms of waiting": (wait, 400),
}
"""A function and the number of calls, by label."""


def workers_chart(
    name: str, title: str, numbers: Sequence[int], rates: Mapping[str, Sequence[float]]
) -> Chart:
    """Draw functions per second over the number of workers."""
    lines = [Line(label=kind, x=list(numbers), y=list(rate)) for kind, rate in rates.items()]
    panel = Panel(
        title="Rate", x_label="workers", y_label="functions per second", lines=lines, log_y=True
    )
    return Chart(name=name, title=title, panels=[panel])
