"""Tasks: a piece of computing or a prompt, described once, filled with its results later.

A task is a dict that also reads by attribute, so a backend writes results where the user reads
them. Fields that were not given are not stored; known ones read as None.
"""

from __future__ import annotations

from rhapsody.api.tasks.ai import AITask, Prompt
from rhapsody.api.tasks.base import BaseTask
from rhapsody.api.tasks.compute import ComputeTask

__all__ = ["AITask", "BaseTask", "ComputeTask", "Prompt"]
