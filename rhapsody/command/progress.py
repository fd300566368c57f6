"""The progress of a run over the lines of a file, as one line of the terminal."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from datetime import timedelta
from pathlib import Path

from rhapsody.inference.bulk.run import count_requests

__all__ = ["Progress", "progress_line"]

REFRESH_SECONDS = 0.5


class Progress:
    """Shows how far a run is, if standard error is a terminal.

    Args:
        source: The file of requests.
        model: The model that answers them.
        counts: The counts of the run, see `BulkRun`.
    """

    def __init__(self, source: Path, model: str, counts: Counter[str]) -> None:
        self._source = source
        self._model = model
        self._counts = counts
        self._created = time.monotonic()
        self._begun: float | None = None

    def begin(self) -> None:
        """Note that the server is ready."""
        self._begun = time.monotonic()

    async def show(self) -> None:
        """Show the line, twice a second, until this is cancelled."""
        from rich.console import Console
        from rich.live import Live
        from rich.text import Text

        console = Console(stderr=True)
        if not console.is_terminal:
            return
        counting = asyncio.create_task(count_requests(self._source))
        try:
            with Live(console=console, auto_refresh=False, transient=True) as live:
                while True:
                    text = self._line(counting.result() if counting.done() else None)
                    live.update(Text(text, overflow="ellipsis", no_wrap=True), refresh=True)
                    await asyncio.sleep(REFRESH_SECONDS)
        finally:
            counting.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await counting

    def _line(self, total: int | None) -> str:
        now = time.monotonic()
        if self._begun is None:
            return f"{_duration(now - self._created)}  starting {self._model}"
        return progress_line(self._counts, total, now - self._begun)


def progress_line(counts: Counter[str], total: int | None, seconds: float) -> str:
    """Return "0:00:03  1,200 of 2,000 lines, 4 errors, 250/s, 0:00:03 left".

    Args:
        counts: The counts of the run.
        total: The number of lines; None if it is not known yet.
        seconds: Seconds since the server was ready.
    """
    ended, sent = sum(counts.values()), counts["done"] + counts["errors"]
    of_total = "" if total is None else f" of {total:,}"
    parts = [f"{_duration(seconds)}  {ended:,}{of_total} lines", f"{counts['errors']:,} errors"]
    rate = sent / seconds if seconds > 0 else 0.0
    if rate > 0:
        parts.append(f"{rate:,.0f}/s" if rate >= 10 else f"{rate:.1f}/s")
        if total is not None:
            parts.append(f"{_duration((total - ended) / rate)} left")
    return ", ".join(parts)


def _duration(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
