"""What Rhapsody adds to RADICAL AsyncFlow: AI tasks, on the stock engine or on one of its own."""

from __future__ import annotations

from asyncflow_ext.ai_task import extend
from asyncflow_ext.engine import WorkflowEngine

__all__ = ["WorkflowEngine", "extend"]
