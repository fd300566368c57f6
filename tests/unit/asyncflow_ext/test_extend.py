"""`extend`: AsyncFlow's own engine with `ai_task`."""

from pathlib import Path
from typing import Any

import pytest

from rhapsody.backends import NoopExecutionBackend
from tests.support.engines import Echo

pytestmark = pytest.mark.asyncflow


async def test_extending_returns_the_engine_and_touches_no_other(tmp_path: Path) -> None:
    import radical.asyncflow

    import asyncflow_ext

    create = radical.asyncflow.WorkflowEngine.create
    one = await create(backend=Echo("a"), work_dir=str(tmp_path))
    two = await create(backend=Echo("b"), work_dir=str(tmp_path))
    try:
        assert asyncflow_ext.extend(one) is one
        assert hasattr(one, "ai_task")
        assert not hasattr(two, "ai_task")
        assert not hasattr(radical.asyncflow.WorkflowEngine, "ai_task")
    finally:
        await one.shutdown()
        await two.shutdown()


@pytest.mark.parametrize("thing", [None, object(), NoopExecutionBackend()])
def test_only_an_engine_can_be_extended(thing: Any) -> None:
    import asyncflow_ext

    with pytest.raises(TypeError, match=r"extend\(\) takes a radical.asyncflow WorkflowEngine"):
        asyncflow_ext.extend(thing)
