"""The backend without a Dragon runtime: its checks, and tasks on local worker processes."""

import asyncio
import os
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from rhapsody.allocation import Node
from rhapsody.backends import DragonExecutionBackend, DragonExecutionBackendV3
from rhapsody.backends.core.attachment import Attachment, ignore
from rhapsody.backends.core.work import Work
from rhapsody.backends.dragon import backend as backend_module
from rhapsody.errors import ConfigurationError, ResourceError, UnsupportedTaskError
from tests.support.fake_dragon import FakeProcesses
from tests.support.on_dragon import DragonRunner
from tests.support.waiting import until

pytestmark = pytest.mark.usefixtures("runtime")

NODES = [Node("other", 4), Node("head", 2, is_head=True)]


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    """A runtime with two nodes, as far as the backend's checks can see."""
    monkeypatch.setattr(backend_module, "require_runtime", lambda feature, name: None)
    monkeypatch.setattr(backend_module, "allocation", lambda: NODES)


def work(**task: Any) -> Work:
    return Work({"uid": "task", **task}, Attachment(ignore), "")


def test_both_names_are_the_same_class() -> None:
    assert DragonExecutionBackend is DragonExecutionBackendV3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_workers": 0}, "num_workers must be a whole number of at least 1, got 0"),
        ({"num_workers": 1.5}, "num_workers must be a whole number of at least 1, got 1.5"),
        ({"async_per_worker": 0}, "async_per_worker must be a whole number of at least 1, got 0"),
        ({"nodes": 0}, "nodes must be a whole number of at least 1, got 0"),
        ({"cancel_grace": -1.0}, "cancel_grace must be a number of seconds, got -1.0"),
    ],
)
def test_invalid_arguments_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DragonExecutionBackend(**options)


def test_options_of_dragons_batch_are_accepted_and_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    DragonExecutionBackend(batch_kwargs={"task_logs": False})
    [record] = caplog.records
    assert "batch_kwargs has no effect (task_logs)" in record.message


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"colour": "blue"}, "'colour'"),
        ({"retries": -1}, "'retries' must be a whole number of at least 0, got -1"),
        ({"retries": "often"}, "'retries' must be a whole number of at least 0, got 'often'"),
    ],
)
def test_invalid_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedTaskError, match=message):
        DragonExecutionBackend().check(work(function=len, task_backend_specific_kwargs=options))


def test_statistics_are_empty_before_the_start() -> None:
    backend = DragonExecutionBackend()
    assert backend.get_statistics() == {}
    assert backend.worker_pids == []


async def test_missing_nodes_fail_the_start() -> None:
    with pytest.raises(ConfigurationError, match="nodes=7 asks for more nodes than the 2"):
        await DragonExecutionBackend(nodes=7)


linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has abstract sockets")


@linux
async def test_tasks_run_on_the_head_node_first(
    local_processes: FakeProcesses, tmp_path: Path
) -> None:
    async with DragonExecutionBackend(num_workers=1, nodes=1) as backend:
        runner = DragonRunner(backend)
        backend._work_dir = str(tmp_path)
        function = runner.function(os.getpid)
        captured = runner.function(print, "hello", capture_stdio=True)
        executable = runner.executable("/bin/echo", "hello")
        assert await runner.run(function, captured, executable) == ["DONE"] * 3
        assert [function["return_value"]] == backend.worker_pids
        assert Path(captured["stdout"]).read_text() == "hello\n"
        assert executable["stdout"] == "hello\n"
        assert backend.get_statistics()["workers"] == 1
    assert local_processes.started == ["head"]


@linux
async def test_running_task_is_cancelled(local_processes: FakeProcesses) -> None:
    async with DragonExecutionBackend(num_workers=1, nodes=1) as backend:
        runner = DragonRunner(backend)
        task = runner.function(time.sleep, 60)
        await runner.submit(task)
        await until(lambda: runner.began(task))
        assert await backend.cancel_task(task["uid"])
        assert await runner.end(task) == "CANCELED"


@linux
async def test_unplaceable_job_fails(local_processes: FakeProcesses) -> None:
    async with DragonExecutionBackend(num_workers=1, nodes=1) as backend:
        runner = DragonRunner(backend)
        task = runner.function(len, "four", options={"ranks": 1, "gpus_per_rank": 1})
        assert await runner.run(task) == ["FAILED"]
        assert isinstance(task["exception"], ResourceError)


@linux
async def test_task_cancelled_between_start_and_dispatch_ends(
    local_processes: FakeProcesses,
) -> None:
    class Interrupted(DragonExecutionBackend):
        async def start(self) -> None:
            await super().start()
            (submitted,) = self._works.values()
            self.cancelling = asyncio.ensure_future(self._cancel(submitted))

    backend = Interrupted(num_workers=1, nodes=1)
    runner = DragonRunner(backend)
    task = runner.function(time.sleep, 60)
    await runner.submit(task)
    assert await runner.end(task) == "CANCELED"
    await backend.shutdown()
