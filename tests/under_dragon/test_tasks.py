"""What a task may be, and what comes back of it."""

import asyncio
import functools
import multiprocessing
import os
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from rhapsody import ComputeTask, Session
from rhapsody.api.errors import BackendError, TaskExecutionError, UnsupportedTaskError
from rhapsody.backends import ConcurrentExecutionBackend, DragonExecutionBackendV3
from rhapsody.backends.dragon_runtime import allocation
from tests.support import functions
from tests.support.under_dragon import Runner
from tests.support.waiting import until

pytestmark = pytest.mark.asyncio(loop_scope="module")


def scaled(number: int, *, factor: int = 1) -> int:
    return number * factor


def fail_deep() -> None:
    def inner() -> None:
        raise LookupError("nowhere to be found")

    inner()


class OnlyHere:
    def __reduce__(self) -> Any:
        raise TypeError("an OnlyHere stays where it is")


class TwoArguments(Exception):
    def __init__(self, what: str, why: str) -> None:
        super().__init__(f"{what} because of {why}")


class Caller:
    async def __call__(self, number: int) -> int:
        return number + 1

    def method(self, number: int) -> int:
        return number + 2


async def slow_echo(number: int) -> int:
    await asyncio.sleep(0.2)
    return number


async def test_functions_of_all_kinds(runner: Runner) -> None:
    offset = 40
    tasks = [
        runner.function(scaled, 21, kwargs={"factor": 2}),
        runner.function(lambda: offset + 2),
        runner.function(functools.partial(scaled, factor=6), 7),
        runner.function(Caller(), 41),
        runner.function(Caller().method, 40),
        runner.function(lambda: slow_echo(42)),
        runner.function(functools.partial(slow_echo, 42)),
    ]
    assert await runner.run(*tasks) == ["DONE"] * len(tasks)
    assert [task["return_value"] for task in tasks] == [42] * len(tasks)


async def test_they_run_in_other_processes(runner: Runner) -> None:
    tasks = [runner.function(os.getpid) for _ in range(4)]
    await runner.run(*tasks)
    assert os.getpid() not in {task["return_value"] for task in tasks}


async def test_large_arguments_and_results(runner: Runner) -> None:
    data = os.urandom(50_000_000)
    task = runner.function(lambda data: data[::-1], data)
    assert await runner.run(task) == ["DONE"]
    assert task["return_value"] == data[::-1]


async def test_an_argument_is_each_tasks_own(runner: Runner) -> None:
    shared: list[int] = []
    tasks = [runner.function(lambda into: into.append(1) or len(into), shared) for _ in range(20)]
    await runner.run(*tasks)
    assert {task["return_value"] for task in tasks} == {1}


async def test_arguments_that_cannot_be_pickled(runner: Runner) -> None:
    bad, good = runner.function(scaled, OnlyHere()), runner.function(scaled, 3)
    assert await runner.run(bad, good) == ["FAILED", "DONE"]
    assert "its arguments cannot be pickled" in str(bad["exception"])
    assert "stays where it is" in str(bad["exception"])


async def test_arguments_that_are_none(runner: Runner) -> None:
    bad, good = runner.function(scaled), runner.function(scaled, 3)
    bad["args"] = 5
    assert await runner.run(bad, good) == ["FAILED", "DONE"]
    assert "not iterable" in str(bad["exception"])


class Exits:
    def __init__(self, where: str) -> None:
        self.where = where

    def __reduce__(self) -> Any:
        if self.where == "here":
            raise SystemExit(3)
        return sys.exit, (3,)


async def test_pickling_that_exits(runner: Runner) -> None:
    there = runner.function(lambda: Exits("there"))
    tasks = [runner.function(scaled, Exits("here")), there, runner.function(scaled, 3)]
    assert await runner.run(*tasks) == ["FAILED", "FAILED", "DONE"]
    assert "SystemExit" in str(tasks[0]["exception"])
    assert "SystemExit" in str(there["exception"])


class Simulation:
    def __init__(self) -> None:
        self.steps: list[int] = []

    def run(self, step: int) -> list[int]:
        self.steps.append(step)
        return self.steps


async def test_an_object_is_each_tasks_own(runner: Runner) -> None:
    simulation = Simulation()
    tasks = [runner.function(simulation.run, step) for step in range(8)]
    await runner.run(*tasks)
    assert [task["return_value"] for task in tasks] == [[step] for step in range(8)]


async def test_results_that_cannot_be_pickled(runner: Runner) -> None:
    bad, good = runner.function(OnlyHere), runner.function(scaled, 3)
    assert await runner.run(bad, good) == ["FAILED", "DONE"]
    assert "its result, a OnlyHere, cannot be pickled" in str(bad["exception"])


async def test_an_exception_brings_its_remote_traceback(runner: Runner) -> None:
    task = runner.function(fail_deep)
    assert await runner.run(task) == ["FAILED"]
    assert type(task["exception"]) is LookupError
    assert "in inner" in str(task["exception"].__cause__)


async def test_an_exception_that_cannot_be_rebuilt_is_named(runner: Runner) -> None:
    def fail() -> None:
        raise TwoArguments("it failed", "reasons")

    task = runner.function(fail)
    assert await runner.run(task) == ["FAILED"]
    assert "it failed because of reasons" in str(task["exception"])


@pytest.mark.parametrize("method", ["__str__", "with_traceback"])
async def test_an_exception_whose_methods_exit_fails_its_task_alone(
    runner: Runner, method: str
) -> None:
    def leave(*_: Any) -> None:
        sys.exit(3)

    def fail() -> None:
        raise type("Leaving", (Exception,), {method: leave})

    tasks = [runner.function(fail), *(runner.function(scaled, 3) for _ in range(3))]
    assert await runner.run(*tasks) == ["FAILED", "DONE", "DONE", "DONE"]


async def test_async_functions_share_a_worker(runner: Runner) -> None:
    tasks = [runner.function(slow_echo, number) for number in range(40)]
    began = time.perf_counter()
    await runner.run(*tasks)
    assert [task["return_value"] for task in tasks] == list(range(40))
    assert time.perf_counter() - began < 40 * 0.2 / 2 / 2  # one by one on two workers: 4 s


async def test_a_sync_function_may_run_a_loop_of_its_own(runner: Runner) -> None:
    task = runner.function(lambda: asyncio.run(slow_echo(42)))
    assert await runner.run(task) == ["DONE"]
    assert task["return_value"] == 42


async def test_a_module_beside_the_script_is_found(runner: Runner, tmp_path: Path) -> None:
    (tmp_path / "beside_the_script.py").write_text("def answer():\n    return 42\n")
    sys.path.insert(0, str(tmp_path))
    try:
        import beside_the_script  # type: ignore[import-not-found]

        async with DragonExecutionBackendV3(num_workers=1, name="other") as backend:
            other = Runner(backend)
            task = other.function(beside_the_script.answer)
            assert await other.run(task) == ["DONE"]
    finally:
        sys.path.remove(str(tmp_path))
    assert task["return_value"] == 42


async def test_executables(runner: Runner, tmp_path: Path) -> None:
    tasks = [
        runner.executable("/bin/pwd", options={"cwd": str(tmp_path)}),
        runner.executable("/bin/sh", "-c", "echo $WHO", options={"env": {"WHO": "me"}}),
        runner.executable("echo $((6 * 7)) | cat", options={"shell": True}),
        runner.executable("/bin/sh", "-c", "echo out; echo err >&2; exit 3"),
        runner.executable("/bin/sh", "-c", "printf '\\377'"),
    ]
    assert await runner.run(*tasks) == ["DONE", "DONE", "DONE", "FAILED", "DONE"]
    assert [task["stdout"] for task in tasks] == [f"{tmp_path}\n", "me\n", "42\n", "out\n", "�"]
    assert (tasks[3]["exit_code"], tasks[3]["stderr"]) == (3, "err\n")


async def test_output_of_executables_in_files(runner: Runner, tmp_path: Path) -> None:
    runner.backend._work_dir = str(tmp_path)
    task = runner.executable("/bin/echo", "kept", capture_stdio=True)
    await runner.run(task)
    assert Path(task["stdout"]).read_text() == "kept\n"


def printing(number: int) -> None:
    print("sync", number)
    print("oops", number, file=sys.stderr)


async def printing_async(number: int) -> None:
    print("before", number)
    await asyncio.sleep(0.05)
    print("after", number)


async def test_output_of_functions_in_files(runner: Runner, tmp_path: Path) -> None:
    runner.backend._work_dir = str(tmp_path)
    tasks = [
        runner.function(function, number, capture_stdio=True)
        for number in range(5)
        for function in (printing, printing_async)
    ]
    assert await runner.run(*tasks) == ["DONE"] * 10
    for number, (sync, together) in enumerate(zip(tasks[::2], tasks[1::2], strict=True)):
        assert Path(sync["stdout"]).read_text() == f"sync {number}\n"
        assert Path(sync["stderr"]).read_text() == f"oops {number}\n"
        assert Path(together["stdout"]).read_text() == f"before {number}\nafter {number}\n"


async def test_a_timeout_counts_from_the_start(runner: Runner) -> None:
    long = [runner.function(time.sleep, 30, options={"timeout": 0.5}) for _ in range(3)]
    together = runner.function(asyncio.sleep, 30, options={"timeout": 0.5})
    assert await runner.run(*long, together) == ["FAILED"] * 4
    assert "within its timeout of 0.5 s" in str(long[2]["exception"])


async def test_unknown_options_are_named(runner: Runner) -> None:
    task = runner.function(scaled, 1, options={"colour": "blue"})
    assert await runner.run(task) == ["FAILED"]
    assert isinstance(task["exception"], UnsupportedTaskError)
    assert "no option 'colour'" in str(task["exception"])


async def test_a_long_task_does_not_hold_up_those_behind_it(runner: Runner) -> None:
    # Quick ones first, so that the workers are given many at a time.
    await runner.run(*(runner.function(scaled, number) for number in range(2000)))
    long = runner.function(time.sleep, 3)
    quick = [runner.function(scaled, number) for number in range(500)]
    began = time.monotonic()
    await runner.submit(long, *quick)
    for task in quick:
        assert await runner.end(task) == "DONE"
    assert time.monotonic() - began < 2.5
    assert await runner.end(long) == "DONE"


async def test_a_blocking_async_function_does_not_hold_up_those_behind_it(runner: Runner) -> None:
    async def block() -> None:
        time.sleep(3)  # noqa: ASYNC251 - that is the point

    long = runner.function(block)
    quick = [runner.function(asyncio.sleep, 0) for _ in range(50)]
    began = time.monotonic()
    await runner.submit(long, *quick)
    for task in quick:
        assert await runner.end(task) == "DONE"
    assert time.monotonic() - began < 2.5
    assert await runner.end(long) == "DONE"


async def test_running_is_reported_while_it_runs(runner: Runner) -> None:
    tasks = [
        runner.function(time.sleep, 1),
        runner.function(asyncio.sleep, 1),
        runner.executable("/bin/sleep", "1"),
    ]
    for task in tasks:
        await runner.submit(task)
        await until(lambda task=task: runner.began(task))
        assert runner.reports.terminal(task["uid"]) == []
        await runner.end(task)


async def test_the_start_method_may_be_set_or_left_alone() -> None:
    assert "dragon" in multiprocessing.get_all_start_methods()


async def test_process_pools_beside_it_say_why_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(multiprocessing, "get_start_method", lambda allow_none=False: "dragon")
    with pytest.raises(BackendError, match='set_start_method\\("dragon"\\)'):
        await ConcurrentExecutionBackend("process", name="beside")


async def test_threads_beside_it_work() -> None:
    async with ConcurrentExecutionBackend("thread", name="beside") as backend:
        beside = Runner(backend)
        task = beside.function(scaled, 42)
        assert await beside.run(task) == ["DONE"]


async def test_a_session_of_two_backends() -> None:
    async with Session(
        [DragonExecutionBackendV3(num_workers=1, name="far"), ConcurrentExecutionBackend()]
    ) as session:
        tasks = [
            ComputeTask(function=os.getpid, backend=name)
            for name in ("far", "concurrent")
            for _ in range(3)
        ]
        await session.submit_tasks(tasks)
        await asyncio.gather(*tasks)
        assert {task.return_value for task in tasks[3:]} == {os.getpid()}
        assert os.getpid() not in {task.return_value for task in tasks[:3]}


@pytest.mark.parametrize("capture", [False, True])
async def test_an_exception_that_takes_no_attributes_is_described(
    runner: Runner, capture: bool
) -> None:
    task = runner.function(
        functions.fail, functions.FrozenError, "as it was", capture_stdio=capture
    )
    assert await runner.run(task) == ["FAILED"]
    assert "it raised FrozenError: as it was" in str(task["exception"])


async def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="num_workers must be a whole number"):
        DragonExecutionBackendV3(num_workers=0)
    with pytest.raises(ValueError, match="nodes=7 asks for more nodes"):
        await DragonExecutionBackendV3(nodes=7)
    with pytest.raises(ValueError, match="nodes names elsewhere"):
        await DragonExecutionBackendV3(nodes=["elsewhere"])


async def test_many_workers_are_not_started_for_few_tasks() -> None:
    async with DragonExecutionBackendV3(num_workers=2048, name="many") as backend:
        many = Runner(backend)
        await many.run(many.function(scaled, 1))
        assert len(backend.worker_pids) == 1


async def test_a_script_for_thousands_of_workers_starts_few_on_few_cpus(
    caplog: pytest.LogCaptureFixture,
) -> None:
    cpus = sum(host.cpus for host in allocation())
    async with DragonExecutionBackendV3(num_workers=1000 * cpus, name="many") as backend:
        many = Runner(backend)
        tasks = [many.function(time.sleep, 0.01) for _ in range(100 * cpus)]
        assert set(await many.run(*tasks)) == {"DONE"}
        assert len(backend.worker_pids) <= 8 * cpus
    assert f"there will be {8 * cpus} at most" in caplog.text


async def test_a_task_error_is_not_an_error_of_the_backend(runner: Runner) -> None:
    task = runner.function(sys.exit, 4)
    assert await runner.run(task) == ["FAILED"]
    assert isinstance(task["exception"], TaskExecutionError)
    assert "SystemExit" in str(task["exception"])
