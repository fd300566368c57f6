"""Import path of tasks in `rhapsody-py`; they are defined in `rhapsody.api.tasks`."""

from __future__ import annotations

from rhapsody.api.tasks import AITask, BaseTask, ComputeTask

__all__ = ["AITask", "BaseTask", "ComputeTask"]
