"""A session's progress on standard error: a live table, or plain lines where it is no terminal."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.live import Live
from rich.table import Table

from rhapsody.backends.protocol import TaskStates

if TYPE_CHECKING:
    from rhapsody.api.session import Session

__all__ = ["watch"]

REFRESH_SECONDS = 0.2
LINE_SECONDS = 5.0

STATES = (
    TaskStates.PENDING,
    TaskStates.RUNNING,
    TaskStates.DONE,
    TaskStates.FAILED,
    TaskStates.CANCELED,
)


async def watch(session: Session, waiter: Awaitable[Any] | None) -> set[Any]:
    """Show how a session's tasks get on until a wait has ended.

    Args:
        session: The session to show.
        waiter: An `asyncio.wait`, or None where there is nothing to wait for.

    Returns:
        What has not ended when the wait timed out.
    """
    console = Console(stderr=True)
    view = _View(session)
    pending: set[Any] = set()
    if waiter is not None:
        wait = asyncio.ensure_future(waiter)
        try:
            if console.is_terminal:
                await _live(console, view, wait)
            else:
                await _lines(console, view, wait)
            pending = wait.result()[1]
        finally:
            wait.cancel()
    if not console.is_terminal:
        console.print(view.line(), highlight=False, soft_wrap=True)
    return pending


async def _live(console: Console, view: _View, wait: asyncio.Future[Any]) -> None:
    with Live(view.table(), console=console, auto_refresh=False) as live:
        while not wait.done():
            await asyncio.wait([wait], timeout=REFRESH_SECONDS)
            live.update(view.table(), refresh=True)


async def _lines(console: Console, view: _View, wait: asyncio.Future[Any]) -> None:
    while True:
        await asyncio.wait([wait], timeout=LINE_SECONDS)
        if wait.done():
            return
        console.print(view.line(), highlight=False, soft_wrap=True)


class _View:
    """What is shown: tasks by state for each backend, ended per second, batch sizes."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._start = time.monotonic()
        self._ended_before = {
            name: self._ended(figures) for name, figures in self._figures().items()
        }

    def _figures(self) -> dict[str, dict[str, Any]]:
        figures: dict[str, dict[str, Any]] = self._session.get_statistics()["backends"]
        return figures

    @staticmethod
    def _ended(figures: dict[str, Any]) -> int:
        return sum(figures["tasks"].get(state, 0) for state in TaskStates.terminal_states)

    def _rate(self, name: str, figures: dict[str, Any]) -> float:
        elapsed = max(time.monotonic() - self._start, 1e-3)
        return (self._ended(figures) - self._ended_before.get(name, 0)) / elapsed

    def table(self) -> Table:
        seconds = f"{time.monotonic() - self._start:.1f} s"
        table = Table(title=seconds, title_justify="left", box=box.SIMPLE, padding=(0, 1, 0, 0))
        table.add_column("backend", style="bold", no_wrap=True)
        for state in STATES:
            table.add_column(state.lower(), justify="right")
        table.add_column("ended/s", justify="right")
        table.add_column("per batch", justify="right")
        for name, figures in self._figures().items():
            failed = figures["tasks"].get(TaskStates.FAILED, 0)
            table.add_row(
                name,
                *(str(figures["tasks"].get(state, 0)) for state in STATES),
                f"{self._rate(name, figures):,.1f}",
                _batch(figures),
                style="red" if failed else None,
            )
        return table

    def line(self) -> str:
        parts = []
        for name, figures in self._figures().items():
            states = [f"{n} {state.lower()}" for state, n in figures["tasks"].items()]
            text = f"{name}: {', '.join(states) or 'no tasks'}, {self._rate(name, figures):,.1f}/s"
            batch = _batch(figures)
            parts.append(f"{text}, {batch} prompts a batch" if batch else text)
        return f"[{time.monotonic() - self._start:6.1f} s] " + "; ".join(parts)


def _batch(figures: dict[str, Any]) -> str:
    mean = figures.get("backend", {}).get("mean_batch_size")
    return "" if mean is None else f"{mean:.1f}"
