"""Tasks: descriptions of functions, executables and prompts that later hold the results.

A task is a dict with attribute access. Backends write results into it. Fields that were not given
are not stored; known fields read as None.
"""

from __future__ import annotations

from rhapsody.api.tasks.ai import AITask, Prompt
from rhapsody.api.tasks.base import BaseTask
from rhapsody.api.tasks.compute import ComputeTask

__all__ = ["AITask", "BaseTask", "ComputeTask", "Prompt"]
