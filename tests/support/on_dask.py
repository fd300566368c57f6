"""Runner of tasks on a Dask backend, and Dask schedulers and workers in separate processes."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rhapsody.testing.samples import executable, function
from tests.support.runner import TaskRunner
from tests.support.waiting import until, until_blocking

SMALL = {"n_workers": 1, "threads_per_worker": 2, "processes": False}
"""Options of a cluster in threads of this process, which starts at once."""

HERE = {"dashboard_address": "127.0.0.1:0", "worker_dashboard_address": "127.0.0.1:0"}
"""Further options with which a test's own cluster listens on loopback only."""


class DaskRunner(TaskRunner):
    """Describes tasks, submits them and waits for their ends."""

    def function(self, func: Callable[..., Any], *args: Any, **options: Any) -> dict[str, Any]:
        """Describe a function task; keyword arguments are options of the backend."""
        task = function(self.next_uid(), func, *args)
        return {**task, "name": func.__name__, "task_backend_specific_kwargs": options}

    def executable(self, *command: str, **options: Any) -> dict[str, Any]:
        """Describe an executable task; keyword arguments are options of the backend."""
        task = executable(self.next_uid(), *command)
        return {**task, "name": command[0], "task_backend_specific_kwargs": options}

    async def running(self, task: dict[str, Any]) -> None:
        """Wait until a task is reported RUNNING."""
        await until(lambda: self.began(task))


@contextlib.contextmanager
def scheduler_process(directory: Path) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """Run `dask scheduler`; yields its address and its process."""
    file = directory / "scheduler.json"
    command = [
        *(sys.executable, "-m", "distributed.cli.dask_scheduler", "--host", "127.0.0.1"),
        *("--port", "0", "--no-dashboard", "--scheduler-file", str(file)),
    ]
    with _process(command, directory / "scheduler.log") as process:
        until_blocking(lambda: process.poll() is not None or _has_text(file))
        assert process.poll() is None, (directory / "scheduler.log").read_text()
        yield json.loads(file.read_text())["address"], process


@contextlib.contextmanager
def worker_process(address: str, directory: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run `dask worker` without a nanny; yields its process."""
    command = [
        *(sys.executable, "-m", "distributed.cli.dask_worker", address, "--no-nanny"),
        *("--no-dashboard", "--nthreads", "2", "--host", "127.0.0.1"),
        *("--local-directory", str(directory), "--death-timeout", "5"),
    ]
    with _process(command, directory / "worker.log") as process:
        yield process


def _has_text(path: Path) -> bool:
    return path.exists() and bool(path.read_text())


@contextlib.contextmanager
def _process(command: list[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output)
        try:
            yield process
        finally:
            process.kill()
            process.wait()
