"""Tasks on a Dask backend, and schedulers and workers as processes that a test can kill."""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rhapsody.testing.samples import executable, function
from tests.support.runner import TaskRunner

PATIENCE_S = 30.0

SMALL = {"n_workers": 1, "threads_per_worker": 2, "processes": False}
"""A cluster in threads of this process, there in no time."""

HERE = {"dashboard_address": "127.0.0.1:0", "worker_dashboard_address": "127.0.0.1:0"}
"""What a caller adds to `SMALL` who makes a cluster and listens on this machine only."""


class Runner(TaskRunner):
    """Describes tasks, submits them and waits for their ends."""

    def function(self, func: Any, *args: Any, **options: Any) -> dict[str, Any]:
        """Describe a function; keywords are options of the backend."""
        task = function(self.next_uid(), func, *args)
        return {**task, "name": func.__name__, "task_backend_specific_kwargs": options}

    def executable(self, *command: str, **options: Any) -> dict[str, Any]:
        """Describe an executable; keywords are options of the backend."""
        task = executable(self.next_uid(), *command)
        return {**task, "name": command[0], "task_backend_specific_kwargs": options}

    async def running(self, task: dict[str, Any]) -> None:
        """Wait until a task is said to run."""
        await until(lambda: self.began(task))


async def until(is_so: Callable[[], bool]) -> None:
    """Wait for what no event tells."""
    for _ in range(int(PATIENCE_S / 0.01)):
        if is_so():
            return
        await asyncio.sleep(0.01)
    raise TimeoutError(f"waited for {PATIENCE_S} s")


@contextlib.contextmanager
def scheduler_process(directory: Path) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """Run a scheduler of its own, as `dask scheduler` does; its address and its process."""
    about = directory / "scheduler.json"
    command = [
        *(sys.executable, "-m", "distributed.cli.dask_scheduler", "--host", "127.0.0.1"),
        *("--port", "0", "--no-dashboard", "--scheduler-file", str(about)),
    ]
    with _process(command, directory / "scheduler.log") as process:
        deadline = time.monotonic() + PATIENCE_S
        while not about.exists() or not about.read_text():
            assert process.poll() is None, (directory / "scheduler.log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        yield json.loads(about.read_text())["address"], process


@contextlib.contextmanager
def worker_process(address: str, directory: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a worker of its own, without a nanny."""
    command = [
        *(sys.executable, "-m", "distributed.cli.dask_worker", address, "--no-nanny"),
        *("--no-dashboard", "--nthreads", "2", "--host", "127.0.0.1"),
        *("--local-directory", str(directory), "--death-timeout", "5"),
    ]
    with _process(command, directory / "worker.log") as process:
        yield process


@contextlib.contextmanager
def _process(command: list[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output)
        try:
            yield process
        finally:
            process.kill()
            process.wait()
