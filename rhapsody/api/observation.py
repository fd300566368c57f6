"""Observation of a session: statistics, pages and telemetry of its tasks."""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rhapsody.api.submissions.submissions import Submissions
from rhapsody.backends.core.history import STATES
from rhapsody.backends.core.html import state_cells
from rhapsody.report.runs import BackendRun, OwnerHistory, RecalledTasks, keeps_history

if TYPE_CHECKING:
    from rhapsody.report.live_page import LivePage
    from rhapsody.report.page import PageSource
    from rhapsody.telemetry.manager import TelemetryManager

__all__ = ["Observation"]


class Observation:
    """What a session shows of its tasks. It does not refer to the session.

    Args:
        uid: The session's uid.
        submissions: The session's tasks.

    Attributes:
        runs: The tasks at each backend, by its name.
    """

    def __init__(self, uid: str, submissions: Submissions) -> None:
        self._uid = uid
        self._submissions = submissions
        self._poll_interval = 5.0
        self._pages: list[LivePage] = []
        self.runs: dict[str, BackendRun] = {}

    def add_backend(self, backend: Any) -> None:
        """Observe a backend, to which the session is attached."""
        histories = self._submissions.histories
        if not keeps_history(backend):
            histories[backend.name] = OwnerHistory()
        self.runs[backend.name] = BackendRun(backend, histories.get(backend.name))
        if self._submissions.telemetry is not None:
            self._attach(self._submissions.telemetry, backend)

    def add_recalled(self, recalled: RecalledTasks) -> None:
        """Observe the tasks whose results come from the journal."""
        self.runs["journal"] = BackendRun(recalled)

    def statistics(self) -> dict[str, Any]:
        """Return counts and latencies; see `Session.get_statistics`."""
        backends = {
            name: {
                "tasks": run.history.counts,
                "latency_seconds": run.history.latency_seconds(),
                "backend": run.statistics(),
            }
            for name, run in self.runs.items()
        }
        total: Counter[str] = Counter()
        for figures in backends.values():
            total.update(figures["tasks"])
        return {"tasks": dict(total), "backends": backends}

    def table(self) -> list[list[Any]]:
        """Return a table for a notebook: the backends, and their tasks by state."""
        rows: list[list[Any]] = [["backend", *(state.lower() for state in STATES)]]
        rows += [[name, *state_cells(run.history.counts)] for name, run in self.runs.items()]
        return rows

    def write_page(self, path: str | os.PathLike[str], title: str | None) -> Path:
        """Write the report; see `Session.report`."""
        from rhapsody.report.page import write_page

        return write_page(path, self.page_source(title))

    def serve_page(self, owner: Any, port: int, title: str | None) -> LivePage:
        """Serve the live page until the session closes or is not referenced any more.

        Args:
            owner: The session.
            port: See `Session.serve_page`.
            title: See `Session.serve_page`.

        Raises:
            ResourceError: The port is in use.
        """
        from rhapsody.report.live_page import serve_page

        page = serve_page(owner, self.page_source(title), port)
        self._pages.append(page)
        return page

    def serve_if_wanted(self, owner: Any) -> None:
        """Serve the live page of a session if the environment asks for it."""
        if os.environ.get("RHAPSODY_PAGE"):
            from rhapsody.report.live_page import serve_if_wanted

            if (page := serve_if_wanted(owner, self.page_source())) is not None:
                self._pages.append(page)

    def page_source(self, title: str | None = None) -> PageSource:
        """Return what pages show. It does not refer to this object, which has the pages."""
        from rhapsody.report.page import PageSource

        runs, submissions = self.runs, self._submissions

        def resources() -> list[dict[str, Any]]:
            telemetry = submissions.telemetry
            return telemetry.latest_resources() if telemetry is not None else []

        return PageSource(title or self._uid, lambda: list(runs.values()), resources=resources)

    async def start_telemetry(
        self, backends: Iterable[Any], poll_interval: float, options: Mapping[str, Any]
    ) -> TelemetryManager:
        """Start telemetry, and return its manager.

        Args:
            backends: The session's backends.
            poll_interval: Seconds between two readings of the backends' statistics.
            options: Arguments of the manager.
        """
        from rhapsody.telemetry.manager import TelemetryManager

        telemetry = TelemetryManager(session_id=self._uid, **options)
        self._submissions.telemetry = telemetry
        self._poll_interval = poll_interval
        for backend in backends:
            self._attach(telemetry, backend)
        await telemetry.start()
        return telemetry

    def _attach(self, telemetry: TelemetryManager, backend: Any) -> None:
        telemetry.attach_backend(
            backend,
            session_id=self._uid,
            backend_name=backend.name,
            interval=self._poll_interval,
        )

    async def stop(self) -> None:
        """Stop the pages and the telemetry."""
        await asyncio.gather(*(page.stop() for page in self._pages))
        if self._submissions.telemetry is not None:
            await self._submissions.telemetry.stop()
