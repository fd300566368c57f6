"""The page of a run: one HTML file that needs no other file.

A script of a few kB draws the charts; an interactive plotting library would add several MB to every
page. The live page has the same template, and the same functions render its parts.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import json
import os
import platform
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

from jinja2 import Environment, PackageLoader, Template
from markupsafe import Markup

from rhapsody.backends.core.history import RECORDS, STATES, TaskRecord, percentile
from rhapsody.backends.protocol import TaskStates
from rhapsody.errors import printable
from rhapsody.report.charts import ChartData
from rhapsody.report.failures import group_failures
from rhapsody.report.formatting import format_duration
from rhapsody.report.graph import Graph, graph_of
from rhapsody.report.runs import BackendRun
from rhapsody.report.servers import clients_of, scaling_note, servers_table

__all__ = ["PageSource", "charts_json", "live_page", "parts", "policy", "write_file", "write_page"]

SCRIPTS = ("page.js", "charts.js", "graph.js", "tasks.js", "live.js")
"""The parts of the page's script, in order."""
PARTS = ("tiles", "backends", "servers", "failures", "nodes", "logs")
"""The blocks of the template that the live page replaces."""
LATEST = 1000
"""Tasks from which the live page computes latencies."""


@dataclass(frozen=True)
class PageSource:
    """What a page shows.

    Attributes:
        title: The heading of the page.
        runs: Returns the tasks at each backend.
        graph: Returns the graph of the tasks. None: tasks do not depend on each other.
        resources: Returns the latest use of each node: mappings with the fields of telemetry's
            `ResourceUpdate`.
        clients: Returns the usage of the clients of an HTTP server that serves several backends.
        present: The time to which `time.monotonic` of now corresponds, in seconds since 1970.
            None: now.
    """

    title: str
    runs: Callable[[], Sequence[BackendRun]]
    graph: Callable[[], Graph] | None = None
    resources: Callable[[], Iterable[Mapping[str, Any]]] = field(default=lambda: ())
    clients: Callable[[], Iterable[Mapping[str, Any]]] = field(default=lambda: ())
    present: float | None = None

    def current_graph(self) -> Graph:
        """Return the graph of the tasks."""
        return self.graph() if self.graph is not None else graph_of(self.runs())


def write_page(path: str | os.PathLike[str], source: PageSource) -> Path:
    """Write the page.

    Args:
        path: The file; an existing one is replaced.
        source: What the page shows.

    Returns:
        The file's path.

    Raises:
        OSError: The file cannot be written.
    """
    return write_file(path, static_page(source))


def write_file(path: str | os.PathLike[str], text: str) -> Path:
    """Write a page so that it is whole, or an older one stays.

    Args:
        path: The file; an existing one is replaced.
        text: The page.

    Returns:
        The file's path.

    Raises:
        OSError: The file cannot be written.
    """
    # File names that are not UTF-8 arrive as lone surrogates.
    page = text.encode("utf-8", "backslashreplace")
    target = Path(os.path.realpath(path))
    if target.exists() and not target.is_file():  # a pipe or a device
        target.write_bytes(page)
        return Path(path)
    # A page that cannot be written completely must not replace an older one.
    temporary = target.with_name(f".{uuid.uuid4().hex}.html")
    try:
        temporary.write_bytes(page)
        os.replace(temporary, target)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename == str(temporary):
            error.filename = str(target)  # the name that the caller knows
        raise
    return Path(path)


def static_page(source: PageSource) -> str:
    """Return the page with all its data."""
    view = _View(source, RECORDS)
    data = {**view.charts(), "graph": source.current_graph().as_dict()}
    return _template().render(
        **view.context(),
        policy=policy("connect-src 'none'"),
        style=_style(),
        script=_script(),
        data=_embedded(data),
        live=False,
    )


def live_page(source: PageSource) -> str:
    """Return the page without data, which its script fetches from the page's server."""
    return _template().render(
        **_View(source, LATEST, with_active=False).context(),
        policy=None,  # its server sends the header
        style=_style(),
        script=_script(),
        data="null",
        live=True,
    )


def parts(source: PageSource, *, with_logs: bool) -> dict[str, str]:
    """Return the HTML of the parts that the live page replaces, by the names of their elements.

    Args:
        source: What the page shows.
        with_logs: Whether to read the logs of model servers and workers, too.
    """
    template = _template()
    view = _View(source, LATEST, with_active=False)
    context = template.new_context({**view.context(with_logs), "live": True})
    wanted = PARTS if with_logs else [part for part in PARTS if part != "logs"]
    return {name: "".join(template.blocks[name](context)) for name in wanted}


def charts_json(source: PageSource, latest: int) -> str:
    """Return the data of the charts as JSON.

    Args:
        source: What the page shows.
        latest: Maximum number of ended tasks of each backend.
    """
    return json.dumps(_View(source, latest).charts(), separators=(",", ":"))


def policy(connections: str) -> str:
    """Return the Content-Security-Policy of the page: nothing but its own style and script.

    Args:
        connections: The directive about connections.
    """
    return (
        f"default-src 'none'; script-src '{_hash(_script())}'; style-src '{_hash(_style())}'; "
        f"img-src data:; base-uri 'none'; form-action 'none'; {connections}"
    )


@functools.cache
def _template() -> Template:
    environment = Environment(loader=PackageLoader("rhapsody.report", "."), autoescape=True)
    environment.filters["duration"] = format_duration
    environment.filters["printable"] = printable
    return environment.get_template("page.html.j2")


@functools.cache
def _style() -> Markup:
    return Markup(_text_of("page.css"))


@functools.cache
def _script() -> Markup:
    return Markup("\n".join(["(() => {", *map(_text_of, SCRIPTS), "})();"]))


def _text_of(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"


class _View:
    """A run as it is now.

    Args:
        source: What the page shows.
        latest: Maximum number of ended tasks of each backend whose times are used.
        with_active: Whether active tasks are used, too, which may be many.
    """

    def __init__(self, source: PageSource, latest: int, with_active: bool = True) -> None:
        self._source = source
        self._runs = list(source.runs())
        self._now = time.monotonic()
        self._records = [
            run.records(latest) if with_active else run.history.records(latest)
            for run in self._runs
        ]
        histories = [run.history for run in self._runs]
        firsts = [h.first_submitted for h in histories if h.first_submitted is not None]
        submitted = (record.submitted for of_run in self._records for record in of_run)
        self._shown_from = min(submitted, default=self._now)
        # A task is submitted just before the batch that it belongs to is counted.
        self._origin = min([*firsts, self._shown_from])
        ends = (r.ended for of_run in self._records for r in of_run if r.ended is not None)
        is_active = not firsts or any(history.is_active for history in histories)
        last = self._now if is_active else max(ends, default=self._now)
        self._seconds = max(last - self._origin, 1e-3)

    def charts(self) -> dict[str, Any]:
        """Return the data of the charts."""
        data = ChartData(self._origin, self._seconds)
        for run, records in zip(self._runs, self._records, strict=True):
            data.add(run, records)
        return {**data.as_dict(), "from": max(self._shown_from - self._origin, 0.0)}

    def context(self, with_logs: bool = True) -> dict[str, Any]:
        """Return the variables of the template."""
        runs = self._runs
        statistics = [(run.name, run.statistics()) for run in runs]
        counts = [run.history.counts for run in runs]
        total = {state: sum(count.get(state, 0) for count in counts) for state in STATES}
        present = time.time() if self._source.present is None else self._source.present
        began = present - (self._now - self._origin)
        return {
            "title": printable(self._source.title),
            "began": datetime.fromtimestamp(began).strftime("%Y-%m-%d %H:%M:%S"),
            "seconds": self._seconds,
            "tiles": _tiles(total, self._seconds),
            "backends": [
                {**_figures(run, records, self._seconds), "scaling": scaling_note(own)}
                for run, records, (_, own) in zip(runs, self._records, statistics, strict=True)
            ],
            "limit_note": _limit_note(runs),
            "has_batches": any(run.history.batches() for run in runs),
            "failures": group_failures((run.name, run.history.failures()) for run in runs),
            "replicas": [row for name, own in statistics for row in servers_table(name, own)],
            "clients": [
                *self._source.clients(),
                *(client for _, own in statistics for client in clients_of(own)),
            ],
            "nodes": _nodes(self._source.resources()),
            "logs": _logs(runs) if with_logs else [],
            "prints": [(run.name, run.prints_to()) for run in runs if run.prints_to()],
            "versions": f"Rhapsody {version('rhapsody')}, Python {platform.python_version()}",
        }


def _tiles(total: dict[str, int], seconds: float) -> list[tuple[str, str, str]]:
    ended = sum(total[state] for state in TaskStates.terminal_states)
    active = total[TaskStates.PENDING] + total[TaskStates.RUNNING]
    tiles = [
        ("tasks", f"{ended + active:,}", ""),
        ("done", f"{total[TaskStates.DONE]:,}", ""),
        ("failed", f"{total[TaskStates.FAILED]:,}", "failed" if total[TaskStates.FAILED] else ""),
        ("canceled", f"{total[TaskStates.CANCELED]:,}", ""),
    ]
    if active:
        tiles.append(("still active", f"{active:,}", ""))
    return [*tiles, ("ended per second", _rate(ended, seconds), "")]


def _rate(number: int, seconds: float) -> str:
    rate = number / seconds
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}"


def _limit_note(runs: Sequence[BackendRun]) -> str:
    """Return a note if the page shows only the latest tasks of a backend."""
    if all(run.history.number_ended <= RECORDS for run in runs):
        return ""
    return (
        "Counts and failures include all tasks. Times and charts include only the latest "
        f"{RECORDS:,} tasks of each backend."
    )


def _figures(run: BackendRun, records: Sequence[TaskRecord], seconds: float) -> dict[str, Any]:
    counts = run.history.counts
    sizes = [size for _, size in run.history.batches()]
    latencies = sorted(r.ended - r.submitted for r in records if r.ended is not None)
    return {
        "name": run.name,
        "done": counts.get(TaskStates.DONE, 0),
        "failed": counts.get(TaskStates.FAILED, 0),
        "canceled": counts.get(TaskStates.CANCELED, 0),
        "active": counts.get(TaskStates.PENDING, 0) + counts.get(TaskStates.RUNNING, 0),
        "rate": _rate(run.history.number_ended, seconds),
        "latencies": [percentile(latencies, p) if latencies else None for p in (50, 90, 99, 100)],
        "waiting": _median(record.waiting for record in records),
        "running": _median(record.running for record in records),
        "batches": len(sizes),
        "per_batch": f"{sum(sizes) / len(sizes):.1f}" if sizes else "",
    }


def _median(times: Iterable[float | None]) -> float | None:
    known = [seconds for seconds in times if seconds is not None]
    return median(known) if known else None


def _nodes(resources: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the use of each node: its name, CPUs and memory in percent, and its GPUs."""
    nodes: dict[str, dict[str, Any]] = {}
    for update in resources:
        name = str(update["node_id"] or "unknown")
        node = nodes.setdefault(name, {"name": name, "cpu": None, "memory": None, "gpus": {}})
        if update["gpu_id"] is not None:
            node["gpus"][update["gpu_id"]] = update["gpu_percent"]
        elif update["cpu_percent"] is not None:
            node.update(cpu=update["cpu_percent"], memory=update["memory_percent"])
    return [nodes[name] for name in sorted(nodes)]


def _logs(runs: Iterable[BackendRun]) -> list[tuple[str, str]]:
    """Return the last lines of each log, with the name of what wrote it."""
    return [
        (f"{run.name}, {name}", printable(log))
        for run in runs
        for name, log in run.logs().items()
        if log
    ]


def _embedded(data: Any) -> Markup:
    """Return JSON for a script element, which no text in it can close."""
    return Markup(json.dumps(data, separators=(",", ":")).replace("<", r"\u003c"))
