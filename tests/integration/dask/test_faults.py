"""Workers killed, schedulers killed, clusters closed, calls that have to be ended."""

import asyncio
import os
import shlex
import signal
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from rhapsody.api.errors import BackendError, TaskExecutionError, WorkerDied
from rhapsody.backends import DaskExecutionBackend
from rhapsody.testing.gate import Gate, hold, hold_async
from tests.support.on_dask import HERE, SMALL, Runner, scheduler_process, until, worker_process

pytestmark = pytest.mark.dask

TWO_PROCESSES = {"n_workers": 2, "threads_per_worker": 1}


def square(number: int) -> int:
    time.sleep(0.001)
    return number * number


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


async def test_a_worker_killed_among_2000_tasks_costs_no_result() -> None:
    async with DaskExecutionBackend({"n_workers": 3, "threads_per_worker": 1}) as backend:
        runner = Runner(backend)
        tasks = [runner.function(square, number) for number in range(2000)]
        whose = runner.function(os.getpid)
        await runner.run(whose)
        await runner.submit(*tasks)
        await runner.end(tasks[300])
        os.kill(whose["return_value"], signal.SIGKILL)
        states = [await runner.end(task) for task in tasks]
        assert set(states) == {"DONE"}
        assert [task["return_value"] for task in tasks] == [n * n for n in range(2000)]
        assert {len(runner.reports.terminal(task["uid"])) for task in tasks} == {1}


async def test_a_task_that_kills_its_workers_fails_in_words() -> None:
    import dask

    with dask.config.set({"distributed.scheduler.allowed-failures": 1}):
        async with DaskExecutionBackend(TWO_PROCESSES) as backend:
            runner = Runner(backend)
            deadly, fine = runner.function(die), runner.function(square, 3)
            assert await runner.run(deadly, fine) == ["FAILED", "DONE"]
            assert isinstance(deadly["exception"], WorkerDied)
            assert "2 worker processes in a row died" in str(deadly["exception"])
            assert type(deadly["exception"].__cause__).__name__ == "KilledWorker"


async def test_a_lost_scheduler_fails_what_is_in_flight_and_what_comes(tmp_path: Path) -> None:
    with (
        scheduler_process(tmp_path) as (address, scheduler),
        worker_process(address, tmp_path),
    ):
        async with DaskExecutionBackend(cluster=address) as backend, Gate() as gate:
            runner = Runner(backend)
            held = [runner.function(hold, *gate.address, "held"), runner.executable("sleep", "60")]
            queued = [runner.function(square, number) for number in range(500)]
            await runner.submit(*held)
            for task in held:  # they keep both threads of the worker
                await runner.running(task)
            await runner.submit(*queued)
            scheduler.kill()
            for task in [*held, *queued]:
                assert await asyncio.wait_for(runner.end(task), 10) == "FAILED"
                assert isinstance(task["exception"], BackendError)
                assert f"scheduler at {address} was lost" in str(task["exception"])
            later = runner.function(square, 1)
            assert await runner.run(later) == ["FAILED"]
            assert "was lost" in str(later["exception"])
            gate.release("held")
            start = time.monotonic()
        assert time.monotonic() - start < 5


async def test_a_scheduler_that_stays_away_is_named(tmp_path: Path) -> None:
    import dask

    with scheduler_process(tmp_path) as (address, scheduler), worker_process(address, tmp_path):
        backend = await DaskExecutionBackend(cluster=address)
        runner = Runner(backend)
        assert await runner.run(runner.function(square, 2)) == ["DONE"]
        scheduler.kill()
        scheduler.wait()
        await backend.shutdown()
        with (
            dask.config.set({"distributed.comm.timeouts.connect": "200ms"}),
            pytest.raises(BackendError, match=address),
        ):
            await backend
        assert backend.state() == "FAILED"
        await backend.shutdown()


async def test_a_cluster_closed_under_it_fails_its_tasks() -> None:
    from distributed import LocalCluster

    async with LocalCluster(**SMALL, **HERE, asynchronous=True) as cluster:
        backend = await DaskExecutionBackend(cluster=cluster)
        runner = Runner(backend)
        task = runner.function(asyncio.sleep, 60)
        await runner.submit(task)
        await runner.running(task)
    assert await runner.end(task) == "FAILED"
    assert isinstance(task["exception"], BackendError)
    await backend.shutdown()


async def test_a_cancellation_by_somebody_else_is_a_failure(cluster: Any) -> None:
    from distributed import Client, Future

    async with DaskExecutionBackend(cluster=cluster) as backend, Gate() as gate:
        runner = Runner(backend)
        task = runner.function(hold, *gate.address, "held", key="held-by-somebody")
        await runner.submit(task)
        await gate.started("held")
        with Client(cluster, set_as_default=False) as client:
            client.cancel([Future("held-by-somebody", client)], force=True)
            assert await runner.end(task) == "FAILED"
        assert isinstance(task["exception"], TaskExecutionError)
        assert "cancelled on the cluster" in str(task["exception"])
        gate.release("held")
        await gate.ended("held")


async def test_a_cancelled_executable_that_ignores_sigterm_is_killed(
    cluster: Any, tmp_path: Path
) -> None:
    async with DaskExecutionBackend(cluster=cluster) as backend:
        runner = Runner(backend)
        script = f"trap '' TERM; echo $$ > {tmp_path}/made; mv {tmp_path}/made {tmp_path}/pid; "
        script += "while :; do sleep 0.1; done"
        task = runner.executable("/bin/sh", "-c", script)
        await runner.submit(task)
        await runner.running(task)
        await until((tmp_path / "pid").exists)
        pid = int((tmp_path / "pid").read_text())
        assert await backend.cancel_task(task["uid"])
        assert not psutil.pid_exists(pid)


@pytest.mark.parametrize("threads", [True, False])
async def test_a_shutdown_ends_executables_and_their_children(threads: bool) -> None:
    options = SMALL if threads else {"n_workers": 1, "threads_per_worker": 2}
    async with Gate() as gate:
        backend = await DaskExecutionBackend(options)
        runner = Runner(backend)
        tasks = [
            runner.executable(*gate.command("executable")),
            runner.function(hold_async, *gate.address, "async"),
        ]
        await runner.submit(*tasks)
        await gate.started("executable")
        await gate.started("async")
        await backend.shutdown()
        assert [await runner.end(task) for task in tasks] == ["CANCELED"] * 2
        await gate.ended("executable")
        await gate.ended("async")


@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGKILL])
async def test_a_killed_worker_takes_its_executables_along(sig: int, tmp_path: Path) -> None:
    async with DaskExecutionBackend(TWO_PROCESSES) as backend, Gate() as gate:
        runner = Runner(backend)
        # The first time it waits at the gate; Dask runs it again, and then it is through.
        script = f"[ -e {tmp_path}/again ] && exit; touch {tmp_path}/again; "
        script += shlex.join(gate.command("first"))
        task = runner.executable("/bin/sh", "-c", script)
        await runner.submit(task)
        await gate.started("first")
        child = next(
            child
            for child in psutil.Process().children(recursive=True)
            if str(tmp_path) in " ".join(child.cmdline())
        )
        worker = child.parent()
        assert worker is not None
        worker.send_signal(sig)
        await gate.ended("first")
        assert await runner.end(task) == "DONE"


async def test_thousands_are_cancelled_together(cluster: Any) -> None:
    async with DaskExecutionBackend(cluster=cluster) as backend:
        runner = Runner(backend)
        tasks = [runner.function(time.sleep, 0.05) for _ in range(1000)]
        await runner.submit(*tasks)
        await runner.end(tasks[0])
        start = time.monotonic()
        await asyncio.gather(*(backend.cancel_task(task["uid"]) for task in tasks))
        assert time.monotonic() - start < 10
        states = [await runner.end(task) for task in tasks]
        assert states.count("CANCELED") > 900


async def test_tasks_cancelled_in_every_phase_end_once(cluster: Any) -> None:
    async with DaskExecutionBackend(cluster=cluster) as backend:
        runner = Runner(backend)
        for pause in (0, 0.001, 0.005, 0.02, 0.05):
            tasks = [runner.function(square, n) for n in range(20)]
            tasks += [runner.executable("true") for _ in range(5)]
            await runner.submit(*tasks)
            await asyncio.sleep(pause)
            cancelled = await asyncio.gather(*(backend.cancel_task(t["uid"]) for t in tasks))
            states = [await runner.end(task) for task in tasks]
            assert [state == "CANCELED" for state in states] == cancelled
        assert not backend._works
        assert backend._exchange is not None
        assert not backend._exchange._works


def test_an_exit_without_a_shutdown_leaves_nothing(tmp_path: Path) -> None:
    import subprocess
    import sys

    script = tmp_path / "script.py"
    script.write_text(
        "import asyncio, time\n"
        "from rhapsody.backends import DaskExecutionBackend\n"
        "async def main():\n"
        "    backend = await DaskExecutionBackend({'n_workers': 1, 'threads_per_worker': 2})\n"
        "    backend.register_callback(print)\n"
        "    await backend.submit_tasks([\n"
        "        {'uid': 'a', 'executable': 'sleep', 'arguments': ['987']},\n"
        "        {'uid': 'b', 'function': time.sleep, 'args': (987,)},\n"
        "    ])\n"
        "    await asyncio.sleep(1)\n"
        "if __name__ == '__main__':\n"
        "    asyncio.run(main())\n"
    )
    start = time.monotonic()
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=50)
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - start < 20
    assert "Traceback" not in done.stderr
    deadline = time.monotonic() + 5
    while left := [p for p in psutil.process_iter() if _is_sleeper(p)]:
        assert time.monotonic() < deadline, left
        time.sleep(0.05)


def _is_sleeper(process: psutil.Process) -> bool:
    try:
        return process.cmdline() == ["sleep", "987"]
    except psutil.Error:
        return False


async def test_a_result_can_be_large_without_holding_up_others(cluster: Any) -> None:
    async with DaskExecutionBackend(cluster=cluster) as backend:
        runner = Runner(backend)
        large = runner.function(lambda: bytes(64 * 1024 * 1024))
        small = [runner.function(square, n) for n in range(50)]
        assert set(await runner.run(large, *small)) == {"DONE"}
        assert len(large["return_value"]) == 64 * 1024 * 1024


async def test_no_thread_of_ours_is_left() -> None:
    before = set(threading.enumerate())
    async with DaskExecutionBackend(SMALL) as backend:
        runner = Runner(backend)
        await runner.run(*(runner.function(square, n) for n in range(10)))
    deadline = time.monotonic() + 10
    while left := [
        thread
        for thread in set(threading.enumerate()) - before
        if not thread.name.startswith(("rhapsody-service", "rhapsody-io", "Dask-Offload"))
    ]:
        assert time.monotonic() < deadline, left
        await asyncio.sleep(0.05)
