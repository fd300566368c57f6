"""ai_tasks in blocks and workflow scopes, and tasks in an ai_task."""

from typing import Any

import pytest

from tests.support.engines import Echo
from tests.support.waiting import until

pytestmark = pytest.mark.asyncflow


async def test_an_ai_task_works_inside_a_block(flow: Any, ask: Any, three: Any) -> None:
    @flow.block
    async def pipeline() -> str:
        return str(await ask(ask(three())))

    assert await pipeline() == "<<3?>?>"


async def test_a_body_may_run_tasks_of_its_own(flow: Any, three: Any) -> None:
    @flow.ai_task
    async def ask() -> str:
        return f"{await three()}"

    assert await ask() == "<3>"


def label(flow: Any, name: str) -> Any:
    descriptions = (component["description"] for component in flow.components.values())
    return next(d["workflow_id"] for d in descriptions if d["name"] == name)


async def test_a_workflow_scope_labels_it(held: tuple[Any, Echo, Any]) -> None:
    flow, ai, ask = held
    async with flow.workflow_scope("wf-1"):
        asked = ask()
    await until(lambda: ai.asked)
    assert label(flow, "ask") == "wf-1"
    ai.let_go.set()
    await asked


async def test_a_workflow_id_labels_it_and_does_not_reach_the_function(
    held: tuple[Any, Echo, Any],
) -> None:
    flow, ai, ask = held
    asked = ask(workflow_id="mine")
    await until(lambda: ai.asked)
    assert label(flow, "ask") == "mine"
    ai.let_go.set()
    await asked
