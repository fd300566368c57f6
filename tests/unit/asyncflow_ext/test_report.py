"""`flow_report` and `flow_live`, on AsyncFlow's own engine and on Rhapsody's."""

import asyncio
from pathlib import Path

import pytest
from radical.asyncflow import NoopExecutionBackend as StockBackend
from radical.asyncflow import WorkflowEngine as StockEngine

from asyncflow_ext import extend, flow_live, flow_report
from rhapsody.api import ConfigurationError
from rhapsody.backends import ConcurrentExecutionBackend, NoopExecutionBackend
from tests.support.engines import ENGINES, make_engine

pytestmark = pytest.mark.asyncflow


@pytest.mark.parametrize("kind", ENGINES)
async def test_report_shows_tasks_after_shutdown(kind: str, tmp_path: Path) -> None:
    backends = [ConcurrentExecutionBackend(), NoopExecutionBackend("ai")]
    flow = await make_engine(kind, backends, work_dir=str(tmp_path))
    extend(flow)

    @flow.function_task
    async def simulate() -> int:
        return 7

    @flow.ai_task
    async def explain(number: int) -> str:
        return f"What is {number}?"

    await explain(simulate())
    await flow.shutdown()
    page = flow_report(flow, tmp_path / "run.html", title="A flow").read_text(encoding="utf-8")
    assert "<h1>A flow</h1>" in page
    assert '"names":["simulate","prompt"]' in page


@pytest.mark.parametrize("kind", ENGINES)
async def test_live_view_shows_tasks(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flow = await make_engine(kind, [ConcurrentExecutionBackend()], work_dir=str(tmp_path))

    @flow.function_task
    async def simulate() -> int:
        return 7

    with flow_live(flow):
        await asyncio.gather(*(simulate() for _ in range(3)))
    await flow.shutdown()
    assert "concurrent: 3 done" in capsys.readouterr().err


async def test_engine_without_history_is_rejected(tmp_path: Path) -> None:
    flow = await StockEngine.create(StockBackend(), work_dir=str(tmp_path))
    with pytest.raises(ConfigurationError, match="no backend of the engine keeps a history"):
        flow_report(flow, tmp_path / "run.html")
    await flow.shutdown()


def test_report_takes_only_engines(tmp_path: Path) -> None:
    with pytest.raises(
        TypeError, match=r"'flow' must be a radical\.asyncflow WorkflowEngine, got int"
    ):
        flow_report(3, tmp_path / "run.html")
