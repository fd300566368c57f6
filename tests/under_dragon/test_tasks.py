"""Kinds of tasks, their options, and their results and errors."""

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
from rhapsody.allocation import allocation
from rhapsody.backends import ConcurrentExecutionBackend, DragonExecutionBackendV3
from rhapsody.errors import TaskExecutionError, UnsupportedTaskError
from tests.support import functions
from tests.support.on_dragon import DragonRunner
from tests.support.waiting import until

pytestmark = pytest.mark.asyncio(loop_scope="module")


def scaled(number: int, *, factor: int = 1) -> int:
    return number * factor


def fail_deep() -> None:
    def inner() -> None:
        raise LookupError("not found")

    inner()


class OnlyHere:
    def __reduce__(self) -> Any:
        raise TypeError("an OnlyHere cannot be pickled")


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


async def test_functions_of_all_kinds_return_their_values(runner: DragonRunner) -> None:
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


async def test_functions_run_in_other_processes(runner: DragonRunner) -> None:
    tasks = [runner.function(os.getpid) for _ in range(4)]
    await runner.run(*tasks)
    assert os.getpid() not in {task["return_value"] for task in tasks}


async def test_large_arguments_and_results_are_passed(runner: DragonRunner) -> None:
    data = os.urandom(50_000_000)
    task = runner.function(lambda data: data[::-1], data)
    assert await runner.run(task) == ["DONE"]
    assert task["return_value"] == data[::-1]


async def test_tasks_do_not_share_an_argument(runner: DragonRunner) -> None:
    shared: list[int] = []
    tasks = [runner.function(lambda into: into.append(1) or len(into), shared) for _ in range(20)]
    await runner.run(*tasks)
    assert {task["return_value"] for task in tasks} == {1}


async def test_unpicklable_arguments_fail_their_task_alone(runner: DragonRunner) -> None:
    bad, good = runner.function(scaled, OnlyHere()), runner.function(scaled, 3)
    assert await runner.run(bad, good) == ["FAILED", "DONE"]
    assert "its arguments cannot be pickled" in str(bad["exception"])
    assert "an OnlyHere cannot be pickled" in str(bad["exception"])


async def test_non_sequence_arguments_fail_their_task_alone(runner: DragonRunner) -> None:
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


async def test_exit_while_pickling_fails_its_task_alone(runner: DragonRunner) -> None:
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


async def test_tasks_do_not_share_the_object_of_a_method(runner: DragonRunner) -> None:
    simulation = Simulation()
    tasks = [runner.function(simulation.run, step) for step in range(8)]
    await runner.run(*tasks)
    assert [task["return_value"] for task in tasks] == [[step] for step in range(8)]


async def test_unpicklable_result_fails_its_task_alone(runner: DragonRunner) -> None:
    bad, good = runner.function(OnlyHere), runner.function(scaled, 3)
    assert await runner.run(bad, good) == ["FAILED", "DONE"]
    assert "its result, a OnlyHere, cannot be pickled" in str(bad["exception"])


async def test_exception_has_its_remote_traceback_as_cause(runner: DragonRunner) -> None:
    task = runner.function(fail_deep)
    assert await runner.run(task) == ["FAILED"]
    assert type(task["exception"]) is LookupError
    assert "in inner" in str(task["exception"].__cause__)


async def test_unloadable_exception_is_described(runner: DragonRunner) -> None:
    def fail() -> None:
        raise TwoArguments("it failed", "reasons")

    task = runner.function(fail)
    assert await runner.run(task) == ["FAILED"]
    assert "it failed because of reasons" in str(task["exception"])


@pytest.mark.parametrize("method", ["__str__", "with_traceback"])
async def test_exception_with_exiting_methods_fails_its_task_alone(
    runner: DragonRunner, method: str
) -> None:
    def leave(*_: Any) -> None:
        sys.exit(3)

    def fail() -> None:
        raise type("Leaving", (Exception,), {method: leave})

    tasks = [runner.function(fail), *(runner.function(scaled, 3) for _ in range(3))]
    assert await runner.run(*tasks) == ["FAILED", "DONE", "DONE", "DONE"]


async def test_async_functions_share_a_worker(runner: DragonRunner) -> None:
    tasks = [runner.function(slow_echo, number) for number in range(40)]
    began = time.perf_counter()
    await runner.run(*tasks)
    assert [task["return_value"] for task in tasks] == list(range(40))
    assert time.perf_counter() - began < 2.0  # one at a time on two workers: 4 s


async def test_sync_function_may_run_an_event_loop(runner: DragonRunner) -> None:
    task = runner.function(lambda: asyncio.run(slow_echo(42)))
    assert await runner.run(task) == ["DONE"]
    assert task["return_value"] == 42


async def test_module_beside_the_script_is_importable_in_workers(
    runner: DragonRunner, tmp_path: Path
) -> None:
    (tmp_path / "beside_the_script.py").write_text("def answer():\n    return 42\n")
    sys.path.insert(0, str(tmp_path))
    try:
        import beside_the_script  # type: ignore[import-not-found]

        async with DragonExecutionBackendV3(num_workers=1, name="other") as backend:
            other = DragonRunner(backend)
            task = other.function(beside_the_script.answer)
            assert await other.run(task) == ["DONE"]
    finally:
        sys.path.remove(str(tmp_path))
    assert task["return_value"] == 42


async def test_executables_respect_their_options(runner: DragonRunner, tmp_path: Path) -> None:
    tasks = [
        runner.executable("/bin/pwd", options={"cwd": str(tmp_path)}),
        runner.executable("/bin/sh", "-c", "echo $WHO", options={"env": {"WHO": "me"}}),
        runner.executable("echo $((6 * 7)) | cat", options={"shell": True}),
        runner.executable("/bin/sh", "-c", "echo out; echo err >&2; exit 3"),
        runner.executable("/bin/sh", "-c", "printf '\\377'"),
        runner.executable("/bin/cat", options={"stdin": "fed"}),
    ]
    assert await runner.run(*tasks) == ["DONE", "DONE", "DONE", "FAILED", "DONE", "DONE"]
    outputs = [f"{tmp_path}\n", "me\n", "42\n", "out\n", "�", "fed"]
    assert [task["stdout"] for task in tasks] == outputs
    assert all(task["execution"].running_seconds is not None for task in tasks)
    assert (tasks[3]["exit_code"], tasks[3]["stderr"]) == (3, "err\n")


async def test_output_of_an_executable_is_captured_in_files(
    runner: DragonRunner, tmp_path: Path
) -> None:
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


async def test_output_of_functions_is_captured_in_files(
    runner: DragonRunner, tmp_path: Path
) -> None:
    runner.backend._work_dir = str(tmp_path)
    tasks = [
        runner.function(function, number, capture_stdio=True)
        for number in range(5)
        for function in (printing, printing_async)
    ]
    assert await runner.run(*tasks) == ["DONE"] * 10
    for number, (sync, concurrent) in enumerate(zip(tasks[::2], tasks[1::2], strict=True)):
        assert Path(sync["stdout"]).read_text() == f"sync {number}\n"
        assert Path(sync["stderr"]).read_text() == f"oops {number}\n"
        assert Path(concurrent["stdout"]).read_text() == f"before {number}\nafter {number}\n"


async def test_timeout_counts_from_the_start_of_a_task(runner: DragonRunner) -> None:
    long = [runner.function(time.sleep, 30, options={"timeout": 0.5}) for _ in range(3)]
    concurrent = runner.function(asyncio.sleep, 30, options={"timeout": 0.5})
    assert await runner.run(*long, concurrent) == ["FAILED"] * 4
    assert "within its timeout of 0.5 s" in str(long[2]["exception"])


async def test_error_names_an_unknown_option(runner: DragonRunner) -> None:
    task = runner.function(scaled, 1, options={"colour": "blue"})
    assert await runner.run(task) == ["FAILED"]
    assert isinstance(task["exception"], UnsupportedTaskError)
    assert "no option 'colour'" in str(task["exception"])


async def test_long_task_does_not_delay_later_ones(runner: DragonRunner) -> None:
    # Quick tasks first: they widen the windows, so that a worker is given many calls at a time.
    await runner.run(*(runner.function(scaled, number) for number in range(2000)))
    long = runner.function(time.sleep, 3)
    quick = [runner.function(scaled, number) for number in range(500)]
    began = time.monotonic()
    await runner.submit(long, *quick)
    for task in quick:
        assert await runner.end(task) == "DONE"
    assert time.monotonic() - began < 2.5
    assert await runner.end(long) == "DONE"


async def test_blocking_async_function_does_not_delay_later_ones(runner: DragonRunner) -> None:
    async def block() -> None:
        time.sleep(3)  # noqa: ASYNC251 - it must block the loop

    long = runner.function(block)
    quick = [runner.function(asyncio.sleep, 0) for _ in range(50)]
    began = time.monotonic()
    await runner.submit(long, *quick)
    for task in quick:
        assert await runner.end(task) == "DONE"
    assert time.monotonic() - began < 2.5
    assert await runner.end(long) == "DONE"


async def test_task_is_reported_running_while_it_runs(runner: DragonRunner) -> None:
    tasks = [
        runner.function(time.sleep, 1),
        runner.function(asyncio.sleep, 1),
        runner.executable("/bin/sleep", "1"),
    ]
    for task in tasks:
        await runner.submit(task)
        await until(functools.partial(runner.began, task))
        assert runner.reports.terminal(task["uid"]) == []
        await runner.end(task)


async def test_import_registers_the_start_method() -> None:
    assert "dragon" in multiprocessing.get_all_start_methods()


async def test_worker_processes_beside_the_backend_work() -> None:
    async with ConcurrentExecutionBackend("process", name="local", max_workers=1) as backend:
        local = DragonRunner(backend)
        task = local.function(scaled, 42)
        assert await local.run(task) == ["DONE"]


async def test_thread_pool_beside_the_backend_works() -> None:
    async with ConcurrentExecutionBackend("thread", name="local") as backend:
        local = DragonRunner(backend)
        task = local.function(scaled, 42)
        assert await local.run(task) == ["DONE"]


async def test_functions_and_jobs_are_recalled_from_a_journal(tmp_path: Path) -> None:
    found = []
    for recalled in (False, True):
        backend = DragonExecutionBackendV3(num_workers=1)
        async with Session([backend], journal=tmp_path / "run.journal") as session:
            function = ComputeTask(function=os.getpid)
            job = ComputeTask(
                executable="/bin/sh",
                arguments=["-c", "echo rank $RHAPSODY_RANK"],
                task_backend_specific_kwargs={"ranks": 2},
            )
            await session.submit_tasks([function, job])
            await session.wait_tasks([function, job])
            ends = [(task.state, task.get("exception")) for task in (function, job)]
            assert ends == [("DONE", None)] * 2
            assert {bool(task.get("from_journal")) for task in (function, job)} == {recalled}
            found.append((function.return_value, job.stdout, job.ranks))
    assert found[0] == found[1]
    assert [rank["stdout"] for rank in found[0][2]] == ["rank 0\n", "rank 1\n"]


async def test_session_routes_tasks_to_dragon_and_threads() -> None:
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
async def test_exception_without_attributes_is_described(
    runner: DragonRunner, capture: bool
) -> None:
    task = runner.function(
        functions.fail, functions.FrozenError, "as it was", capture_stdio=capture
    )
    assert await runner.run(task) == ["FAILED"]
    assert "it raised FrozenError: as it was" in str(task["exception"])


async def test_invalid_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="num_workers must be a whole number"):
        DragonExecutionBackendV3(num_workers=0)
    with pytest.raises(ValueError, match="nodes=7 asks for more nodes"):
        await DragonExecutionBackendV3(nodes=7)
    with pytest.raises(ValueError, match="nodes names elsewhere"):
        await DragonExecutionBackendV3(nodes=["elsewhere"])


async def test_one_task_starts_one_worker() -> None:
    async with DragonExecutionBackendV3(num_workers=2048, name="many") as backend:
        many = DragonRunner(backend)
        await many.run(many.function(scaled, 1))
        assert len(backend.worker_pids) == 1


async def test_number_of_workers_is_limited_by_the_cpus(
    caplog: pytest.LogCaptureFixture,
) -> None:
    cpus = sum(node.cpus for node in allocation())
    async with DragonExecutionBackendV3(num_workers=1000 * cpus, name="many") as backend:
        many = DragonRunner(backend)
        tasks = [many.function(time.sleep, 0.01) for _ in range(100 * cpus)]
        assert set(await many.run(*tasks)) == {"DONE"}
        assert len(backend.worker_pids) <= 8 * cpus
    assert f"at most {8 * cpus} workers will be started" in caplog.text


async def test_system_exit_fails_with_a_task_error(runner: DragonRunner) -> None:
    task = runner.function(sys.exit, 4)
    assert await runner.run(task) == ["FAILED"]
    assert isinstance(task["exception"], TaskExecutionError)
    assert "SystemExit" in str(task["exception"])
