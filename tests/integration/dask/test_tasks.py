"""Functions and executables on Dask's workers, and the options that they take."""

import asyncio
import collections
import itertools
import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from rhapsody.api.errors import (
    ResourceError,
    TaskExecutionError,
    TaskTimeoutError,
    UnsupportedTaskError,
)
from rhapsody.backends import DaskExecutionBackend
from rhapsody.testing.gate import Gate, hold, hold_async
from tests.support.on_dask import HERE, SMALL, Runner, until

pytestmark = pytest.mark.dask


def key_of_this() -> Any:
    from distributed import get_worker

    return get_worker().get_current_task()


class Unfriendly(Exception):
    """Pickles, and cannot be rebuilt."""

    def __init__(self, first: int, second: int) -> None:
        super().__init__(f"{first} and {second}")


async def test_closures_and_keywords(on_processes: Runner) -> None:
    base = 40

    def add(left: int, *, right: int) -> int:
        return base + left + right

    task = on_processes.function(add, 1)
    task["kwargs"] = {"right": 1}
    assert await on_processes.run(task) == ["DONE"]
    assert task["return_value"] == 42


async def test_what_a_function_mutates_is_its_own(on_threads: Runner) -> None:
    seen: list[int] = []

    def add() -> int:
        seen.append(1)
        return len(seen)

    tasks = [on_threads.function(add) for _ in range(5)]
    await on_threads.run(*tasks)
    assert [task["return_value"] for task in tasks] == [1] * 5
    assert seen == []


async def test_the_tasks_name_leads_its_key(on_processes: Runner) -> None:
    tasks = [on_processes.function(key_of_this) for _ in range(2)]
    tasks[1]["name"] = "step 2/b"
    await on_processes.run(*tasks)
    first, second = (task["return_value"] for task in tasks)
    assert first.startswith("key_of_this-")
    assert second.startswith("step_2_b-")


async def test_equal_calls_are_calls_of_their_own(on_processes: Runner) -> None:
    tasks = [on_processes.function(key_of_this) for _ in range(3)]
    await on_processes.run(*tasks)
    assert len({task["return_value"] for task in tasks}) == 3


async def test_equal_pure_calls_are_one(on_processes: Runner) -> None:
    tasks = [on_processes.function(key_of_this, pure=True) for _ in range(3)]
    assert await on_processes.run(*tasks) == ["DONE"] * 3
    assert len({task["return_value"] for task in tasks}) == 1


async def test_a_key_can_be_given(on_processes: Runner) -> None:
    task = on_processes.function(key_of_this, key="mine-1")
    await on_processes.run(task)
    assert task["return_value"] == "mine-1"


async def test_a_shared_call_lives_until_the_last_of_its_tasks_is_cancelled(
    on_processes: Runner,
) -> None:
    async with Gate() as gate:
        tasks = [
            on_processes.function(hold, *gate.address, "shared", key="shared") for _ in range(2)
        ]
        await on_processes.submit(*tasks)
        await gate.started("shared")
        assert await on_processes.backend.cancel_task(tasks[0]["uid"])
        gate.release("shared")
        assert await on_processes.end(tasks[1]) == "DONE"
        assert tasks[1]["return_value"] == "shared"


async def test_a_key_can_be_used_again_after_a_cancellation(on_processes: Runner) -> None:
    async with Gate() as gate:
        first = on_processes.function(hold_async, *gate.address, "first", key="again")
        await on_processes.submit(first)
        await gate.started("first")
        assert await on_processes.backend.cancel_task(first["uid"])
        await gate.ended("first")
    second = on_processes.function(key_of_this, key="again")
    assert await on_processes.run(second) == ["DONE"], second["exception"]
    assert second["return_value"] == "again"


async def test_failed_calls_are_tried_again(on_processes: Runner, tmp_path: Path) -> None:
    def third_time(path: Path) -> int:
        with path.open("a") as file:
            file.write("x")
        if path.stat().st_size < 3:
            raise ValueError("not yet")
        return path.stat().st_size

    function = on_processes.function(third_time, tmp_path / "function", retries=2)
    script = 'echo x >> f; [ "$(wc -l < f)" = 3 ]'
    executable = on_processes.executable("/bin/sh", "-c", script, retries=2, cwd=str(tmp_path))
    assert await on_processes.run(function, executable) == ["DONE", "DONE"]
    assert function["return_value"] == 3


async def test_priority_goes_first() -> None:
    def known(backend: DaskExecutionBackend) -> int:
        """How many tasks have come to the scheduler, which is in this process."""
        assert backend._connection is not None
        return len(backend._connection._cluster.scheduler.tasks)

    async with DaskExecutionBackend({**SMALL, "threads_per_worker": 1}) as backend, Gate() as gate:
        runner = Runner(backend)
        first = runner.function(hold, *gate.address, "first")
        await runner.submit(first)
        await gate.started("first")
        tasks = [runner.function(lambda: time.monotonic(), priority=p) for p in (0, 5, -5, 10)]
        await runner.submit(*tasks)
        await until(lambda: known(backend) == 5)
        gate.release("first")
        await asyncio.gather(*(runner.end(task) for task in tasks))
        order = sorted(range(4), key=lambda n: tasks[n]["return_value"])
    assert order == [3, 1, 0, 2]


async def test_resources_and_workers_are_kept_to(on_processes: Runner, cluster: Any) -> None:
    address = cluster.workers[1].worker_address

    def here() -> str:
        from distributed import get_worker

        return str(get_worker().address)

    tasks = [on_processes.function(here, workers=address) for _ in range(4)]
    tasks += [on_processes.function(here, workers=[address], resources={"GPU": 1})]
    assert await on_processes.run(*tasks) == ["DONE"] * 5
    assert {task["return_value"] for task in tasks} == {address}


async def test_resources_limit_what_runs_at_once(on_processes: Runner) -> None:
    def nap() -> tuple[str, float, float]:
        start = time.time()
        time.sleep(0.1)
        return str(os.getpid()), start, time.time()

    tasks = [on_processes.function(nap, resources={"GPU": 1}) for _ in range(6)]
    assert await on_processes.run(*tasks) == ["DONE"] * 6
    by_worker = collections.defaultdict(list)
    for pid, start, end in (task["return_value"] for task in tasks):
        by_worker[pid].append((start, end))
    for spans in by_worker.values():
        spans.sort()
        assert all(a[1] <= b[0] for a, b in itertools.pairwise(spans))


@pytest.mark.parametrize("resources", [{"FPGA": 1}, {"GPU": 2}, {"GPU": 1, "FPGA": 1}])
async def test_resources_that_no_worker_has_fail_at_once(
    resources: dict[str, float], on_processes: Runner
) -> None:
    task = on_processes.function(key_of_this, resources=resources)
    assert await on_processes.run(task) == ["FAILED"]
    assert isinstance(task["exception"], ResourceError)
    text = str(task["exception"])
    assert all(f"{name}={amount}" in text for name, amount in resources.items())
    assert "offers GPU=1, licence=2" in text


async def test_a_worker_that_is_not_there_fails_at_once(on_processes: Runner) -> None:
    task = on_processes.function(key_of_this, workers="tcp://127.0.0.1:1")
    wish = on_processes.function(key_of_this, workers="127.0.0.1:1", allow_other_workers=True)
    assert await on_processes.run(task, wish) == ["FAILED", "DONE"]
    assert "of 2 workers" in str(task["exception"])


async def test_resources_are_waited_for_where_they_may_come() -> None:
    from distributed import LocalCluster

    async with LocalCluster(
        n_workers=0, processes=False, asynchronous=True, resources={"GPU": 1}, **HERE
    ) as cluster:
        cluster.adapt(minimum=0, maximum=1, interval="50ms")
        async with DaskExecutionBackend(cluster=cluster) as backend:
            runner = Runner(backend)
            assert await runner.run(runner.function(key_of_this, resources={"GPU": 1})) == ["DONE"]


async def test_resources_are_waited_for_no_longer_than_said() -> None:
    async with DaskExecutionBackend(SMALL, resource_timeout=0.2) as backend:
        runner = Runner(backend)
        task = runner.function(key_of_this, resources={"GPU": 1})
        assert await runner.run(task) == ["FAILED"]
        assert isinstance(task["exception"], ResourceError)
        later = runner.function(key_of_this, resources={"GPU": 1})
        await runner.submit(later)
        assert await backend.cancel_task(later["uid"])


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"nodes": 2}, "'nodes'"),
        ({"resources": 3}, "'resources'"),
        ({"resources": {"GPU": 0}}, "'resources'"),
        ({"workers": [3]}, "'workers'"),
        ({"workers": 3}, "not iterable"),
        ({"retries": -1}, "'retries'"),
        ({"priority": "high"}, "'priority'"),
        ({"timeout": 0}, "'timeout'"),
    ],
)
async def test_options_that_cannot_be_fail_by_name(
    options: dict[str, Any], named: str, on_processes: Runner
) -> None:
    task = on_processes.function(key_of_this, **options)
    assert await on_processes.run(task) == ["FAILED"]
    assert isinstance(task["exception"], UnsupportedTaskError)
    assert named in str(task["exception"])


async def test_executables_take_their_options(on_processes: Runner, tmp_path: Path) -> None:
    at = on_processes.executable("pwd", cwd=str(tmp_path))
    env = on_processes.executable("/bin/sh", "-c", "echo $RHAPSODY_X", env={"RHAPSODY_X": "y"})
    shell = on_processes.executable("echo a | tr a b", shell=True)
    binary = on_processes.executable("/usr/bin/printf", r"a\377")
    tasks = [at, env, shell, binary]
    assert await on_processes.run(*tasks) == ["DONE"] * 4
    assert [task["stdout"] for task in tasks] == [f"{tmp_path}\n", "y\n", "b\n", "a\ufffd"]
    assert {task["exit_code"] for task in tasks} == {0}


async def test_a_failed_executable_keeps_its_output(on_processes: Runner) -> None:
    task = on_processes.executable("/bin/sh", "-c", "echo out; echo err >&2; exit 3")
    assert await on_processes.run(task) == ["FAILED"]
    assert (task["stdout"], task["stderr"], task["exit_code"]) == ("out\n", "err\n", 3)
    assert "err" in str(task["exception"])


@pytest.mark.parametrize("kind", ["executable", "async function"])
async def test_a_timeout_ends_the_task(kind: str, on_processes: Runner) -> None:
    if kind == "executable":
        task = on_processes.executable("/bin/sleep", "60", timeout=0.3)
    else:
        task = on_processes.function(asyncio.sleep, 60, timeout=0.3)
    assert await on_processes.run(task) == ["FAILED"]
    assert isinstance(task["exception"], TaskTimeoutError)


async def test_the_remote_traceback_comes_along(on_processes: Runner) -> None:
    def deep_in_the_task() -> None:
        raise KeyError("gone")

    task = on_processes.function(deep_in_the_task)
    assert await on_processes.run(task) == ["FAILED"]
    frames, traceback = [], task["exception"].__traceback__
    while traceback is not None:
        frames.append(traceback.tb_frame.f_code.co_name)
        traceback = traceback.tb_next
    assert "deep_in_the_task" in frames


async def test_what_cannot_be_pickled_fails_alone(on_processes: Runner) -> None:
    lock = threading.Lock()

    def unfriendly() -> None:
        raise Unfriendly(1, 2)

    argument = on_processes.function(id, lock)
    result = on_processes.function(threading.Lock)
    error = on_processes.function(unfriendly)
    fine = [on_processes.function(key_of_this) for _ in range(10)]
    states = await on_processes.run(argument, result, error, *fine)
    assert states == ["FAILED"] * 3 + ["DONE"] * 10
    for task, text in ((argument, "pickled"), (result, "lock"), (error, "1 and 2")):
        assert isinstance(task["exception"], TaskExecutionError)
        assert text in str(task["exception"])


async def test_a_module_that_workers_lack_is_named(on_processes: Runner) -> None:
    class Lacking:
        def __reduce__(self) -> Any:
            return __import__, ("no_such_module_here",)

    task = on_processes.function(print, Lacking())
    assert await on_processes.run(task) == ["FAILED"]
    assert "no_such_module_here" in str(task["exception"])
    assert "importable on workers" in str(task["exception"])


async def test_thousands_at_once_freeze_no_loop(on_processes: Runner) -> None:
    from rhapsody.backends.service import service_loop

    async def longest_pause(stop: threading.Event) -> float:
        loop, longest = asyncio.get_running_loop(), 0.0
        while not stop.is_set():
            start = loop.time()
            await asyncio.sleep(0.01)
            longest = max(longest, loop.time() - start - 0.01)
        return longest

    stop = threading.Event()
    callers = asyncio.ensure_future(longest_pause(stop))
    services = asyncio.wrap_future(
        asyncio.run_coroutine_threadsafe(longest_pause(stop), service_loop().loop)
    )
    tasks = [on_processes.function(abs, -n) for n in range(2000)]
    assert set(await on_processes.run(*tasks)) == {"DONE"}
    stop.set()
    assert [task["return_value"] for task in tasks] == list(range(2000))
    assert await callers < 1
    assert await services < 1


async def test_started_tasks_are_reported_running(on_processes: Runner) -> None:
    async with Gate() as gate:
        task = on_processes.function(hold, *gate.address, "held")
        await on_processes.submit(task)
        await on_processes.running(task)
        gate.release("held")
        assert await on_processes.end(task) == "DONE"
        assert on_processes.reports.states(task["uid"]) == ["RUNNING", "DONE"]


async def test_workers_do_not_know_the_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RHAPSODY_API_KEY", "sesame")
    async with DaskExecutionBackend({"n_workers": 1, "threads_per_worker": 1}) as backend:
        runner = Runner(backend)
        function = runner.function(os.getenv, "RHAPSODY_API_KEY")
        executable = runner.executable("/usr/bin/env")
        assert await runner.run(function, executable) == ["DONE", "DONE"]
    assert function["return_value"] is None
    assert "sesame" not in executable["stdout"]
    assert os.environ["RHAPSODY_API_KEY"] == "sesame"
