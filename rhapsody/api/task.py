"""The tasks under their module's name in `rhapsody-py`; they live in `rhapsody.api.tasks`."""

from __future__ import annotations

from rhapsody.api.tasks import AITask, BaseTask, ComputeTask

__all__ = ["AITask", "BaseTask", "ComputeTask"]
