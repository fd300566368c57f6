"""Extensions of RADICAL AsyncFlow: AI tasks, and an event-driven workflow engine."""

from __future__ import annotations

from asyncflow_ext.ai_task import extend
from asyncflow_ext.arguments import allow_failures
from asyncflow_ext.engine import WorkflowEngine
from asyncflow_ext.report import flow_live, flow_page, flow_report

__all__ = ["WorkflowEngine", "allow_failures", "extend", "flow_live", "flow_page", "flow_report"]
