"""What Rhapsody adds to RADICAL AsyncFlow: AI tasks, on the stock engine or on one of its own."""

from __future__ import annotations

from asyncflow_ext.ai_task import extend
from asyncflow_ext.engine import WorkflowEngine
from asyncflow_ext.report import flow_live, flow_report

__all__ = ["WorkflowEngine", "extend", "flow_live", "flow_report"]
