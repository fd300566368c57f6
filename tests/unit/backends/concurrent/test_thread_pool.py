import threading
from typing import Any

import pytest

from rhapsody.backends import ConcurrentExecutionBackend
from rhapsody.backends.concurrent.thread_pool import default_threads
from rhapsody.errors import ResourceError, UnsupportedTaskError
from rhapsody.gpus import assigned_gpus
from rhapsody.testing import samples
from rhapsody.testing.gate import Gate
from tests.support import functions
from tests.support.on_concurrent import ConcurrentRunner
from tests.support.waiting import until


class Running:
    """Counts functions that run at the same time."""

    def __init__(self) -> None:
        self.now = self.most = 0
        self.lock = threading.Lock()

    def __call__(self) -> None:
        with self.lock:
            self.now += 1
            self.most = max(self.most, self.now)
        threading.Event().wait(0.01)
        with self.lock:
            self.now -= 1


async def test_as_many_functions_run_at_once_as_there_are_threads() -> None:
    barrier = threading.Barrier(default_threads())
    async with ConcurrentExecutionBackend() as backend:
        runner = ConcurrentRunner(backend)
        tasks = [runner.function(barrier.wait, 30) for _ in range(default_threads())]
        assert set(await runner.run(*tasks)) == {"DONE"}


async def test_function_of_two_cpus_takes_two_places() -> None:
    running = Running()
    async with ConcurrentExecutionBackend(max_workers=4) as backend:
        runner = ConcurrentRunner(backend)
        tasks = [{**runner.function(running), "resources": {"cpus": 2}} for _ in range(12)]
        assert set(await runner.run(*tasks)) == {"DONE"}
    assert running.most == 2


async def test_exclusive_function_runs_alone(gate: Gate) -> None:
    async with ConcurrentExecutionBackend(max_workers=4) as backend:
        runner = ConcurrentRunner(backend)
        await backend.submit_tasks([samples.held("function", "held", gate)])
        await gate.started("held")
        exclusive = {**runner.function(functions.add, 1), "resources": {"exclusive": True}}
        executable = samples.executable(runner.next_uid(), "true")
        await backend.submit_tasks([exclusive])
        assert runner.reports.states(exclusive["uid"]) == []
        gate.release("held")
        assert await runner.run(executable) == ["DONE"]
        assert (await runner.reports.end(exclusive["uid"])).state == "DONE"


async def test_function_of_high_priority_overtakes(gate: Gate) -> None:
    order: list[int] = []
    async with ConcurrentExecutionBackend(max_workers=1) as backend:
        runner = ConcurrentRunner(backend)
        await backend.submit_tasks([samples.held("function", "held", gate)])
        await gate.started("held")
        tasks = [
            {**runner.function(order.append, priority), "priority": priority}
            for priority in (0, 1, -1, 5)
        ]
        await backend.submit_tasks(tasks)
        gate.release("held")
        for task in tasks:
            await runner.reports.end(task["uid"])
    assert order == [5, 1, 0, -1]


async def test_gpus_are_assigned_by_index(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    barrier = threading.Barrier(2)

    def gpus() -> tuple[Any, ...]:
        barrier.wait(30)
        return assigned_gpus()

    async with ConcurrentExecutionBackend() as backend:
        runner = ConcurrentRunner(backend)
        tasks = [{**runner.function(gpus), "resources": {"gpus": 1}} for _ in range(2)]
        assert set(await runner.run(*tasks)) == {"DONE"}
        assert {task["return_value"] for task in tasks} == {("4",), ("6",)}


@pytest.mark.parametrize("variable", ["CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"])
async def test_executable_sees_its_gpu_and_its_variables(
    variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv(variable, "7")
    async with ConcurrentExecutionBackend() as backend:
        runner = ConcurrentRunner(backend)
        task = samples.executable(runner.next_uid(), "sh", "-c", f"echo ${variable} $MODE")
        task["resources"] = {"gpus": 0.5, "env": {"MODE": "fast"}}
        assert await runner.run(task) == ["DONE"]
    assert task["stdout"] == "7 fast\n"


async def test_executable_that_needs_more_memory_than_it_asked_for_fails() -> None:
    async with ConcurrentExecutionBackend() as backend:
        runner = ConcurrentRunner(backend)
        task = samples.executable(
            runner.next_uid(), "sh", "-c", "sleep 0.1; head -c 90m /dev/zero | tail"
        )
        task["resources"] = {"memory": "40 MB"}
        assert await runner.run(task) == ["FAILED"]
    assert "memory" in str(task["exception"])


async def test_task_that_can_never_fit_fails_before_it_starts() -> None:
    async with ConcurrentExecutionBackend(max_workers=2) as backend:
        runner = ConcurrentRunner(backend)
        task = {**runner.function(functions.add, 1), "resources": {"cpus": 3}}
        assert await runner.run(task) == ["FAILED"]
        assert runner.reports.states(task["uid"]) == ["FAILED"]
    assert isinstance(task["exception"], ResourceError)
    assert "it asks for 3 CPUs; this machine has 2 CPUs" in str(task["exception"])


@pytest.mark.parametrize(
    ("resources", "message"),
    [
        ({"ranks": 2}, "does not manage the resource 'ranks'; it manages cpus, env, exclusive"),
        ({"env": {"A": "1"}}, "'env' does not apply to a function in a thread"),
        ({"gpu": 1}, "did you mean 'gpus'?"),
    ],
)
async def test_resource_that_threads_do_not_have_is_refused(
    resources: dict[str, Any], message: str
) -> None:
    async with ConcurrentExecutionBackend() as backend:
        runner = ConcurrentRunner(backend)
        task = {**runner.function(functions.add, 1), "resources": resources}
        assert await runner.run(task) == ["FAILED"]
    assert isinstance(task["exception"], UnsupportedTaskError)
    assert message in str(task["exception"])


async def test_cancelled_task_that_waits_for_resources_makes_way(gate: Gate) -> None:
    async with ConcurrentExecutionBackend(max_workers=2) as backend:
        runner = ConcurrentRunner(backend)
        await backend.submit_tasks([samples.held("function", "held", gate)])
        await gate.started("held")
        large = {**runner.function(functions.add, 1), "resources": {"cpus": 2}}
        await backend.submit_tasks([large])
        assert await backend.cancel_task(large["uid"])
        assert await runner.call(functions.add, 1) == 2
        gate.release("held")


async def test_pool_is_free_again_after_its_tasks(gate: Gate) -> None:
    async with ConcurrentExecutionBackend(max_workers=2) as backend:
        runner = ConcurrentRunner(backend)
        failing = {**runner.function(functions.fail, ValueError, "no"), "resources": {"cpus": 2}}
        assert await runner.run(failing) == ["FAILED"]
        whole = {**runner.function(functions.add, 1), "resources": {"cpus": 2}}
        assert await runner.run(whole) == ["DONE"]
        await until(lambda: len(backend._works) == 0)
