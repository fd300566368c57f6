"""The protocol of reports about tasks, which every backend implements."""

from __future__ import annotations

from typing import Any, Protocol

from rhapsody.backends.core.work import Work

__all__ = ["TaskReports"]


class TaskReports(Protocol):
    """Accepts reports about tasks. Each task has one end; later reports are dropped."""

    def report_running(self, work: Work, place: str = "") -> None:
        """Report that a task has started, and where."""

    def report_done(self, work: Work, fields: dict[str, Any]) -> bool:
        """Report a task's result fields."""

    def report_failed(self, work: Work, error: BaseException) -> bool:
        """Report that a task failed."""

    def report_cancelled(self, work: Work) -> bool:
        """Report that a task was interrupted, or cancelled before it started."""
