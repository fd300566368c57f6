"""Workers on this machine: deaths, hostile tasks, output, and workers that do not start."""

import asyncio
import functools
import io
import os
import resource
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rhapsody.backends import ConcurrentExecutionBackend
from rhapsody.backends.concurrent import worker_process
from rhapsody.backends.workers import starts
from rhapsody.errors import BackendError, TaskExecutionError, WorkerDied
from rhapsody.testing.gate import Gate, hold
from tests.support import functions
from tests.support.on_concurrent import ConcurrentRunner, cancel_one_and_kill_worker
from tests.support.processes import wait_gone
from tests.support.waiting import until


@pytest.mark.parametrize("ending", [functools.partial(functions.leave, 3), functions.kill_itself])
async def test_dead_worker_fails_its_task_and_worker_is_replaced(
    ending: Callable[[], None], processes: ConcurrentRunner
) -> None:
    with pytest.raises(WorkerDied, match="the worker process that ran it"):
        await processes.call(ending)
    assert await processes.call(functions.add, 1) == 2


async def test_unstarted_tasks_run_in_the_next_worker(processes: ConcurrentRunner) -> None:
    tasks = [processes.function(functions.leave, 1)]
    tasks += [processes.function(functions.add, n) for n in range(6)]
    states = await processes.run(*tasks)
    assert states == ["FAILED", *["DONE"] * 6]
    assert [task["return_value"] for task in tasks[1:]] == [1, 2, 3, 4, 5, 6]


async def test_task_survives_many_dead_workers(processes: ConcurrentRunner) -> None:
    breakers = [processes.function(functions.leave, 1) for _ in range(5)]
    last = processes.function(functions.add, 1)
    states = await processes.run(*breakers, last)
    assert states == [*["FAILED"] * 5, "DONE"]
    assert {type(task["exception"]) for task in breakers} == {WorkerDied}


async def test_cancelled_queued_task_and_dead_worker_lose_no_task(
    processes: ConcurrentRunner, gate: Gate
) -> None:
    ends = await cancel_one_and_kill_worker(processes, gate)
    assert ends == ["FAILED", *["DONE"] * 9, "CANCELED"]


@pytest.mark.parametrize("limit", [resource.RLIMIT_NOFILE, resource.RLIMIT_FSIZE])
async def test_resource_limits_are_restored_after_a_task(
    limit: int, processes: ConcurrentRunner
) -> None:
    before = await processes.call(resource.getrlimit, limit)
    await processes.call(resource.setrlimit, limit, (3, before[1]))
    assert await processes.call(resource.getrlimit, limit) == before


async def test_task_that_kills_its_process_group_fails_alone(processes: ConcurrentRunner) -> None:
    with pytest.raises(WorkerDied):
        await processes.call(os.killpg, 0, signal.SIGKILL)
    assert await processes.call(functions.add, 1) == 2


async def test_processes_are_reused(processes: ConcurrentRunner) -> None:
    first, second = [await processes.call(functions.pid) for _ in range(2)]
    assert first == second != os.getpid()


async def test_processes_have_no_secrets_in_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RHAPSODY_API_KEY", "secret")
    async with ConcurrentExecutionBackend("process", max_workers=1) as backend:
        key = await ConcurrentRunner(backend).call(lambda: os.environ.get("RHAPSODY_API_KEY"))
    assert key is None


async def test_workers_end_at_shutdown() -> None:
    backend = ConcurrentExecutionBackend("process", max_workers=1)
    runner = ConcurrentRunner(backend)
    assert backend.executor is None
    worker = await runner.call(functions.pid)
    await backend.shutdown()
    assert backend.executor is None
    assert wait_gone(worker) == []


async def test_process_ignoring_shutdown_is_killed(
    monkeypatch: pytest.MonkeyPatch, gate: Gate
) -> None:
    monkeypatch.setattr("rhapsody.backends.concurrent.backend.CANCEL_GRACE_SECONDS", 0.2)
    address = gate.address

    def stubborn() -> None:
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        hold(*address, "task.1")

    backend = ConcurrentExecutionBackend("process", max_workers=1)
    runner = ConcurrentRunner(backend)
    await backend.submit_tasks([runner.function(stubborn)])
    await gate.started("task.1")
    await backend.shutdown()
    await gate.ended("task.1")


async def test_import_error_in_starting_workers_fails_the_tasks_with_the_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(worker_process, "BOOTSTRAP", "import no_such_module")
    async with ConcurrentExecutionBackend("process", max_workers=2) as backend:
        with pytest.raises(
            BackendError, match=r"3 workers in a row ended .* exit code 1: Module"
        ) as caught:
            await ConcurrentRunner(backend).call(functions.add, 1)
    assert "No module named 'no_such_module'" in str(caught.value)


async def test_missing_interpreter_fails_the_tasks_with_the_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(worker_process, "command", lambda: ["/no/such/python"])
    async with ConcurrentExecutionBackend("process", max_workers=1) as backend:
        with pytest.raises(BackendError, match=r"could not be started: .*/no/such/python"):
            await ConcurrentRunner(backend).call(functions.add, 1)


async def test_tasks_survive_the_kills_of_many_starting_workers(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(starts, "FIRST_PAUSE_SECONDS", 0.001)
    dying = (
        "import os, pathlib\n"
        f"number = len(os.listdir({str(tmp_path)!r}))\n"
        f"pathlib.Path({str(tmp_path)!r}, str(number)).touch()\n"
        "if number < 6: os.kill(os.getpid(), 9)\n"
    )
    monkeypatch.setattr(worker_process, "BOOTSTRAP", dying + worker_process.BOOTSTRAP)
    async with ConcurrentExecutionBackend("process", max_workers=1) as backend:
        runner = ConcurrentRunner(backend)
        tasks = [runner.function(functions.add, n) for n in range(3)]
        assert await runner.run(*tasks) == ["DONE"] * 3
    assert len(os.listdir(tmp_path)) == 7


async def test_warning_while_a_worker_starts_reaches_standard_error(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    warning = "import sys\nprint('a warning', file=sys.stderr)\n"
    monkeypatch.setattr(worker_process, "BOOTSTRAP", warning + worker_process.BOOTSTRAP)
    async with ConcurrentExecutionBackend("process", max_workers=1) as backend:
        await ConcurrentRunner(backend).call(functions.add, 1)
        await until(lambda: "a warning\n" in capfd.readouterr().err)


async def test_output_of_tasks_reaches_that_of_the_program(
    processes: ConcurrentRunner, capfd: pytest.CaptureFixture[str]
) -> None:
    def say() -> None:
        print("text")
        sys.stdout.buffer.write(b"\xff bytes\n")
        sys.stdout.flush()
        print("error", file=sys.stderr)
        os.write(1, b"direct\n")

    await processes.call(say)
    output, errors = capfd.readouterr()
    assert output == "text\n\udcff bytes\ndirect\n" or "bytes\ndirect\n" in output
    assert "error\n" in errors


async def test_output_is_captured_even_if_an_earlier_task_replaced_stdout(
    processes: ConcurrentRunner, tmp_path: Path
) -> None:
    def replace() -> None:
        sys.stdout = io.StringIO()

    processes.backend._work_dir = str(tmp_path)
    await processes.call(replace)
    task = {**processes.function(print, "hello"), "capture_stdio": True}
    assert await processes.run(task) == ["DONE"]
    assert Path(task["stdout"]).read_text() == "hello\n"
    assert task["stdout"] == f"{tmp_path}/{task['uid']}.stdout"


@pytest.mark.parametrize("mode", ["sync", "async"])
@pytest.mark.parametrize("kind", ["close", "replace"])
async def test_descriptors_that_a_task_closes_or_replaces_are_restored(
    processes: ConcurrentRunner,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    mode: str,
    kind: str,
) -> None:
    def change() -> None:
        for descriptor in (1, 2):
            os.close(descriptor)
            if kind == "replace":
                os.open(tmp_path / str(descriptor), os.O_CREAT | os.O_WRONLY)

    async def change_async() -> None:
        change()

    def say() -> int:
        print("text")
        print("error", file=sys.stderr)
        return os.open(os.devnull, os.O_RDONLY)

    await processes.call(change if mode == "sync" else change_async)
    assert await processes.call(say) > 2
    assert capfd.readouterr() == ("text\n", "error\n")


async def test_task_with_retries_runs_again_after_its_worker_died(
    processes: ConcurrentRunner, tmp_path: Path
) -> None:
    def die_twice() -> int:
        number = len(os.listdir(tmp_path))
        (tmp_path / str(number)).touch()
        if number < 2:
            os._exit(1)
        return number

    task = processes.function(die_twice)
    task["task_backend_specific_kwargs"] = {"retries": 2}
    assert await processes.run(task) == ["DONE"]
    assert task["return_value"] == 2


async def test_retries_of_an_executable_are_refused(processes: ConcurrentRunner) -> None:
    task: dict[str, Any] = {"uid": "task.1", "executable": "true"}
    task["task_backend_specific_kwargs"] = {"retries": 2}
    assert await processes.run(task) == ["FAILED"]
    assert "'retries'" in str(task["exception"])


def close_all_descriptors() -> None:
    os.closerange(3, 256)


def close_everything() -> None:
    os.closerange(0, 256)


@pytest.mark.parametrize("deed", [close_all_descriptors, close_everything])
async def test_task_that_closes_all_descriptors_fails_alone(
    deed: Callable[[], None], processes: ConcurrentRunner
) -> None:
    with pytest.raises(WorkerDied):
        await processes.call(deed)
    assert await processes.call(functions.add, 1) == 2


async def test_forked_child_that_returns_from_its_task_ends(processes: ConcurrentRunner) -> None:
    def fork() -> int:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # fork beside threads
            return os.fork()

    child = await processes.call(fork)
    assert child > 0
    assert await processes.call(os.waitpid, child, 0) == (child, 0)
    assert await processes.call(functions.add, 1) == 2


async def test_directory_of_a_task_is_not_that_of_the_next(
    processes: ConcurrentRunner, tmp_path: Path
) -> None:
    before = await processes.call(os.getcwd)
    await processes.call(os.chdir, tmp_path)
    assert await processes.call(os.getcwd) == before


async def test_system_exit_fails_its_task_alone(processes: ConcurrentRunner) -> None:
    worker = await processes.call(functions.pid)
    with pytest.raises(TaskExecutionError, match="SystemExit"):
        await processes.call(sys.exit, 3)
    assert await processes.call(functions.pid) == worker


async def test_daemon_of_a_task_outlives_its_worker() -> None:
    def start_daemon() -> Any:
        daemon = subprocess.Popen(["sleep", "60"], start_new_session=True)
        daemon.returncode = 0  # it is left behind on purpose
        return daemon.pid

    async with ConcurrentExecutionBackend("process", max_workers=1) as backend:
        daemon = await ConcurrentRunner(backend).call(start_daemon)
    os.kill(daemon, signal.SIGKILL)


async def test_children_of_a_task_end_with_its_killed_worker(processes: ConcurrentRunner) -> None:
    def leave_child() -> Any:
        child = subprocess.Popen(["sleep", "60"])
        child.returncode = 0
        return child.pid

    child = await processes.call(leave_child)
    with pytest.raises(WorkerDied):
        await processes.call(functions.kill_itself)
    assert wait_gone(child) == []


async def test_workers_end_with_a_killed_program(tmp_path: Path) -> None:
    script = (
        "import asyncio, os\n"
        "from rhapsody.backends import ConcurrentExecutionBackend\n"
        "async def main():\n"
        "    backend = ConcurrentExecutionBackend('process', max_workers=1)\n"
        "    ended = asyncio.Event()\n"
        "    backend.register_callback(lambda task, state: state == 'DONE' and ended.set())\n"
        "    await backend.submit_tasks([{'uid': 'task.1', 'function': print}])\n"
        "    await ended.wait()\n"
        "    print(*backend.worker_pids, flush=True)\n"
        "    os.kill(os.getpid(), 9)\n"
        "asyncio.run(main())\n"
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", script, stdout=asyncio.subprocess.PIPE
    )
    output, _ = await asyncio.wait_for(process.communicate(), 50)
    assert wait_gone(int(output)) == []


async def test_starting_worker_cleans_up_after_a_killed_program(tmp_path: Path) -> None:
    script = (
        "import asyncio\n"
        "from rhapsody.backends import ConcurrentExecutionBackend\n"
        "from rhapsody.backends.concurrent import worker_process\n"
        "begin, end = worker_process.BOOTSTRAP.split('from')\n"
        "kill = 'import os; data = pickle.loads(setup).worker.data; '\n"
        "kill += 'print(os.getpid(), data.memory, data.disk, flush=True); '\n"
        "kill += 'os.kill(os.getppid(), 9)'\n"
        "worker_process.BOOTSTRAP = f'{begin}{kill}\\nfrom{end}'\n"
        "async def main():\n"
        "    backend = ConcurrentExecutionBackend('process', max_workers=1)\n"
        "    await backend.submit_tasks([{'uid': 'task.1', 'function': print}])\n"
        "    await asyncio.Event().wait()\n"
        "asyncio.run(main())\n"
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        script,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )
    output, _ = await asyncio.wait_for(process.communicate(), 50)
    worker, *folders = output.decode().split()
    assert len(folders) == 2, output  # and nothing else was written
    assert wait_gone(int(worker)) == []
    assert [folder for folder in folders if os.path.exists(folder)] == []


async def test_async_functions_share_a_worker_if_asked_to() -> None:
    async with ConcurrentExecutionBackend("process", max_workers=1, async_per_worker=2) as backend:
        runner = ConcurrentRunner(backend)
        met = [runner.function(functions.meet) for _ in range(2)]
        assert await runner.run(*met) == ["DONE", "DONE"]
