"""The concurrent backend: functions in threads and processes, and executables beside them."""

import asyncio
import functools
import gc
import os
import signal
import sys
import threading
import weakref
from collections.abc import AsyncIterator, Callable
from concurrent.futures import (
    BrokenExecutor,
    Executor,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
)
from pathlib import Path
from typing import Any

import pytest

from rhapsody.api.errors import (
    BackendError,
    TaskExecutionError,
    TaskTimeoutError,
    WorkerDied,
)
from rhapsody.backends import ConcurrentExecutionBackend
from rhapsody.backends.process_calls import RemoteTraceback
from rhapsody.backends.service import THREAD_NAME, service_loop
from rhapsody.testing import samples
from rhapsody.testing.gate import Gate, hold, hold_async
from rhapsody.testing.owners import Reports
from tests.support import functions
from tests.support.processes import wait_gone
from tests.support.waiting import until

PATIENCE = 20


class Runner:
    """A backend with the one who uses it."""

    def __init__(self, backend: ConcurrentExecutionBackend) -> None:
        self.backend = backend
        self.reports = Reports()
        self._tasks = 0
        backend.register_callback(self.reports.callback)

    def function(self, function: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        self._tasks += 1
        return samples.function(f"task.{self._tasks}", function, *args, **kwargs)

    async def run(self, *tasks: dict[str, Any]) -> list[str]:
        """Run tasks and return their states."""
        await self.backend.submit_tasks(list(tasks))
        return [(await self.reports.end(task["uid"])).state for task in tasks]

    async def call(self, function: Any, *args: Any, **kwargs: Any) -> Any:
        """Run a function and return its value, or raise its exception."""
        task = self.function(function, *args, **kwargs)
        if await self.run(task) == ["DONE"]:
            return task["return_value"]
        raise task["exception"]


@pytest.fixture
async def threads() -> AsyncIterator[Runner]:
    async with ConcurrentExecutionBackend("thread", max_workers=1) as backend:
        yield Runner(backend)


@pytest.fixture
async def processes() -> AsyncIterator[Runner]:
    async with ConcurrentExecutionBackend("process", max_workers=1) as backend:
        yield Runner(backend)


@pytest.fixture(params=["threads", "processes"])
def either(request: pytest.FixtureRequest) -> Runner:
    runner: Runner = request.getfixturevalue(request.param)
    return runner


@pytest.fixture
async def gate() -> AsyncIterator[Gate]:
    async with Gate() as gate:
        yield gate


def closure(offset: int) -> Callable[[int], int]:
    def add_offset(value: int) -> int:
        return value + offset

    return add_offset


def async_closure(offset: int) -> Callable[[int], Any]:
    async def add_offset(value: int) -> int:
        await asyncio.sleep(0)
        return value + offset

    return add_offset


class TestFunctions:
    @pytest.mark.parametrize(
        "function",
        [
            pytest.param(functions.add, id="sync"),
            pytest.param(functions.add_async, id="async"),
            pytest.param(lambda value: value + 1, id="lambda"),
            pytest.param(closure(1), id="closure"),
            pytest.param(async_closure(1), id="async closure"),
            pytest.param(functools.partial(functions.add, right=1), id="partial"),
            pytest.param(functools.partial(functions.add_async, right=1), id="async partial"),
            pytest.param(functions.Counter(1), id="callable object"),
            pytest.param(functions.Counter(1).add, id="bound method"),
            pytest.param(functions.Counter.from_zero, id="class method"),
            pytest.param(functions.Counter.double, id="static method"),
            pytest.param(abs, id="built-in"),
        ],
    )
    async def test_anything_callable_is_called(self, function: Any, either: Runner) -> None:
        expected = {functions.Counter.from_zero: 1, abs: 1}.get(function, 2)
        assert await either.call(function, 1) == expected

    async def test_arguments_come_by_position_and_by_name(self, either: Runner) -> None:
        assert await either.call(functions.add, 2, right=40) == 42

    async def test_a_function_that_is_none_fails(self, either: Runner) -> None:
        with pytest.raises(TypeError, match="not callable"):
            await either.call("not a function")

    async def test_threads_are_of_this_process(self, threads: Runner) -> None:
        assert await threads.call(functions.pid) == os.getpid()

    async def test_processes_are_others_and_serve_again(self, processes: Runner) -> None:
        first, second = [await processes.call(functions.pid) for _ in range(2)]
        assert first == second != os.getpid()

    async def test_secrets_are_not_in_the_environment_of_processes(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("RHAPSODY_API_KEY", "secret")
        async with ConcurrentExecutionBackend("process", max_workers=1) as backend:
            key = await Runner(backend).call(lambda: os.environ.get("RHAPSODY_API_KEY"))
        assert key is None

    async def test_running_is_reported_when_it_starts(self, either: Runner, gate: Gate) -> None:
        task = samples.held("function", "task.1", gate)
        await either.backend.submit_tasks([task])
        await gate.started("task.1")
        gate.release("task.1")
        await either.reports.end("task.1")
        assert either.reports.states("task.1") == ["RUNNING", "DONE"]

    async def test_few_are_run_and_told_of_while_the_service_loop_is_busy(
        self, threads: Runner
    ) -> None:
        free = threading.Event()
        service_loop().call(free.wait, PATIENCE)
        try:
            assert await asyncio.wait_for(threads.call(functions.add, 1), PATIENCE / 2) == 2
        finally:
            free.set()

    async def test_many_are_run_too(self, threads: Runner) -> None:
        tasks = [threads.function(functions.add, n) for n in range(600)]
        assert set(await threads.run(*tasks)) == {"DONE"}
        assert [task["return_value"] for task in tasks] == list(range(1, 601))


class TestExceptions:
    async def test_it_comes_back_with_its_fields(self, either: Runner) -> None:
        with pytest.raises(functions.FieldError, match="no licence") as caught:
            await either.call(functions.fail, functions.FieldError, 7, "no licence")
        assert (caught.value.code, caught.value.reason) == (7, "no licence")

    @pytest.mark.parametrize(
        "error", [SystemExit, StopIteration, KeyboardInterrupt, asyncio.CancelledError]
    )
    async def test_one_that_would_end_a_loop_is_wrapped(
        self, error: type[BaseException], either: Runner
    ) -> None:
        with pytest.raises(TaskExecutionError, match=error.__name__):
            await either.call(functions.fail, error, 3)

    async def test_the_pool_is_of_use_after_a_system_exit(self, either: Runner) -> None:
        with pytest.raises(TaskExecutionError):
            await either.call(functions.fail, SystemExit)
        assert await either.call(functions.add, 1) == 2

    async def test_the_other_processs_traceback_is_its_cause(self, processes: Runner) -> None:
        with pytest.raises(ValueError, match="no") as caught:
            await processes.call(functions.fail, ValueError, "no")
        assert isinstance(caught.value.__cause__, RemoteTraceback)
        assert "in fail\n    raise error(*args)" in str(caught.value.__cause__)

    @pytest.mark.parametrize(
        ("error", "args"),
        [(functions.StubbornError, (1, "stubborn")), (functions.LockedError, ())],
    )
    async def test_one_that_cannot_travel_is_described(
        self, error: type[Exception], args: tuple[Any, ...], processes: Runner
    ) -> None:
        with pytest.raises(TaskExecutionError, match=rf"it raised {error.__name__}: ") as caught:
            await processes.call(functions.fail, error, *args)
        assert "in fail" in str(caught.value.__cause__)

    async def test_what_cannot_be_sent_is_refused_with_the_reason(self, processes: Runner) -> None:
        with pytest.raises(TaskExecutionError, match="arguments cannot be pickled"):
            await processes.call(functions.pid, threading.Lock())

    async def test_what_cannot_be_returned_fails_by_its_type(self, processes: Runner) -> None:
        with pytest.raises(TaskExecutionError, match="its result, a lock, cannot be pickled"):
            await processes.call(functions.unpicklable)


class TestDeadWorkers:
    @pytest.mark.parametrize(
        "ending", [functools.partial(functions.leave, 3), functions.kill_oneself]
    )
    async def test_the_task_that_ran_fails_and_the_pool_is_of_use(
        self, ending: Callable[[], None], processes: Runner
    ) -> None:
        with pytest.raises(WorkerDied, match="died while this task ran"):
            await processes.call(ending)
        assert await processes.call(functions.add, 1) == 2

    async def test_tasks_that_had_not_started_run_in_the_next_pool(self, processes: Runner) -> None:
        tasks = [processes.function(functions.leave, 1)]
        tasks += [processes.function(functions.add, n) for n in range(6)]
        states = await processes.run(*tasks)
        assert states == ["FAILED", *["DONE"] * 6]
        assert [task["return_value"] for task in tasks[1:]] == [1, 2, 3, 4, 5, 6]

    async def test_tasks_survive_any_number_of_pools_that_others_break(
        self, processes: Runner
    ) -> None:
        breakers = [processes.function(functions.leave, 1) for _ in range(5)]
        last = processes.function(functions.add, 1)
        states = await processes.run(*breakers, last)
        assert states == [*["FAILED"] * 5, "DONE"]
        assert {type(task["exception"]) for task in breakers} == {WorkerDied}

    async def test_a_pool_that_dies_before_any_task_starts_is_given_up(
        self, tmp_path: Path
    ) -> None:
        script = tmp_path / "unguarded.py"
        script.write_text(
            "import asyncio\n"
            "from rhapsody.backends import ConcurrentExecutionBackend\n"
            "async def main():\n"
            "    backend = ConcurrentExecutionBackend('process', max_workers=1)\n"
            "    ended = asyncio.Event()\n"
            "    backend.register_callback(lambda task, state: ended.set())\n"
            "    task = {'uid': 'task.1', 'function': print}\n"
            "    await backend.submit_tasks([task])\n"
            "    await ended.wait()\n"
            "    print(task['exception'])\n"
            "    await backend.shutdown()\n"
            "asyncio.run(main())\n"
        )
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            str(script),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
        said, _ = await asyncio.wait_for(process.communicate(), 50)
        assert b"if __name__ == '__main__'" in said

    async def test_a_callers_broken_pool_fails_its_tasks(self) -> None:
        with ProcessPoolExecutor(1) as executor:
            async with ConcurrentExecutionBackend(executor) as backend:
                runner = Runner(backend)
                for _ in range(2):
                    with pytest.raises(WorkerDied):
                        await runner.call(functions.leave, 1)


class TestCancel:
    async def test_a_sync_function_in_a_process_is_interrupted(
        self, processes: Runner, gate: Gate
    ) -> None:
        worker = await processes.call(functions.pid)
        await processes.backend.submit_tasks([samples.held("function", "held", gate)])
        await gate.started("held")
        assert await processes.backend.cancel_task("held")
        await gate.ended("held")
        assert await processes.call(functions.pid) == worker

    async def test_an_async_function_that_blocks_is_interrupted_in_a_process(
        self, processes: Runner, gate: Gate
    ) -> None:
        address = gate.address

        async def blocks() -> None:
            hold(*address, "task.1")

        await processes.backend.submit_tasks([processes.function(blocks)])
        await gate.started("task.1")
        assert await processes.backend.cancel_task("task.1")
        await gate.ended("task.1")

    async def test_an_async_function_can_clean_up(self, either: Runner, gate: Gate) -> None:
        address = gate.address

        async def tidy() -> None:
            try:
                await hold_async(*address, "task.1")
            finally:
                await asyncio.sleep(0)
                hold(*address, "cleaned up")

        await either.backend.submit_tasks([either.function(tidy)])
        await gate.started("task.1")
        assert await either.backend.cancel_task("task.1")
        await gate.started("cleaned up")
        gate.release("cleaned up")

    async def test_a_queued_task_never_runs(
        self, either: Runner, gate: Gate, tmp_path: Path
    ) -> None:
        await either.backend.submit_tasks([samples.held("function", "held", gate)])
        await gate.started("held")
        queued = [either.function(Path.touch, tmp_path / name) for name in ("one", "two", "three")]
        await either.backend.submit_tasks(queued)
        assert await either.backend.cancel_task(queued[1]["uid"])
        assert (await either.reports.end(queued[1]["uid"])).state == "CANCELED"
        gate.release("held")
        for task in (queued[0], queued[2]):
            assert (await either.reports.end(task["uid"])).state == "DONE"
        await either.call(functions.add, 1)
        assert {path.name for path in tmp_path.iterdir()} == {"one", "three"}

    async def test_a_late_result_is_not_that_of_a_later_task_of_its_uid(self, gate: Gate) -> None:
        async with ConcurrentExecutionBackend(max_workers=2) as backend:
            runner = Runner(backend)
            await backend.submit_tasks([samples.held("function", "task.9", gate)])
            await gate.started("task.9")
            assert await backend.cancel_task("task.9")
            later = samples.function("task.9", hold, *gate.address, "later")
            await backend.submit_tasks([later])
            await gate.started("later")
            gate.release("task.9")
            await runner.call(functions.add, 1)  # by the thread that had the first
            assert runner.reports.states("task.9") == ["RUNNING", "CANCELED", "RUNNING"]
            gate.release("later")
            await until(lambda: later.get("return_value") == "later")

    async def test_nothing_is_kept_of_cancelled_calls(self, processes: Runner, gate: Gate) -> None:
        await processes.backend.submit_tasks([samples.held("function", "held.0", gate)])
        await gate.started("held.0")
        await processes.backend.submit_tasks(
            [samples.held("function", f"held.{n}", gate) for n in range(1, 4)]
        )
        for n in range(4):
            assert await processes.backend.cancel_task(f"held.{n}")
        await processes.call(functions.add, 1)
        marks = processes.backend._marks
        assert marks is not None
        kept = {name for name in os.listdir(marks.directory) if not name.startswith("owner@")}
        assert kept == {"marks"}
        assert not marks._pids
        assert not marks._on_start


class TestTimeout:
    async def test_a_function_in_a_process_is_stopped(self, processes: Runner, gate: Gate) -> None:
        await processes.call(functions.add, 1)  # the time is not for starting the pool
        task = samples.held("function", "held", gate)
        task["task_backend_specific_kwargs"] = {"timeout": 0.5}
        assert await processes.run(task) == ["FAILED"]
        assert isinstance(task["exception"], TaskTimeoutError)
        await gate.ended("held")

    @pytest.mark.parametrize("kind", ["function", "async function"])
    async def test_a_function_in_a_thread_fails_in_time(
        self, kind: str, threads: Runner, gate: Gate
    ) -> None:
        task = samples.held(kind, "held", gate)
        task["task_backend_specific_kwargs"] = {"timeout": 0.2}
        assert await threads.run(task) == ["FAILED"]
        assert isinstance(task["exception"], TaskTimeoutError)
        if kind == "function":
            gate.release("held")
        await gate.ended("held")
        await threads.call(functions.add, 1)
        assert threads.reports.states("held") == ["RUNNING", "FAILED"]
        assert task.get("return_value") is None

    async def test_nothing_is_kept_of_a_function_that_ended_in_time(self, threads: Runner) -> None:
        class Argument:
            """Takes weak references."""

        arguments = [Argument() for _ in range(50)]
        kept = [weakref.ref(argument) for argument in arguments]
        while arguments:
            task = {"function": id, "args": [arguments.pop()], "timeout": 3600}
            await threads.backend.answer(task)
        del task
        await threads.call(functions.add, 1)  # the thread lets go of what it ran before
        await service_loop().run(asyncio.sleep(0))
        gc.collect()
        assert [ref() for ref in kept] == [None] * 50

    async def test_an_executable_is_ended_with_its_children(
        self, threads: Runner, gate: Gate
    ) -> None:
        task = samples.held("executable", "task.1", gate)
        task["task_backend_specific_kwargs"] = {"timeout": 0.5}
        assert await threads.run(task) == ["FAILED"]
        assert "within its timeout of 0.5 s" in str(task["exception"])
        await gate.ended("task.1")

    async def test_waiting_for_a_free_place_is_not_in_it(self) -> None:
        async with ConcurrentExecutionBackend(max_children=1) as backend:
            sleeps = {
                "executable": "sleep",
                "arguments": ["0.4"],
                "task_backend_specific_kwargs": {"timeout": 1.5},
            }
            results = await asyncio.gather(
                *(backend.answer({**sleeps, "uid": f"task.{n}"}) for n in range(5))
            )
        assert [result["exit_code"] for result in results] == [0] * 5


class TestExecutables:
    async def test_no_more_run_at_once_than_allowed(self, tmp_path: Path, gate: Gate) -> None:
        async with ConcurrentExecutionBackend(max_children=2) as backend:
            runner = Runner(backend)
            await backend.submit_tasks(
                [samples.held("executable", f"task.{n}", gate) for n in range(4)]
            )
            running: set[str] = set()
            for _ in range(2):
                await gate.started(f"task.{len(running)}")
                running.add(f"task.{len(running)}")
            assert {r.uid for r in runner.reports.log if r.state == "RUNNING"} == running
            gate.release("task.0")
            await gate.started("task.2")
            for uid in ("task.1", "task.2"):
                gate.release(uid)
            await gate.started("task.3")
            gate.release("task.3")
            assert (await runner.reports.end("task.3")).state == "DONE"

    async def test_500_at_once_all_end(self) -> None:
        async with ConcurrentExecutionBackend() as backend:
            runner = Runner(backend)
            tasks = [samples.executable(f"task.{n}", "/bin/echo", str(n)) for n in range(500)]
            assert set(await runner.run(*tasks)) == {"DONE"}
            assert [task["stdout"] for task in tasks] == [f"{n}\n" for n in range(500)]

    async def test_a_failure_keeps_what_was_written(self, threads: Runner) -> None:
        task = samples.executable("task.1", "/bin/sh", "-c", "echo half; exit 3")
        assert await threads.run(task) == ["FAILED"]
        assert (task["stdout"], task["exit_code"]) == ("half\n", 3)
        assert task["exception"].exit_code == 3

    async def test_an_unknown_option_is_named_once(
        self, threads: Runner, caplog: pytest.LogCaptureFixture
    ) -> None:
        options = {"ranks": 4}
        for n in range(2):
            task = samples.executable(
                f"task.{n}", "/bin/true", task_backend_specific_kwargs=options
            )
            assert await threads.run(task) == ["DONE"]
        assert caplog.text.count("has no use for the option 'ranks'") == 1
        assert "it knows cwd, env, shell, timeout" in caplog.text


class TestExecutor:
    @pytest.mark.parametrize("make", [ThreadPoolExecutor, ProcessPoolExecutor])
    async def test_a_callers_executor_is_never_shut_down(
        self, make: Callable[[int], Executor]
    ) -> None:
        with make(1) as executor:
            async with ConcurrentExecutionBackend(executor) as backend:
                assert backend.executor is executor
                assert await Runner(backend).call(functions.add, 1) == 2
            assert await asyncio.wrap_future(executor.submit(functions.add, 2)) == 3

    async def test_its_own_ends_with_it(self) -> None:
        backend = ConcurrentExecutionBackend("process", max_workers=1)
        runner = Runner(backend)
        assert backend.executor is None
        worker = await runner.call(functions.pid)
        await backend.shutdown()
        assert backend.executor is None
        assert wait_gone(worker) == []

    async def test_a_process_that_will_not_end_is_killed(
        self, monkeypatch: pytest.MonkeyPatch, gate: Gate
    ) -> None:
        monkeypatch.setattr("rhapsody.backends.concurrent.STOP_GRACE_SECONDS", 0.2)
        address = gate.address

        def stubborn() -> None:
            signal.signal(signal.SIGUSR1, signal.SIG_IGN)
            hold(*address, "task.1")

        backend = ConcurrentExecutionBackend("process", max_workers=1)
        runner = Runner(backend)
        await backend.submit_tasks([runner.function(stubborn)])
        await gate.started("task.1")
        await backend.shutdown()
        await gate.ended("task.1")

    @pytest.mark.parametrize("make", [ThreadPoolExecutor, ProcessPoolExecutor])
    async def test_a_shut_down_executor_fails_tasks_with_the_reason(
        self, make: Callable[[int], Executor]
    ) -> None:
        executor = make(1)
        executor.shutdown()
        async with ConcurrentExecutionBackend(executor) as backend:
            runner = Runner(backend)
            with pytest.raises(BackendError, match=r"executor does not take tasks: .* shutdown"):
                await runner.call(functions.add, 1)
            tasks = [runner.function(functions.add, n) for n in range(20)]
            assert await runner.run(*tasks) == ["FAILED"] * 20

    async def test_an_executor_that_cannot_start_threads_fails_tasks_with_the_reason(self) -> None:
        failing = ThreadPoolExecutor(1, initializer=functions.fail, initargs=(ValueError,))
        with failing as executor:
            async with ConcurrentExecutionBackend(executor) as backend:
                runner = Runner(backend)
                for _ in range(2):
                    with pytest.raises(BrokenExecutor, match="initializer failed"):
                        await runner.call(functions.add, 1)

    async def test_what_waits_in_an_executor_that_is_shut_down_is_cancelled(
        self, gate: Gate
    ) -> None:
        executor = ThreadPoolExecutor(1)
        async with ConcurrentExecutionBackend(executor) as backend:
            runner = Runner(backend)
            await backend.submit_tasks([samples.held("function", "held", gate)])
            await gate.started("held")
            waiting = [runner.function(functions.add, n) for n in range(3)]
            await backend.submit_tasks(waiting)
            executor.shutdown(wait=False, cancel_futures=True)
            ends = [(await runner.reports.end(task["uid"])).state for task in waiting]
            assert ends == ["CANCELED"] * 3
            gate.release("held")
            assert (await runner.reports.end("held")).state == "DONE"

    async def test_a_callers_own_class_cannot_block_the_owners_loop(self) -> None:
        threads: list[str] = []

        class Watched(ThreadPoolExecutor):
            def submit(self, *args: Any, **kwargs: Any) -> Any:
                threads.append(threading.current_thread().name)
                return super().submit(*args, **kwargs)

        with Watched(1) as executor:
            async with ConcurrentExecutionBackend(executor) as backend:
                assert await Runner(backend).call(functions.add, 1) == 2
        assert threads == [THREAD_NAME]

    async def test_a_shutdown_leaves_running_threads_behind_and_starts_no_more(
        self, gate: Gate, tmp_path: Path
    ) -> None:
        backend = ConcurrentExecutionBackend(max_workers=1)
        runner = Runner(backend)
        held = samples.held("function", "held", gate)
        await backend.submit_tasks([held])
        await gate.started("held")
        waiting = [runner.function(Path.touch, tmp_path / str(n)) for n in range(300)]
        await backend.submit_tasks(waiting[:3])
        await backend.submit_tasks(waiting[3:])
        await backend.shutdown()
        for task in waiting:
            assert runner.reports.states(task["uid"]) == ["CANCELED"]
        gate.release("held")
        await gate.ended("held")
        assert await runner.call(functions.add, 1) == 2
        await backend.shutdown()
        assert runner.reports.states("held") == ["RUNNING", "CANCELED"]
        assert held.get("return_value") is None
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("executor", ["fibre", 3])
    def test_anything_else_is_refused(self, executor: Any) -> None:
        with pytest.raises(TypeError, match=r"must be a concurrent\.futures\.Executor, 'thread'"):
            ConcurrentExecutionBackend(executor)

    @pytest.mark.parametrize("field", ["max_workers", "max_children"])
    def test_a_size_is_at_least_one(self, field: str) -> None:
        with pytest.raises(ValueError, match=f"{field} must be a whole number"):
            ConcurrentExecutionBackend(**{field: 0})  # type: ignore[arg-type]
