"""ai_tasks inside blocks and workflow scopes, and tasks called by an ai_task."""

from typing import Any

import pytest

from tests.support.engines import Echo
from tests.support.waiting import until

pytestmark = pytest.mark.asyncflow


async def test_ai_task_runs_inside_block(flow: Any, ask: Any, three: Any) -> None:
    @flow.block
    async def pipeline() -> str:
        return str(await ask(ask(three())))

    assert await pipeline() == "<<3?>?>"


async def test_function_may_call_tasks(flow: Any, three: Any) -> None:
    @flow.ai_task
    async def ask() -> str:
        return f"{await three()}"

    assert await ask() == "<3>"


def label(flow: Any, name: str) -> Any:
    descriptions = (component["description"] for component in flow.components.values())
    return next(d["workflow_id"] for d in descriptions if d["name"] == name)


async def test_workflow_scope_labels_ai_task(held: tuple[Any, Echo, Any]) -> None:
    flow, ai, ask = held
    async with flow.workflow_scope("wf-1"):
        asked = ask()
    await until(lambda: ai.asked)
    assert label(flow, "ask") == "wf-1"
    ai.let_go.set()
    await asked


async def test_workflow_id_labels_ai_task_and_is_not_passed_on(held: tuple[Any, Echo, Any]) -> None:
    flow, ai, ask = held
    asked = ask(workflow_id="mine")
    await until(lambda: ai.asked)
    assert label(flow, "ask") == "mine"
    ai.let_go.set()
    await asked
