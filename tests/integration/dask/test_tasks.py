"""Functions and executables on Dask workers, and their options."""

import asyncio
import collections
import itertools
import os
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rhapsody.backends import DaskExecutionBackend
from rhapsody.errors import (
    ResourceError,
    TaskExecutionError,
    TaskTimeoutError,
    UnsupportedTaskError,
)
from rhapsody.testing.gate import Gate, hold, hold_async
from tests.support.on_dask import HERE, SMALL, DaskRunner
from tests.support.waiting import until

pytestmark = pytest.mark.dask


def current_key() -> Any:
    """Return the key of the task that runs this."""
    from distributed import get_worker

    return get_worker().get_current_task()


class UnloadableError(Exception):
    """Can be pickled, but not rebuilt."""

    def __init__(self, first: int, second: int) -> None:
        super().__init__(f"{first} and {second}")


async def test_closure_with_keyword_arguments_runs(on_processes: DaskRunner) -> None:
    base = 40

    def add(left: int, *, right: int) -> int:
        return base + left + right

    task = on_processes.function(add, 1)
    task["kwargs"] = {"right": 1}
    assert await on_processes.run(task) == ["DONE"]
    assert task["return_value"] == 42


async def test_each_call_gets_its_own_closure(on_threads: DaskRunner) -> None:
    seen: list[int] = []

    def add() -> int:
        seen.append(1)
        return len(seen)

    tasks = [on_threads.function(add) for _ in range(5)]
    await on_threads.run(*tasks)
    assert [task["return_value"] for task in tasks] == [1] * 5
    assert seen == []


async def test_key_begins_with_task_name(on_processes: DaskRunner) -> None:
    tasks = [on_processes.function(current_key) for _ in range(2)]
    tasks[1]["name"] = "step 2/b"
    await on_processes.run(*tasks)
    first, second = (task["return_value"] for task in tasks)
    assert first.startswith("current_key-")
    assert second.startswith("step_2_b-")


async def test_equal_calls_have_different_keys(on_processes: DaskRunner) -> None:
    tasks = [on_processes.function(current_key) for _ in range(3)]
    await on_processes.run(*tasks)
    assert len({task["return_value"] for task in tasks}) == 3


async def test_equal_pure_calls_run_once(on_processes: DaskRunner) -> None:
    tasks = [on_processes.function(current_key, pure=True) for _ in range(3)]
    assert await on_processes.run(*tasks) == ["DONE"] * 3
    assert len({task["return_value"] for task in tasks}) == 1


async def test_option_key_sets_the_key(on_processes: DaskRunner) -> None:
    task = on_processes.function(current_key, key="mine-1")
    await on_processes.run(task)
    assert task["return_value"] == "mine-1"


async def test_cancel_of_one_task_keeps_shared_call(
    on_processes: DaskRunner,
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


async def test_key_can_be_reused_after_cancel(on_processes: DaskRunner) -> None:
    async with Gate() as gate:
        first = on_processes.function(hold_async, *gate.address, "first", key="again")
        await on_processes.submit(first)
        await gate.started("first")
        assert await on_processes.backend.cancel_task(first["uid"])
        await gate.ended("first")
    second = on_processes.function(current_key, key="again")
    assert await on_processes.run(second) == ["DONE"], second["exception"]
    assert second["return_value"] == "again"


async def test_retries_run_failed_tasks_again(on_processes: DaskRunner, tmp_path: Path) -> None:
    def succeed_in_third_run(path: Path) -> int:
        with path.open("a") as file:
            file.write("x")
        if path.stat().st_size < 3:
            raise ValueError("not yet")
        return path.stat().st_size

    function = on_processes.function(succeed_in_third_run, tmp_path / "function", retries=2)
    script = 'echo x >> f; [ "$(wc -l < f)" = 3 ]'
    executable = on_processes.executable("/bin/sh", "-c", script, retries=2, cwd=str(tmp_path))
    assert await on_processes.run(function, executable) == ["DONE", "DONE"]
    assert function["return_value"] == 3


async def test_higher_priority_runs_first() -> None:
    from distributed import LocalCluster

    options = {**SMALL, **HERE, "threads_per_worker": 1, "asynchronous": True}
    async with (
        LocalCluster(**options) as cluster,
        DaskExecutionBackend(cluster=cluster) as backend,
        Gate() as gate,
    ):
        runner = DaskRunner(backend)
        first = runner.function(hold, *gate.address, "first")
        await runner.submit(first)
        await gate.started("first")
        tasks = [runner.function(lambda: time.monotonic(), priority=p) for p in (0, 5, -5, 10)]
        await runner.submit(*tasks)
        await until(lambda: len(cluster.scheduler.tasks) == 5)
        gate.release("first")
        await asyncio.gather(*(runner.end(task) for task in tasks))
        order = sorted(range(4), key=lambda n: tasks[n]["return_value"])
    assert order == [3, 1, 0, 2]


async def test_resources_and_workers_choose_the_worker(
    on_processes: DaskRunner, cluster: Any
) -> None:
    address = cluster.workers[1].worker_address

    def worker_address() -> str:
        from distributed import get_worker

        return str(get_worker().address)

    tasks = [on_processes.function(worker_address, workers=address) for _ in range(4)]
    tasks += [on_processes.function(worker_address, workers=[address], resources={"GPU": 1})]
    assert await on_processes.run(*tasks) == ["DONE"] * 5
    assert {task["return_value"] for task in tasks} == {address}


async def test_resources_limit_concurrent_tasks(on_processes: DaskRunner) -> None:
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
async def test_missing_resource_fails_at_once(
    resources: dict[str, float], on_processes: DaskRunner
) -> None:
    task = on_processes.function(current_key, resources=resources)
    assert await on_processes.run(task) == ["FAILED"]
    assert isinstance(task["exception"], ResourceError)
    text = str(task["exception"])
    assert all(f"{name}={amount}" in text for name, amount in resources.items())
    assert "offers GPU=1, licence=2" in text


async def test_unknown_worker_fails_at_once(on_processes: DaskRunner) -> None:
    task = on_processes.function(current_key, workers="tcp://127.0.0.1:1")
    preference = on_processes.function(current_key, workers="127.0.0.1:1", allow_other_workers=True)
    assert await on_processes.run(task, preference) == ["FAILED", "DONE"]
    assert "of 2 workers" in str(task["exception"])


async def test_task_waits_for_resources_of_adaptive_cluster() -> None:
    from distributed import LocalCluster

    async with LocalCluster(
        n_workers=0, processes=False, asynchronous=True, resources={"GPU": 1}, **HERE
    ) as cluster:
        cluster.adapt(minimum=0, maximum=1, interval="50ms")
        async with DaskExecutionBackend(cluster=cluster) as backend:
            runner = DaskRunner(backend)
            assert await runner.run(runner.function(current_key, resources={"GPU": 1})) == ["DONE"]


async def test_resource_timeout_fails_waiting_task() -> None:
    async with DaskExecutionBackend(SMALL, resource_timeout=0.2) as backend:
        runner = DaskRunner(backend)
        task = runner.function(current_key, resources={"GPU": 1})
        assert await runner.run(task) == ["FAILED"]
        assert isinstance(task["exception"], ResourceError)
        later = runner.function(current_key, resources={"GPU": 1})
        await runner.submit(later)
        assert await backend.cancel_task(later["uid"])


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"nodes": 2}, "'nodes'"),
        ({"resources": 3}, "'resources'"),
        ({"resources": {"GPU": 0}}, "'resources'"),
        ({"workers": [3]}, "'workers'"),
        ({"workers": 3}, "'workers'"),
        ({"retries": -1}, "'retries'"),
        ({"priority": "high"}, "'priority'"),
        ({"timeout": 0}, "'timeout'"),
    ],
)
async def test_invalid_option_fails_task_and_is_named(
    options: dict[str, Any], named: str, on_processes: DaskRunner
) -> None:
    task = on_processes.function(current_key, **options)
    assert await on_processes.run(task) == ["FAILED"]
    assert isinstance(task["exception"], UnsupportedTaskError)
    assert named in str(task["exception"])


async def test_executable_options(on_processes: DaskRunner, tmp_path: Path) -> None:
    at = on_processes.executable("pwd", cwd=str(tmp_path))
    env = on_processes.executable("/bin/sh", "-c", "echo $RHAPSODY_X", env={"RHAPSODY_X": "y"})
    shell = on_processes.executable("echo a | tr a b", shell=True)
    binary = on_processes.executable("/usr/bin/printf", r"a\377")
    fed = on_processes.executable("cat", stdin=b"fed")
    tasks = [at, env, shell, binary, fed]
    assert await on_processes.run(*tasks) == ["DONE"] * 5
    outputs = [f"{tmp_path}\n", "y\n", "b\n", "a\ufffd", "fed"]
    assert [task["stdout"] for task in tasks] == outputs
    assert {task["execution"].host for task in tasks} == {socket.gethostname()}
    assert all(task["execution"].running_seconds is not None for task in tasks)
    assert {task["exit_code"] for task in tasks} == {0}


async def test_failed_executable_keeps_its_output(on_processes: DaskRunner) -> None:
    task = on_processes.executable("/bin/sh", "-c", "echo out; echo err >&2; exit 3")
    assert await on_processes.run(task) == ["FAILED"]
    assert (task["stdout"], task["stderr"], task["exit_code"]) == ("out\n", "err\n", 3)
    assert "err" in str(task["exception"])


@pytest.mark.parametrize("kind", ["executable", "async function"])
async def test_timeout_fails_task(kind: str, on_processes: DaskRunner) -> None:
    if kind == "executable":
        task = on_processes.executable("/bin/sleep", "60", timeout=0.3)
    else:
        task = on_processes.function(asyncio.sleep, 60, timeout=0.3)
    assert await on_processes.run(task) == ["FAILED"]
    assert isinstance(task["exception"], TaskTimeoutError)


async def test_executable_keeps_its_output_before_timeout(on_processes: DaskRunner) -> None:
    script = "echo step 1; echo slow >&2; exec sleep 60"
    task = on_processes.executable("/bin/sh", "-c", script, timeout=3)
    assert await on_processes.run(task) == ["FAILED"]
    assert isinstance(task["exception"], TaskTimeoutError)
    assert (task["stdout"], task["stderr"], task["exit_code"]) == ("step 1\n", "slow\n", -15)


async def test_exception_has_remote_traceback(on_processes: DaskRunner) -> None:
    def raise_in_task() -> None:
        raise KeyError("gone")

    task = on_processes.function(raise_in_task)
    assert await on_processes.run(task) == ["FAILED"]
    frames, traceback = [], task["exception"].__traceback__
    while traceback is not None:
        frames.append(traceback.tb_frame.f_code.co_name)
        traceback = traceback.tb_next
    assert "raise_in_task" in frames


async def test_uid_with_lone_surrogate_runs(on_processes: DaskRunner) -> None:
    task = {**on_processes.function(current_key), "uid": "read-caf\udce9.txt"}
    await on_processes.submit(task)
    assert await asyncio.wait_for(on_processes.end(task), 10) == "DONE"


class UnprintableError(Exception):
    """Raises from both of its texts."""

    def __str__(self) -> str:
        raise RuntimeError("no text")

    __repr__ = __str__


class SurrogateReprError(Exception):
    """Has a text that UTF-8 cannot encode."""

    def __repr__(self) -> str:
        return "caf\udce9"


def raise_from_file(file: str) -> None:
    exec(compile("raise ValueError('raised')", file, "exec"))


def raise_error(error: type[Exception]) -> None:
    raise error("caf\udce9")


@pytest.mark.parametrize(
    ("function", "arg", "error"),
    [
        (raise_from_file, "/caf\udce9.py", ValueError),
        (raise_error, ValueError, ValueError),
        (raise_error, SurrogateReprError, SurrogateReprError),
        (raise_error, UnprintableError, UnprintableError),
    ],
    ids=["file name", "message", "repr", "no text"],
)
async def test_exception_with_unsendable_text_fails_task(
    function: Callable[[Any], None], arg: Any, error: type[Exception], on_processes: DaskRunner
) -> None:
    task = on_processes.function(function, arg)
    await on_processes.submit(task)
    assert await asyncio.wait_for(on_processes.end(task), 10) == "FAILED"
    assert type(task["exception"]) is error
    later = on_processes.function(current_key)
    assert await on_processes.run(later) == ["DONE"]


class KeywordError(Exception):
    """Has a constructor that takes keywords only, which its pickle does not have."""

    def __init__(self, *, code: int) -> None:
        super().__init__(f"code {code}")


class OwnAttributes(Exception):
    """Fails when it is asked for any attribute that it does not have, as for its notes."""

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(name)


def raise_keyword_error() -> None:
    raise KeywordError(code=3)


def raise_own_attributes() -> None:
    raise OwnAttributes("code 3")


def raise_long_text() -> None:
    raise ValueError("x" * 20_000, "code 3")


def raise_with_lock() -> None:
    error = ValueError("code 3")
    error.lock = threading.Lock()  # type: ignore[attr-defined]
    raise error


def raise_with_cause() -> None:
    raise ValueError("code 3") from KeyError("cause")


@pytest.mark.parametrize(
    ("function", "error"),
    [
        (raise_keyword_error, KeywordError),
        (raise_own_attributes, OwnAttributes),
        (raise_long_text, ValueError),
        (raise_with_lock, TaskExecutionError),
        (raise_with_cause, ValueError),
    ],
)
async def test_exception_that_dask_cannot_send_arrives_or_is_described(
    function: Callable[[], None], error: type[Exception], on_processes: DaskRunner
) -> None:
    task = on_processes.function(function)
    assert await on_processes.run(task) == ["FAILED"]
    assert type(task["exception"]) is error
    assert "code 3" in str(task["exception"])
    assert "Long error message" not in str(task["exception"])


async def test_exception_keeps_its_cause(on_processes: DaskRunner) -> None:
    task = on_processes.function(raise_with_cause)
    assert await on_processes.run(task) == ["FAILED"]
    assert repr(task["exception"].__cause__) == "KeyError('cause')"


def raise_at_depth(depth: int) -> None:
    if depth:
        raise_at_depth(depth - 1)
    raise ValueError("bottom")


def recurse_for_ever() -> None:
    recurse_for_ever()


def raise_with_causes(count: int) -> None:
    try:
        raise_with_causes(count - 1) if count else raise_at_depth(50)
    except ValueError as error:
        raise ValueError(f"level {count}") from error


@pytest.mark.parametrize(
    ("function", "args", "error"),
    [
        (raise_at_depth, [150], ValueError),
        (raise_at_depth, [700], ValueError),
        (recurse_for_ever, [], RecursionError),
        (raise_with_causes, [100], ValueError),
    ],
    ids=["150 frames", "700 frames", "endless recursion", "100 causes"],
)
async def test_exception_with_deep_traceback_fails_task(
    function: Callable[..., None],
    args: list[int],
    error: type[Exception],
    on_processes: DaskRunner,
) -> None:
    task = on_processes.function(function, *args)
    await on_processes.submit(task)
    assert await asyncio.wait_for(on_processes.end(task), 10) == "FAILED"
    assert type(task["exception"]) is error
    later = on_processes.function(current_key)
    assert await on_processes.run(later) == ["DONE"]


async def test_unpicklable_task_fails_without_others(on_processes: DaskRunner) -> None:
    lock = threading.Lock()

    def raise_unloadable() -> None:
        raise UnloadableError(1, 2)

    argument = on_processes.function(id, lock)
    result = on_processes.function(threading.Lock)
    error = on_processes.function(raise_unloadable)
    fine = [on_processes.function(current_key) for _ in range(10)]
    states = await on_processes.run(argument, result, error, *fine)
    assert states == ["FAILED"] * 3 + ["DONE"] * 10
    for task, text in ((argument, "pickled"), (result, "lock")):
        assert isinstance(task["exception"], TaskExecutionError)
        assert text in str(task["exception"])
    assert repr(error["exception"]) == "UnloadableError('1 and 2')"


async def test_module_missing_on_workers_is_named(on_processes: DaskRunner) -> None:
    class LoadsMissingModule:
        def __reduce__(self) -> Any:
            return __import__, ("no_such_module_here",)

    task = on_processes.function(print, LoadsMissingModule())
    assert await on_processes.run(task) == ["FAILED"]
    assert "no_such_module_here" in str(task["exception"])
    assert "importable on workers" in str(task["exception"])


async def test_thousands_of_tasks_do_not_block_the_loops(on_processes: DaskRunner) -> None:
    from rhapsody.backends.core.service_loop import service_loop

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
    assert await callers < 5  # seconds; on a busy machine nobody computes all the time
    assert await services < 5


async def test_started_task_is_reported_running(on_processes: DaskRunner) -> None:
    async with Gate() as gate:
        task = on_processes.function(hold, *gate.address, "held")
        await on_processes.submit(task)
        await on_processes.running(task)
        gate.release("held")
        assert await on_processes.end(task) == "DONE"
        assert on_processes.reports.states(task["uid"]) == ["RUNNING", "DONE"]


async def test_tasks_cancelled_while_they_are_submitted_are_forgotten(
    on_processes: DaskRunner,
) -> None:
    tasks = [on_processes.function(time.sleep, 0.01) for _ in range(150)]
    for n, task in enumerate(tasks):
        task["priority"] = n
    await on_processes.submit(*tasks)
    for task in tasks[::3]:
        await on_processes.backend.cancel_task(task["uid"])
        await asyncio.sleep(0)
    for task in tasks:
        await on_processes.end(task)
    client = on_processes.backend._dask_client
    await until(lambda: not client._works and not client._withdrawals)


async def test_workers_do_not_see_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RHAPSODY_API_KEY", "sesame")
    async with DaskExecutionBackend({"n_workers": 1, "threads_per_worker": 1}) as backend:
        runner = DaskRunner(backend)
        function = runner.function(os.getenv, "RHAPSODY_API_KEY")
        executable = runner.executable("/usr/bin/env")
        assert await runner.run(function, executable) == ["DONE", "DONE"]
    assert function["return_value"] is None
    assert "sesame" not in executable["stdout"]
    assert os.environ["RHAPSODY_API_KEY"] == "sesame"


async def test_task_that_asks_for_more_cpus_than_a_worker_has_fails(on_threads: DaskRunner) -> None:
    task = {**on_threads.function(int), "resources": {"cpus": 1000}}
    assert await on_threads.run(task) == ["FAILED"]
    assert isinstance(task["exception"], ResourceError)
    assert "it asks for CPU=1000 on one worker" in str(task["exception"])
    fitting = {**on_threads.function(int), "resources": {"cpus": 1}, "priority": 2}
    assert await on_threads.run(fitting) == ["DONE"]
