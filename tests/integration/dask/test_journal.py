"""The journal of an engine on a Dask cluster."""

import os
from pathlib import Path
from typing import Any

import pytest

from rhapsody.backends import ConcurrentExecutionBackend, DaskExecutionBackend

pytestmark = [pytest.mark.dask, pytest.mark.asyncflow]


async def test_run_continues_on_another_backend(cluster: Any, tmp_path: Path) -> None:
    from asyncflow_ext import WorkflowEngine

    pids = []
    for backend in (DaskExecutionBackend(cluster=cluster), ConcurrentExecutionBackend()):
        async with WorkflowEngine.create(
            backend=backend, journal=tmp_path / "run.journal", work_dir=str(tmp_path)
        ) as flow:

            @flow.function_task(version="1")
            async def where() -> int:
                return os.getpid()

            @flow.executable_task
            async def show(pid: int) -> str:
                return f"echo {pid}"

            shown = show(where())
            pids.append(int(await shown))
    assert shown.task["from_journal"]
    assert pids == [pids[0]] * 2
    assert pids[0] != os.getpid()
