"""The check of AsyncFlow's internals, and the object that `create` returns."""

import asyncio

import pytest
from radical.asyncflow import WorkflowEngine as StockEngine

from asyncflow_ext import WorkflowEngine, compat

pytestmark = pytest.mark.asyncflow


async def test_create_can_run_as_asyncio_task() -> None:
    flow = await asyncio.create_task(WorkflowEngine.create(dry_run=True))
    await flow.shutdown()


async def test_unawaited_creation_closes_without_warning() -> None:
    WorkflowEngine.create(dry_run=True).close()


def test_asyncflow_with_moved_internals_is_rejected() -> None:
    class Moved(StockEngine):  # type: ignore[misc]
        _attach_backend = None

        def __init__(self) -> None:
            self.components: dict[str, object] = {}

    with pytest.raises(ImportError, match=r"supports radical\.asyncflow 0\.6.*_attach_backend"):
        compat.check_stock(Moved)


def test_installed_asyncflow_is_accepted() -> None:
    compat.check_stock()
