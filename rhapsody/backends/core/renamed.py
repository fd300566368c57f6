"""The methods of `BaseBackend` under their names in version 0.1, for backends of your own."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from rhapsody.backends.core.work import Work

__all__ = ["RenamedMethods"]


class RenamedMethods:
    """Old names of methods. Each call warns, and calls the method under its new name."""

    def running(self: Any, work: Work, place: str = "") -> None:
        """Call `report_running`."""
        _warn("running", "report_running")
        self.report_running(work, place)

    def finish(self: Any, work: Work, state: str, fields: dict[str, Any] | None = None) -> bool:
        """Report the end of a task with a state; see `report_done`."""
        _warn("finish", "report_done, report_failed or report_cancelled")
        return bool(self._report_end(work, state, fields))

    def fail(self: Any, work: Work, error: BaseException) -> bool:
        """Call `report_failed`."""
        _warn("fail", "report_failed")
        return bool(self.report_failed(work, error))

    def stopped(self: Any, work: Work) -> bool:
        """Call `report_cancelled`."""
        _warn("stopped", "report_cancelled")
        return bool(self.report_cancelled(work))

    async def answer(self: Any, task: Mapping[str, Any]) -> dict[str, Any]:
        """Call `run_one`."""
        _warn("answer", "run_one")
        result: dict[str, Any] = await self.run_one(task)
        return result


def _warn(old: str, new: str) -> None:
    warnings.warn(f"the method '{old}' of a backend is now {new}", DeprecationWarning, stacklevel=3)
