"""Workers killed, tasks cancelled, backends shut down in the middle, heads killed."""

import asyncio
import ctypes
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

from rhapsody.api.errors import BackendError, TaskExecutionError, WorkerDied
from rhapsody.backends import (
    DragonExecutionBackendV3,
    dragon_crew,
    dragon_processes,
    dragon_runtime,
)
from tests.support.under_dragon import Runner, under_dragon
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
    return "at last"


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


def is_alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


async def test_a_killed_worker_costs_what_it_ran_and_nothing_else() -> None:
    async with DragonExecutionBackendV3(num_workers=2) as backend:
        runner = Runner(backend)
        tasks = [runner.function(square_slowly, number) for number in range(1000)]
        await runner.submit(*tasks)
        await runner.end(tasks[200])
        victim = backend.worker_pids[0]
        os.kill(victim, signal.SIGKILL)
        states = [await runner.end(task) for task in tasks]
        lost = [task for task, state in zip(tasks, states, strict=True) if state != "DONE"]
        # What it had ended within the last milliseconds it may not have told yet.
        assert 1 <= len(lost) <= 10
        for task in lost:
            assert isinstance(task["exception"], WorkerDied)
            assert "SIGKILL" in str(task["exception"])
        ends = [report for report in runner.reports.log if report.state != "RUNNING"]
        assert len({report.uid for report in ends}) == len(ends) == 1000
        assert victim not in backend.worker_pids


async def test_a_long_task_alone_is_lost_with_its_worker() -> None:
    async with DragonExecutionBackendV3(num_workers=1) as backend:
        runner = Runner(backend)
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
async def test_a_task_that_ends_its_worker_fails_alone(deadly: Any, words: str) -> None:
    async with DragonExecutionBackendV3(num_workers=1) as backend:
        runner = Runner(backend)
        tasks = [runner.function(square, number) for number in range(50)]
        tasks.insert(25, runner.function(deadly))
        states = await runner.run(*tasks)
        assert states.count("DONE") >= 30  # neighbours of microseconds may go with it
        assert states[25] == "FAILED"
        assert isinstance(tasks[25]["exception"], WorkerDied)
        assert words in str(tasks[25]["exception"])
        assert await runner.run(runner.function(square, 3)) == ["DONE"]


async def test_async_neighbours_of_a_deadly_task_are_named() -> None:
    async with DragonExecutionBackendV3(num_workers=1) as backend:
        runner = Runner(backend)
        neighbour = runner.function(asyncio.sleep, 30)
        await runner.submit(neighbour)
        await until(lambda: runner.began(neighbour))

        async def end() -> None:
            os._exit(1)

        assert await runner.run(runner.function(end)) == ["FAILED"]
        assert await runner.end(neighbour) == "FAILED"
        assert isinstance(neighbour["exception"], WorkerDied)


async def test_retries_run_a_task_again_whose_worker_died(tmp_path: Path) -> None:
    async with DragonExecutionBackendV3(num_workers=1) as backend:
        runner = Runner(backend)
        once = runner.function(die_once, str(tmp_path / "once"), options={"retries": 1})
        always = runner.function(os._exit, 1, options={"retries": 2})
        assert await runner.run(once, always) == ["DONE", "FAILED"]
        assert once["return_value"] == "at last"


async def test_too_much_memory_is_a_memory_error() -> None:
    async with DragonExecutionBackendV3(num_workers=1) as backend:
        runner = Runner(backend)
        task = runner.function(swallow_memory)
        assert await runner.run(task) == ["FAILED"]
        assert type(task["exception"]) is MemoryError
        assert await runner.run(runner.function(square, 3)) == ["DONE"]


async def test_workers_that_cannot_start_fail_their_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    from rhapsody.backends import dragon_worker

    def broken(setup: Any) -> None:
        raise SystemExit(7)

    monkeypatch.setattr(dragon_worker, "serve", broken)
    async with DragonExecutionBackendV3(num_workers=1) as backend:
        runner = Runner(backend)
        task = runner.function(square, 3)
        assert await runner.run(task) == ["FAILED"]
        assert isinstance(task["exception"], BackendError)
        assert "ended before they were ready" in str(task["exception"])
        monkeypatch.undo()
        assert await runner.run(runner.function(square, 3)) == ["DONE"]


@pytest.mark.parametrize("how", ["cancel", "shutdown"])
async def test_the_moment_between_start_and_dispatch_is_as_good_as_any(how: str) -> None:
    class Interrupted(DragonExecutionBackendV3):
        async def start(self) -> None:
            await super().start()
            (work,) = self._works.values()
            end = self._cancel(work) if how == "cancel" else self.shut_down_once()
            self.ended = asyncio.get_running_loop().create_task(end)

    backend = Interrupted(num_workers=1)
    runner = Runner(backend)
    task = runner.function(time.sleep, 60)
    await runner.submit(task)
    assert await runner.end(task) == "CANCELED"
    await asyncio.wait_for(backend.shutdown(), 10)


async def test_cancelled_tasks_that_wait_never_start(tmp_path: Path) -> None:
    async with DragonExecutionBackendV3(num_workers=1) as backend:
        runner = Runner(backend)
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
async def test_a_task_that_will_not_end_takes_its_worker_along(
    stubborn: Any, tmp_path: Path
) -> None:
    async with DragonExecutionBackendV3(num_workers=1, cancel_grace=0.5) as backend:
        runner = Runner(backend)
        task = runner.function(stubborn, tmp_path / "there")
        await runner.submit(task)
        await until((tmp_path / "there").exists)
        (pid,) = backend.worker_pids
        assert await backend.cancel_task(task["uid"])
        await until(lambda: not is_alive(pid))
        assert await runner.run(runner.function(square, 3)) == ["DONE"]


async def test_neighbours_of_a_stubborn_async_task_end_well(tmp_path: Path) -> None:
    async with DragonExecutionBackendV3(num_workers=1, cancel_grace=0.3) as backend:
        runner = Runner(backend)
        stubborn = runner.function(cling, tmp_path / "there")
        neighbour = runner.function(asyncio.sleep, 2, "fine")
        await runner.submit(stubborn, neighbour)
        await until((tmp_path / "there").exists)
        await until(lambda: runner.began(neighbour))
        assert await backend.cancel_task(stubborn["uid"])
        assert await runner.end(neighbour) == "DONE"
        assert neighbour["return_value"] == "fine"
        assert await runner.run(runner.function(square, 3)) == ["DONE"]


async def test_a_blocking_async_function_is_interrupted(tmp_path: Path) -> None:
    async with DragonExecutionBackendV3(num_workers=1, cancel_grace=20.0) as backend:
        runner = Runner(backend)

        async def block() -> None:
            (tmp_path / "there").touch()
            time.sleep(60)  # noqa: ASYNC251 - that is the point

        task, neighbour = runner.function(block), runner.function(asyncio.sleep, 0.1, "fine")
        await runner.submit(task)
        await until((tmp_path / "there").exists)
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
async def test_a_child_that_is_left_hides_no_death(how: str) -> None:
    async with DragonExecutionBackendV3(num_workers=1) as backend:
        runner = Runner(backend)
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


async def test_an_async_function_that_blocks_for_good_is_ended(tmp_path: Path) -> None:
    async with DragonExecutionBackendV3(num_workers=1, cancel_grace=0.3) as backend:
        runner = Runner(backend)

        async def block() -> None:
            (tmp_path / "there").touch()
            sum(range(10**12))

        neighbour = runner.function(asyncio.sleep, 60)
        task = runner.function(block)
        await runner.submit(neighbour)
        await until(lambda: runner.began(neighbour))
        await runner.submit(task)
        await until((tmp_path / "there").exists)
        assert await backend.cancel_task(task["uid"])
        assert await runner.end(neighbour) == "FAILED"
        assert await runner.run(runner.function(square, 3)) == ["DONE"]


async def test_a_killed_agent_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dragon_crew, "AGENTS_EVERYWHERE", True)
    async with DragonExecutionBackendV3(num_workers=1) as backend:
        runner = Runner(backend)
        long = runner.function(time.sleep, 60)
        job = runner.function(time.sleep, 60, options={"ranks": 1})
        await runner.submit(long, job)
        await until(lambda: runner.began(long) and runner.began(job))
        assert backend._crew is not None
        (agent,) = backend._crew._mail._agents.values()
        dragon_processes.kill(agent.puid)
        assert await runner.end(long) == "FAILED"
        assert await runner.end(job) == "FAILED"
        assert isinstance(long["exception"], WorkerDied)
        assert await runner.run(runner.function(square, 3)) == ["DONE"]


async def test_a_queue_that_an_agent_left_locked_does_not_hold_up_a_shutdown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(dragon_crew, "AGENTS_EVERYWHERE", True)
    backend = await DragonExecutionBackendV3(num_workers=1)
    runner = Runner(backend)
    assert await runner.run(runner.function(square, 3)) == ["DONE"]
    assert backend._crew is not None
    whole = backend._crew._mail._queue.put
    unlocked = threading.Event()

    def put(message: bytes) -> None:
        unlocked.wait(30)
        whole(message)

    monkeypatch.setattr(backend._crew._mail._queue, "put", put)
    began = time.monotonic()
    await backend.shutdown()
    assert time.monotonic() - began < 5.0
    unlocked.set()
    await until(lambda: not any("rhapsody-dragon" in t.name for t in threading.enumerate()))


async def test_executables_are_ended_with_their_children(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    script = f"sleep 60 & echo $$ $! > {shlex.quote(str(pids))}; wait"
    async with DragonExecutionBackendV3(num_workers=1) as backend:
        runner = Runner(backend)
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
            await until(lambda both=both: not any(map(is_alive, both)))
            pids.unlink()


async def test_shutdown_in_the_middle_of_10000_tasks(tmp_path: Path) -> None:
    before = {path.name for path in Path("/dev/shm").glob("*")}
    here = set(os.listdir())
    backend = await DragonExecutionBackendV3(num_workers=2)
    runner = Runner(backend)
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
    await until(lambda: not any(map(is_alive, pids)))
    assert set(os.listdir()) == here
    assert {path.name for path in Path("/dev/shm").glob("rhapsody*")} <= before
    assert await runner.run(runner.function(square, 3)) == ["DONE"]
    await backend.shutdown()


go_on = threading.Event()


def hold() -> int:
    go_on.wait(30)
    return 1


class PickledSlowly:
    def __reduce__(self) -> Any:
        return int, (hold(),)


class RebuiltSlowly:
    def __reduce__(self) -> Any:
        return hold, ()


@pytest.mark.parametrize("way", ["out", "in"])
async def test_shutdown_in_the_middle_of_users_pickling(way: str) -> None:
    go_on.clear()
    backend = await DragonExecutionBackendV3(num_workers=2)
    runner = Runner(backend)
    await runner.run(*(runner.function(square, number) for number in range(10)))
    task = runner.function(id, PickledSlowly()) if way == "out" else runner.function(RebuiltSlowly)
    await runner.submit(task)
    await asyncio.sleep(0.5)
    began = time.monotonic()
    await backend.shutdown()
    assert time.monotonic() - began < 8.0  # in good order where that is quick, else with a bound
    assert await runner.end(task) == "CANCELED"
    go_on.set()
    await until(lambda: not any("rhapsody-dragon" in t.name for t in threading.enumerate()))


async def test_shutdown_while_many_workers_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dragon_runtime, "WORKERS_PER_CPU", 48)
    backend = await DragonExecutionBackendV3(num_workers=48)
    runner = Runner(backend)
    tasks = [runner.function(time.sleep, 60) for _ in range(48)]
    await runner.submit(*tasks)
    await until(lambda: backend.get_statistics()["workers_starting"] == 48)
    started: list[int] = []
    start = dragon_processes.start

    def counted(*arguments: Any) -> int:
        started.append(1)
        return start(*arguments)

    monkeypatch.setattr(dragon_processes, "start", counted)
    began = time.monotonic()
    await backend.shutdown()
    assert time.monotonic() - began < 5.0
    assert [await runner.end(task) for task in tasks] == ["CANCELED"] * 48
    assert len(started) <= dragon_processes.AT_ONCE


HEAD = """
import asyncio, os, sys, time
from rhapsody.backends import DragonExecutionBackendV3, dragon_crew

async def main():
    backend = await DragonExecutionBackendV3(num_workers=2)
    backend.register_callback(lambda task, state: None)
    await backend.submit_tasks([
        {"uid": "one", "function": time.sleep, "args": (60,)},
        {"uid": "two", "executable": "/bin/sleep", "arguments": ["60.125"]},
    ])
    while len(backend.worker_pids) < 2:
        await asyncio.sleep(0.05)
    await asyncio.sleep(0.5)
    print(*backend.worker_pids, flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""


@pytest.mark.parametrize("victim", ["head", "launcher and head"])
async def test_workers_do_not_outlive_their_head(victim: str, tmp_path: Path) -> None:
    script = tmp_path / "head.py"
    script.write_text(HEAD)
    # A runtime of its own, beside the one that this test runs in.
    with under_dragon(str(script), stdout=subprocess.PIPE, cwd=tmp_path) as launcher:
        assert launcher.stdout is not None
        line = await asyncio.wait_for(asyncio.to_thread(launcher.stdout.readline), 40)
        workers = [psutil.Process(int(pid)) for pid in line.split()]
        assert len(workers) == 2
        children = [child for worker in workers for child in worker.children(recursive=True)]
        assert any("60.125" in " ".join(child.cmdline()) for child in children)
        heads = psutil.Process(launcher.pid).children()
        head = next(head for head in heads if "head.py" in head.cmdline()[-1])
        if victim != "head":
            launcher.kill()
        head.kill()
        await until(lambda: not any(is_alive(process.pid) for process in [*workers, *children]))


async def test_a_failed_task_names_what_it_raised() -> None:
    async with DragonExecutionBackendV3(num_workers=1) as backend:
        runner = Runner(backend)

        def interrupt() -> None:
            raise KeyboardInterrupt

        task = runner.function(interrupt)
        assert await runner.run(task) == ["FAILED"]
        assert isinstance(task["exception"], TaskExecutionError)
