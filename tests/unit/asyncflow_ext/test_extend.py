"""`extend`: AsyncFlow's own engine with `ai_task`."""

from pathlib import Path
from typing import Any

import pytest
from radical.asyncflow import WorkflowEngine as StockEngine

from asyncflow_ext import extend
from rhapsody.backends import NoopExecutionBackend
from tests.support.engines import Echo

pytestmark = pytest.mark.asyncflow


async def test_extend_returns_engine_and_changes_no_other(tmp_path: Path) -> None:
    create = StockEngine.create
    one = await create(backend=Echo("a"), work_dir=str(tmp_path))
    two = await create(backend=Echo("b"), work_dir=str(tmp_path))
    try:
        assert extend(one) is one
        assert hasattr(one, "ai_task")
        assert not hasattr(two, "ai_task")
        assert not hasattr(StockEngine, "ai_task")
    finally:
        await one.shutdown()
        await two.shutdown()


@pytest.mark.parametrize("thing", [None, object(), NoopExecutionBackend()])
def test_extend_takes_only_engines(thing: Any) -> None:
    with pytest.raises(TypeError, match=r"extend\(\) takes a radical.asyncflow WorkflowEngine"):
        extend(thing)
