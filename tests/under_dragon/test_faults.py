"""Killed workers, cancelled tasks, shutdowns with tasks under way, killed programs."""

import asyncio
import ctypes
import functools
import os
import resource
import shlex
import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from rhapsody.backends import DragonExecutionBackendV3
from rhapsody.backends.dragon import (
    nodes,
    processes,
    program_queue,
    worker_manager,
    worker_process,
)
from rhapsody.errors import BackendError, TaskExecutionError, WorkerDied
from rhapsody.global_services import ReceiveLock
from tests.support.on_dragon import DragonRunner, under_dragon
from tests.support.processes import all_ended, is_alive
from tests.support.waiting import until


def square(number: int) -> int:
    return number * number


def square_slowly(number: int) -> int:
    time.sleep(0.002)
    return number * number


def segfault() -> None:
    ctypes.string_at(0)


def swallow_memory() -> int:
    limit = psutil.Process().memory_info().vms + 200_000_000
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
    try:
        return len(bytearray(2_000_000_000))
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def die_once(path: str) -> str:
    if not os.path.exists(path):
        Path(path).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return "second run"


def spin(path: Path) -> None:
    path.touch()
    while True:
        try:
            while True:
                sum(range(1000))
        except BaseException:
            continue


async def cling(path: Path) -> None:
    path.touch()
    while True:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            continue


async def test_killed_worker_fails_only_its_running_tasks() -> None:
    async with DragonExecutionBackendV3(num_workers=2) as backend:
        runner = DragonRunner(backend)
        tasks = [runner.function(square_slowly, number) for number in range(1000)]
        await runner.submit(*tasks)
        await runner.end(tasks[200])
        victim = backend.worker_pids[0]
        os.kill(victim, signal.SIGKILL)
        states = [await runner.end(task) for task in tasks]
        lost = [task for task, state in zip(tasks, states, strict=True) if state != "DONE"]
        # Calls that ended in its last milliseconds may not have been reported.
        assert 1 <= len(lost) <= 10
        for task in lost:
            assert isinstance(task["exception"], WorkerDied)
            assert "SIGKILL" in str(task["exception"])
        ends = [report for report in runner.reports.log if report.state != "RUNNING"]
        assert len({report.uid for report in ends}) == len(ends) == 1000
        assert victim not in backend.worker_pids


async def test_killed_worker_fails_its_long_task_and_waiting_calls_move() -> None:
    async with DragonExecutionBackendV3(num_workers=1) as backend:
        runner = DragonRunner(backend)
        long = runner.function(time.sleep, 60)
        rest = [runner.function(square, number) for number in range(200)]
        await runner.submit(long, *rest)
        await until(lambda: runner.began(long))
        os.kill(backend.worker_pids[0], signal.SIGKILL)
        assert [await runner.end(task) for task in rest] == ["DONE"] * 200
        assert await runner.end(long) == "FAILED"
        assert isinstance(long["exception"], WorkerDied)


@pytest.mark.parametrize(
    ("deadly", "words"),
    [
        (segfault, "was ended by SIGSEGV"),
        (lambda: os._exit(3), "ended with exit code 3"),
    ],
)
async def test_task_ending_its_worker_fails_with_worker_died(deadly: Any, words: str) -> None:
    async with DragonExecutionBackendV3(num_workers=1) as backend:
        runner = DragonRunner(backend)
        tasks = [runner.function(square, number) for number in range(50)]
        tasks.insert(25, runner.function(deadly))
        states = await runner.run(*tasks)
        assert states.count("DONE") >= 30  # calls just before it may be unreported
        assert states[25] == "FAILED"
        assert isinstance(tasks[25]["exception"], WorkerDied)
        assert words in str(tasks[25]["exception"])
        assert await runner.run(runner.function(square, 3)) == ["DONE"]


async def test_task_that_signals_its_process_group_fails(runner: DragonRunner) -> None:
    task = runner.function(os.killpg, 0, signal.SIGKILL)
    called_later = runner.function(lambda: os.killpg(0, signal.SIGKILL))
    assert await runner.run(task, called_later) == ["FAILED", "FAILED"]
    assert "shares its process group" in str(called_later["exception"])
    assert await runner.run(runner.function(square, 3)) == ["DONE"]


async def test_async_tasks_fail_with_their_worker() -> None:
    async with DragonExecutionBackendV3(num_workers=1) as backend:
        runner = DragonRunner(backend)
        neighbour = runner.function(asyncio.sleep, 30)
        await runner.submit(neighbour)
        await until(lambda: runner.began(neighbour))

        async def end() -> None:
            os._exit(1)

        assert await runner.run(runner.function(end)) == ["FAILED"]
        assert await runner.end(neighbour) == "FAILED"
        assert isinstance(neighbour["exception"], WorkerDied)


async def test_task_with_retries_runs_again_after_its_worker_died(tmp_path: Path) -> None:
    async with DragonExecutionBackendV3(num_workers=1) as backend:
        runner = DragonRunner(backend)
        once = runner.function(die_once, str(tmp_path / "once"), options={"retries": 1})
        always = runner.function(os._exit, 1, options={"retries": 2})
        assert await runner.run(once, always) == ["DONE", "FAILED"]
        assert once["return_value"] == "second run"


async def test_exceeded_memory_limit_is_a_memory_error() -> None:
    async with DragonExecutionBackendV3(num_workers=1) as backend:
        runner = DragonRunner(backend)
        task = runner.function(swallow_memory)
        assert await runner.run(task) == ["FAILED"]
        assert type(task["exception"]) is MemoryError
        assert await runner.run(runner.function(square, 3)) == ["DONE"]


async def test_failed_starts_fail_the_waiting_tasks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:

    def broken(setup: Any) -> None:
        raise SystemExit(7)

    monkeypatch.setattr(worker_process, "serve", broken)
    async with DragonExecutionBackendV3(num_workers=1) as backend:
        runner = DragonRunner(backend)
        task = runner.function(square, 3)
        assert await runner.run(task) == ["FAILED"]
        assert isinstance(task["exception"], BackendError)
        assert "ended before they were ready" in str(task["exception"])
        monkeypatch.undo()
        assert await runner.run(runner.function(square, 3)) == ["DONE"]


@pytest.mark.parametrize("how", ["cancel", "shutdown"])
async def test_task_interrupted_between_start_and_dispatch_ends(how: str) -> None:
    class Interrupted(DragonExecutionBackendV3):
        async def start(self) -> None:
            await super().start()
            (work,) = self._works.values()
            end = self._cancel(work) if how == "cancel" else self.shutdown_on_service_loop()
            self.ended = asyncio.get_running_loop().create_task(end)

    backend = Interrupted(num_workers=1)
    runner = DragonRunner(backend)
    task = runner.function(time.sleep, 60)
    await runner.submit(task)
    assert await runner.end(task) == "CANCELED"
    await asyncio.wait_for(backend.shutdown(), 10)


async def test_cancelled_waiting_tasks_never_run(tmp_path: Path) -> None:
    async with DragonExecutionBackendV3(num_workers=1) as backend:
        runner = DragonRunner(backend)
        long = runner.function(time.sleep, 60)
        waiting = [runner.function(Path.touch, tmp_path / str(n)) for n in range(100)]
        await runner.submit(long, *waiting)
        await until(lambda: runner.began(long))
        assert all([await backend.cancel_task(task["uid"]) for task in waiting])
        began = time.monotonic()
        assert await backend.cancel_task(long["uid"])
        assert time.monotonic() - began < 1.0
        assert await runner.run(runner.function(square, 3)) == ["DONE"]
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("stubborn", [spin, cling], ids=["sync", "async"])
async def test_ignored_cancellation_kills_the_worker(stubborn: Any, tmp_path: Path) -> None:
    async with DragonExecutionBackendV3(num_workers=1, cancel_grace=0.5) as backend:
        runner = DragonRunner(backend)
        task = runner.function(stubborn, tmp_path / "runs")
        await runner.submit(task)
        await until((tmp_path / "runs").exists)
        (pid,) = backend.worker_pids
        assert await backend.cancel_task(task["uid"])
        await until(lambda: not is_alive(pid))
        assert await runner.run(runner.function(square, 3)) == ["DONE"]


async def test_async_tasks_complete_before_their_worker_is_killed(tmp_path: Path) -> None:
    async with DragonExecutionBackendV3(num_workers=1, cancel_grace=0.3) as backend:
        runner = DragonRunner(backend)
        stubborn = runner.function(cling, tmp_path / "runs")
        neighbour = runner.function(asyncio.sleep, 2, "fine")
        await runner.submit(stubborn, neighbour)
        await until((tmp_path / "runs").exists)
        await until(lambda: runner.began(neighbour))
        assert await backend.cancel_task(stubborn["uid"])
        assert await runner.end(neighbour) == "DONE"
        assert neighbour["return_value"] == "fine"
        assert await runner.run(runner.function(square, 3)) == ["DONE"]


async def test_cancelled_blocking_async_function_is_interrupted(tmp_path: Path) -> None:
    async with DragonExecutionBackendV3(num_workers=1, cancel_grace=20.0) as backend:
        runner = DragonRunner(backend)

        async def block() -> None:
            (tmp_path / "runs").touch()
            time.sleep(60)  # noqa: ASYNC251 - it must block the loop

        task, neighbour = runner.function(block), runner.function(asyncio.sleep, 0.1, "fine")
        await runner.submit(task)
        await until((tmp_path / "runs").exists)
        await runner.submit(neighbour)
        began = time.monotonic()
        assert await backend.cancel_task(task["uid"])
        assert time.monotonic() - began < 2.0
        assert await runner.end(neighbour) == "DONE"


def leave_a_child(how: str) -> int:
    if how == "fork":
        pid = os.fork()
        if pid == 0:
            time.sleep(20)
            os._exit(0)
        return pid
    return subprocess.Popen(["/bin/sleep", "20"]).pid


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("how", ["fork", "popen"])
async def test_child_left_behind_does_not_hide_the_death_of_its_worker(how: str) -> None:
    async with DragonExecutionBackendV3(num_workers=1) as backend:
        runner = DragonRunner(backend)
        left = runner.function(leave_a_child, how)
        assert await runner.run(left) == ["DONE"]
        long = runner.function(time.sleep, 60)
        await runner.submit(long)
        await until(lambda: runner.began(long))
        began = time.monotonic()
        os.kill(backend.worker_pids[0], signal.SIGKILL)
        assert await runner.end(long) == "FAILED"
        assert time.monotonic() - began < 5.0
        os.kill(left["return_value"], signal.SIGKILL)


async def test_worker_blocked_by_a_cancelled_async_function_is_killed(tmp_path: Path) -> None:
    async with DragonExecutionBackendV3(num_workers=1, cancel_grace=0.3) as backend:
        runner = DragonRunner(backend)

        async def block() -> None:
            (tmp_path / "runs").touch()
            sum(range(10**12))

        neighbour = runner.function(asyncio.sleep, 60)
        task = runner.function(block)
        await runner.submit(neighbour)
        await until(lambda: runner.began(neighbour))
        await runner.submit(task)
        await until((tmp_path / "runs").exists)
        assert await backend.cancel_task(task["uid"])
        assert await runner.end(neighbour) == "FAILED"
        assert await runner.run(runner.function(square, 3)) == ["DONE"]


async def test_killed_agent_fails_the_tasks_of_its_node_and_is_replaced(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(worker_manager, "AGENTS_EVERYWHERE", True)
    async with DragonExecutionBackendV3(num_workers=1) as backend:
        runner = DragonRunner(backend)
        long = runner.function(time.sleep, 60)
        job = runner.function(time.sleep, 60, options={"ranks": 1})
        await runner.submit(long, job)
        await until(lambda: runner.began(long) and runner.began(job))
        assert backend._manager is not None
        (agent,) = backend._manager._agent_links._agents.values()
        processes.kill(agent.puid)
        assert await runner.end(long) == "FAILED"
        assert await runner.end(job) == "FAILED"
        assert isinstance(long["exception"], WorkerDied)
        assert await runner.run(runner.function(square, 3)) == ["DONE"]


async def test_queue_left_locked_does_not_delay_shutdown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(worker_manager, "AGENTS_EVERYWHERE", True)
    backend = await DragonExecutionBackendV3(num_workers=1)
    runner = DragonRunner(backend)
    assert await runner.run(runner.function(square, 3)) == ["DONE"]
    assert backend._manager is not None
    locked = backend._manager._agent_links._queue.current
    whole = locked.put
    unlocked = threading.Event()

    def put(message: bytes) -> None:
        unlocked.wait(30)
        whole(message)

    monkeypatch.setattr(locked, "put", put)
    began = time.monotonic()
    await backend.shutdown()
    assert time.monotonic() - began < 5.0
    unlocked.set()
    await until(lambda: not any("rhapsody-dragon" in t.name for t in threading.enumerate()))


async def test_queue_left_locked_by_a_killed_agent_is_replaced(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(worker_manager, "AGENTS_EVERYWHERE", True)
    monkeypatch.setattr(program_queue, "PROBE_SECONDS", 0.5)
    async with DragonExecutionBackendV3(num_workers=1) as backend:
        runner = DragonRunner(backend)
        assert await runner.run(runner.function(square, 3)) == ["DONE"]
        assert backend._manager is not None
        links = backend._manager._agent_links
        locked, unlocked = links._queue.current, threading.Event()
        monkeypatch.setattr(locked, "put", lambda message: unlocked.wait(60))
        (agent,) = links._agents.values()
        processes.kill(agent.puid)
        await until(lambda: links._queue.current is not locked)
        assert await runner.run(runner.function(square, 4)) == ["DONE"]
        assert "restarted with another queue" in caplog.text
        monkeypatch.undo()
        locked.put(b"")  # its receiver ends
        unlocked.set()


async def test_children_of_an_executable_end_with_it(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    script = f"sleep 60 & echo $$ $! > {shlex.quote(str(pids))}; wait"
    async with DragonExecutionBackendV3(num_workers=1) as backend:
        runner = DragonRunner(backend)
        for end in ("cancel", "kill the worker"):
            task = runner.executable("/bin/sh", "-c", script)
            await runner.submit(task)
            await until(lambda: pids.exists() and len(pids.read_text().split()) == 2)
            both = [int(pid) for pid in pids.read_text().split()]
            if end == "cancel":
                assert await backend.cancel_task(task["uid"])
            else:
                os.kill(backend.worker_pids[0], signal.SIGKILL)
                assert await runner.end(task) == "FAILED"
            await until(functools.partial(all_ended, both))
            pids.unlink()


async def test_shutdown_among_10000_tasks_ends_every_task_once(tmp_path: Path) -> None:
    here = set(os.listdir())
    backend = await DragonExecutionBackendV3(num_workers=2)
    runner = DragonRunner(backend)
    tasks = [runner.function(square_slowly, number) for number in range(10_000)]
    await runner.submit(*tasks)
    await runner.end(tasks[500])
    pids = backend.worker_pids
    began = time.monotonic()
    await backend.shutdown()
    assert time.monotonic() - began < 5.0
    ends = [report for report in runner.reports.log if report.state != "RUNNING"]
    assert len({report.uid for report in ends}) == len(ends) == 10_000
    assert {report.state for report in ends} == {"DONE", "CANCELED"}
    await until(lambda: all_ended(pids))
    assert set(os.listdir()) == here
    assert await runner.run(runner.function(square, 3)) == ["DONE"]
    await backend.shutdown()


holding, released = threading.Event(), threading.Event()


def hold() -> int:
    holding.set()
    released.wait(30)
    return 1


class PickledSlowly:
    def __reduce__(self) -> Any:
        return int, (hold(),)


class RebuiltSlowly:
    def __reduce__(self) -> Any:
        return hold, ()


@pytest.mark.parametrize("user_code", ["pickles", "unpickles"])
async def test_shutdown_is_bounded_while_user_code_pickles(user_code: str) -> None:
    holding.clear()
    released.clear()
    backend = await DragonExecutionBackendV3(num_workers=2)
    runner = DragonRunner(backend)
    await runner.run(*(runner.function(square, number) for number in range(10)))
    if user_code == "pickles":
        task = runner.function(id, PickledSlowly())
    else:
        task = runner.function(RebuiltSlowly)
    await runner.submit(task)
    await until(holding.is_set)
    began = time.monotonic()
    await backend.shutdown()
    assert time.monotonic() - began < 8.0
    assert await runner.end(task) == "CANCELED"
    released.set()
    await until(lambda: not any("rhapsody-dragon" in t.name for t in threading.enumerate()))


async def test_shutdown_while_many_workers_start_is_bounded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(nodes, "WORKERS_PER_CPU", 48)
    backend = await DragonExecutionBackendV3(num_workers=48)
    runner = DragonRunner(backend)
    tasks = [runner.function(time.sleep, 60) for _ in range(48)]
    await runner.submit(*tasks)
    await until(lambda: backend.get_statistics()["workers_starting"] == 48)
    started: list[int] = []
    start = processes.start

    def counted(*arguments: Any) -> int:
        started.append(1)
        return start(*arguments)

    monkeypatch.setattr(processes, "start", counted)
    began = time.monotonic()
    await backend.shutdown()
    assert time.monotonic() - began < 5.0
    assert [await runner.end(task) for task in tasks] == ["CANCELED"] * 48
    assert len(started) <= processes.CONCURRENT_STARTS


PROGRAM = """
import asyncio, os, sys, time
from rhapsody.backends import DragonExecutionBackendV3
from rhapsody.backends.dragon import worker_manager

async def main():
    backend = await DragonExecutionBackendV3(num_workers=2)
    backend.register_callback(lambda task, state: None)
    await backend.submit_tasks([
        {"uid": "one", "function": time.sleep, "args": (60,)},
        {"uid": "two", "executable": "/bin/sleep", "arguments": ["60.125"]},
    ])
    while len(backend.worker_pids) < 2:
        await asyncio.sleep(0.05)
    print(*backend.worker_pids, flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""


@pytest.mark.parametrize("victim", ["program", "launcher and program"])
async def test_workers_end_with_the_program(victim: str, tmp_path: Path) -> None:
    script = tmp_path / "program.py"
    script.write_text(PROGRAM)
    # In a second runtime, beside the one that this test runs in.
    with under_dragon(str(script), stdout=subprocess.PIPE, cwd=tmp_path) as launcher:
        assert launcher.stdout is not None
        line = await asyncio.wait_for(asyncio.to_thread(launcher.stdout.readline), 40)
        workers = [psutil.Process(int(pid)) for pid in line.split()]
        assert len(workers) == 2
        children: list[psutil.Process] = []

        def executable_runs() -> bool:
            children[:] = [child for worker in workers for child in worker.children(recursive=True)]
            return any("60.125" in " ".join(child.cmdline()) for child in children)

        await until(executable_runs)
        started = psutil.Process(launcher.pid).children()
        program = next(child for child in started if "program.py" in child.cmdline()[-1])
        if victim != "program":
            launcher.kill()
        program.kill()
        await until(lambda: all_ended(process.pid for process in [*workers, *children]))


async def test_keyboard_interrupt_fails_task() -> None:
    async with DragonExecutionBackendV3(num_workers=1) as backend:
        runner = DragonRunner(backend)

        def interrupt() -> None:
            raise KeyboardInterrupt

        task = runner.function(interrupt)
        assert await runner.run(task) == ["FAILED"]
        assert isinstance(task["exception"], TaskExecutionError)


class SlowReceiveLock(ReceiveLock):
    """Leaves the thread that was woken enough time to find the lock taken."""

    def release(self) -> None:
        time.sleep(0.05)
        super().release()


async def test_end_is_seen_after_another_thread_received_its_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from dragon.globalservices import api_setup
    from dragon.native.process import Process

    monkeypatch.setattr(api_setup, "_GS_RECV_LOCK", SlowReceiveLock(api_setup._WAKEUPS))
    puids = []
    for seconds in ("1", "3"):
        process = Process(target="/bin/sleep", args=[seconds])
        process.start()
        puids.append(process.puid)
    waits = (asyncio.to_thread(processes.wait_for_any, [puid]) for puid in puids)
    ends = await asyncio.wait_for(asyncio.gather(*waits), 30)
    assert ends == [[(puid, 0)] for puid in puids]
