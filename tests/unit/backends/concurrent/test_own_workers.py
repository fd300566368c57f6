"""Functions that ask for resources of worker processes: each has a worker of its own."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from concurrent.futures import ProcessPoolExecutor
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from rhapsody.backends import ConcurrentExecutionBackend
from rhapsody.backends.concurrent import worker_process
from rhapsody.errors import BackendError, ResourceError, WorkerDied
from rhapsody.gpus import GPUS, PARTS, assigned_gpus
from rhapsody.testing import samples
from rhapsody.testing.gate import Gate
from tests.support import functions
from tests.support.on_concurrent import ConcurrentRunner
from tests.support.processes import wait_gone
from tests.support.waiting import until


@pytest_asyncio.fixture
async def runner(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[ConcurrentRunner]:
    """A runner on two processes and two GPUs."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    async with ConcurrentExecutionBackend("process", max_workers=2) as backend:
        yield ConcurrentRunner(backend)
    assert [GPUS.free_parts("this machine", gpu) for gpu in ("4", "7")] == [PARTS, PARTS]


def with_resources(task: dict[str, Any], **resources: Any) -> dict[str, Any]:
    return {**task, "resources": resources}


def gpus_and_mode() -> tuple[Any, str | None, int]:
    return assigned_gpus(), os.environ.get("MODE"), os.getpid()


async def test_function_sees_its_gpus_and_variables(runner: ConcurrentRunner) -> None:
    task = with_resources(runner.function(gpus_and_mode), gpus=1, env={"MODE": "fast"})
    assert await runner.run(task) == ["DONE"]
    gpus, mode, pid = task["return_value"]
    assert gpus in (("4",), ("7",))
    assert mode == "fast"
    assert pid != os.getpid()
    wait_gone(pid)
    assert (await runner.call(gpus_and_mode))[:2] == (("4", "7"), None)


@pytest.mark.parametrize("kind", ["function", "async"])
async def test_functions_share_a_gpu_and_others_wait(
    kind: str, runner: ConcurrentRunner, gate: Gate
) -> None:
    tasks = [samples.held(kind, f"task {n}", gate) for n in range(3)]
    tasks = [with_resources(task, gpus=2 if n == 2 else 0.5) for n, task in enumerate(tasks)]
    await runner.submit(*tasks)
    await gate.started("task 0")
    await gate.started("task 1")
    assert runner.reports.states(tasks[2]["uid"]) == []
    gate.release("task 0")
    gate.release("task 1")
    await gate.started("task 2")
    gate.release("task 2")
    assert [await runner.end(task) for task in tasks] == ["DONE"] * 3


async def test_plain_functions_run_beside_one_that_has_all_gpus(
    runner: ConcurrentRunner, gate: Gate
) -> None:
    held = with_resources(samples.held("function", "held", gate), gpus=2)
    await runner.submit(held)
    await gate.started("held")
    tasks = [runner.function(functions.add, n) for n in range(20)]
    assert await runner.run(*tasks) == ["DONE"] * 20
    gate.release("held")
    assert await runner.end(held) == "DONE"


async def test_function_that_needs_all_cpus_waits_for_plain_ones_and_they_for_it(
    runner: ConcurrentRunner, gate: Gate
) -> None:
    plain = [samples.held("function", f"plain {n}", gate) for n in range(2)]
    await runner.submit(*plain)
    for n in range(2):
        await gate.started(f"plain {n}")
    large = with_resources(samples.held("function", "large", gate), cpus=2)
    await runner.submit(large)
    gate.release("plain 0")
    assert await runner.end(plain[0]) == "DONE"
    later = [runner.function(functions.add, n) for n in range(20)]
    await runner.submit(*later)
    assert runner.reports.states(large["uid"]) == []
    gate.release("plain 1")
    await gate.started("large")
    assert [runner.reports.states(task["uid"]) for task in later] == [[]] * 20
    gate.release("large")
    assert [await runner.end(task) for task in (large, *later)] == ["DONE"] * 21


def interval() -> tuple[float, float]:
    began = time.monotonic()
    time.sleep(0.005)
    return began, time.monotonic()


async def test_no_more_cpus_are_in_use_than_there_are(runner: ConcurrentRunner) -> None:
    tasks, cpus = [], []
    for n in range(60):
        task = runner.function(interval)
        wanted = {15: 2, 16: 1, 40: 2, 41: 1, 42: 1}.get(n, 0)
        tasks.append(with_resources(task, cpus=wanted) if wanted else task)
        cpus.append(wanted or 1)
    assert await runner.run(*tasks) == ["DONE"] * 60
    changes = []
    for task, used in zip(tasks, cpus, strict=True):
        began, ended = task["return_value"]
        changes += [(began, used), (ended, -used)]
    assert max(accumulate(change for _, change in sorted(changes))) <= 2


async def test_cancelled_function_that_waits_for_cpus_lets_others_go_on(
    runner: ConcurrentRunner, gate: Gate
) -> None:
    held = samples.held("function", "held", gate)
    await runner.submit(held)
    await gate.started("held")
    large = with_resources(runner.function(functions.add, 1), cpus=2)
    plain = [runner.function(functions.add, n) for n in range(5)]
    await runner.submit(large, *plain)
    await until(lambda: runner.backend._manager.scheduler._reservations.any_waits)
    assert await runner.backend.cancel_task(large["uid"])
    assert await runner.end(large) == "CANCELED"
    assert [await runner.end(task) for task in plain] == ["DONE"] * 5
    gate.release("held")
    assert await runner.end(held) == "DONE"
    after = with_resources(runner.function(functions.add, 1), cpus=2)
    assert await runner.run(after) == ["DONE"]


@pytest.mark.parametrize("resources", [{"cpus": 2}, {"exclusive": True}], ids=["cpus", "exclusive"])
async def test_executable_takes_its_cpus_from_the_workers(
    resources: dict[str, Any], runner: ConcurrentRunner, gate: Gate
) -> None:
    held = samples.held("function", "held", gate)
    await runner.submit(held)
    await gate.started("held")
    program = samples.executable(runner.next_uid(), "/bin/echo", "hello")
    free = samples.executable(runner.next_uid(), "/bin/echo", "hello")
    program = with_resources(program, **resources)
    await runner.submit(program)
    assert await runner.run(free) == ["DONE"] if "cpus" in resources else True
    assert runner.reports.states(program["uid"]) == []
    gate.release("held")
    assert await runner.end(program) == "DONE"
    assert await runner.call(functions.add, 1) == 2


async def test_waiting_and_running_function_can_be_cancelled(
    runner: ConcurrentRunner, gate: Gate
) -> None:
    running, waiting, last = (
        with_resources(samples.held("function", name, gate), gpus=2)
        for name in ("running", "waiting", "last")
    )
    await runner.submit(running)
    await gate.started("running")
    await runner.submit(waiting, last)
    for task in (waiting, running):
        assert await runner.backend.cancel_task(task["uid"])
        assert await runner.end(task) == "CANCELED"
    await gate.started("last")
    gate.release("last")
    assert await runner.end(last) == "DONE"


async def test_function_can_be_cancelled_while_its_worker_starts(runner: ConcurrentRunner) -> None:
    task = with_resources(runner.function(functions.add, 1), gpus=2)
    await runner.submit(task)
    await until(lambda: runner.backend.get_statistics()["workers_starting"] == 1)
    assert await runner.backend.cancel_task(task["uid"])
    assert await runner.end(task) == "CANCELED"
    after = with_resources(runner.function(functions.add, 1), gpus=2)
    assert await runner.run(after) == ["DONE"]


async def test_dead_worker_fails_its_function_and_frees_the_gpus(runner: ConcurrentRunner) -> None:
    dead = with_resources(runner.function(functions.kill_itself), gpus=2)
    after = with_resources(runner.function(functions.add, 1), gpus=2)
    assert await runner.run(dead, after) == ["FAILED", "DONE"]
    assert isinstance(dead["exception"], WorkerDied)


def fail_once(path: str) -> str | None:
    if os.path.exists(path):
        return os.environ.get("CUDA_VISIBLE_DEVICES")
    Path(path).touch()
    os.kill(os.getpid(), signal.SIGKILL)
    return None


async def test_function_with_retries_runs_again_on_its_gpus(
    runner: ConcurrentRunner, tmp_path: Path
) -> None:
    task = with_resources(runner.function(fail_once, str(tmp_path / "file")), gpus=2)
    task["task_backend_specific_kwargs"] = {"retries": 1}
    assert await runner.run(task) == ["DONE"], task["exception"]
    assert task["return_value"] == "4,7"


async def test_request_that_can_never_be_met_fails(runner: ConcurrentRunner) -> None:
    task = with_resources(runner.function(functions.add, 1), gpus=3)
    assert await runner.run(task) == ["FAILED"]
    assert isinstance(task["exception"], ResourceError)
    assert "it asks for 1 CPU and 3 GPUs; this machine has 2 CPUs, 2 GPUs" in str(task["exception"])


async def test_worker_that_cannot_start_fails_its_function(
    runner: ConcurrentRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_process, "BOOTSTRAP", "raise ImportError('no module')")
    runner.backend._manager._command = worker_process.command()
    task = with_resources(runner.function(functions.add, 1), gpus=2)
    assert await runner.run(task) == ["FAILED"]
    assert isinstance(task["exception"], BackendError)
    assert "no module" in str(task["exception"])
    monkeypatch.undo()
    runner.backend._manager._command = worker_process.command()
    after = with_resources(runner.function(functions.add, 1), gpus=2)
    assert await runner.run(after) == ["DONE"]


async def test_shutdown_ends_running_and_waiting_functions(gate: Gate) -> None:
    async with ConcurrentExecutionBackend("process", max_workers=1) as backend:
        runner = ConcurrentRunner(backend)
        tasks = [
            with_resources(samples.held("function", f"task {n}", gate), cpus=1) for n in range(2)
        ]
        await runner.submit(*tasks)
        await gate.started("task 0")
    assert [await asyncio.wait_for(runner.end(task), 5) for task in tasks] == ["CANCELED"] * 2


async def test_function_in_the_callers_executor_is_refused() -> None:
    with ProcessPoolExecutor(1) as pool:
        async with ConcurrentExecutionBackend(pool) as backend:
            runner = ConcurrentRunner(backend)
            task = with_resources(runner.function(functions.add, 1), cpus=1)
            assert await runner.run(task) == ["FAILED"]
    assert "does not manage the resource 'cpus'" in str(task["exception"])
