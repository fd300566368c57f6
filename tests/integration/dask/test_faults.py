"""Faults on a Dask cluster: dead workers and schedulers, closed clusters, interrupted calls."""

import asyncio
import os
import resource
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from rhapsody.backends import DaskExecutionBackend
from rhapsody.backends.core.service_loop import service_loop
from rhapsody.backends.dask import worker_monitor
from rhapsody.errors import BackendError, TaskExecutionError, WorkerDied
from rhapsody.testing.gate import Gate, hold, hold_async
from tests.support.on_dask import HERE, SMALL, DaskRunner, scheduler_process, worker_process
from tests.support.waiting import until

pytestmark = pytest.mark.dask

TWO_PROCESSES = {"n_workers": 2, "threads_per_worker": 1}


def square(number: int) -> int:
    time.sleep(0.001)
    return number * number


async def close_nannies(backend: DaskExecutionBackend) -> None:
    """Let the nannies of a backend's own cluster give up their workers."""
    assert backend._cluster is not None
    await asyncio.gather(*(nanny.close() for nanny in backend._cluster._cluster.workers.values()))


def kill_worker() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


async def test_killed_worker_loses_no_result() -> None:
    async with DaskExecutionBackend({"n_workers": 3, "threads_per_worker": 1}) as backend:
        runner = DaskRunner(backend)
        tasks = [runner.function(square, number) for number in range(500)]
        worker = runner.function(os.getpid)
        await runner.run(worker)
        await runner.submit(*tasks)
        await runner.end(tasks[100])
        os.kill(worker["return_value"], signal.SIGKILL)
        states = [await runner.end(task) for task in tasks]
        assert set(states) == {"DONE"}
        assert [task["return_value"] for task in tasks] == [n * n for n in range(500)]
        assert {len(runner.reports.terminal(task["uid"])) for task in tasks} == {1}


def number_ended(runner: DaskRunner) -> int:
    return sum(report.state in ("DONE", "FAILED", "CANCELED") for report in runner.reports.log)


async def square_async(number: int) -> int:
    return square(number)


@pytest.mark.slow
@pytest.mark.timeout(240)
async def test_every_task_ends_once_while_workers_are_killed() -> None:
    async with DaskExecutionBackend({"n_workers": 2, "threads_per_worker": 2}) as backend:
        runner = DaskRunner(backend)
        tasks = []
        for number in range(0, 240, 3):
            tasks += [
                runner.function(square, number),
                runner.function(square_async, number + 1),
                runner.executable("sh", "-c", f"echo {number + 2}"),
            ]
        await runner.submit(*tasks)
        assert backend._cluster is not None
        workers = backend._cluster._cluster.workers
        for ended in (20, 90, 160):
            await until(lambda ended=ended: number_ended(runner) >= ended, 100)  # type: ignore[misc]
            await until(lambda: any(nanny.pid for nanny in workers.values()), 100)
            os.kill(next(nanny.pid for nanny in workers.values() if nanny.pid), signal.SIGKILL)
        await until(lambda: number_ended(runner) == len(tasks), 100)
        ends = [[report.state for report in runner.reports.terminal(t["uid"])] for t in tasks]
        assert ends == [["DONE"]] * len(tasks)
        assert [task["return_value"] for task in tasks[::3]] == [n * n for n in range(0, 240, 3)]


async def test_worker_is_replaced_after_its_nanny_gave_up() -> None:
    async with DaskExecutionBackend({"n_workers": 1, "threads_per_worker": 1}) as backend:
        runner = DaskRunner(backend)
        before = runner.function(os.getpid)
        await runner.run(before)
        await service_loop().run(close_nannies(backend))
        after = runner.function(os.getpid)
        await runner.submit(after)
        assert await asyncio.wait_for(runner.end(after), 25) == "DONE"
        assert after["return_value"] != before["return_value"]


async def test_tasks_fail_if_no_worker_can_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_monitor, "ATTEMPTS", 1)
    async with DaskExecutionBackend({"n_workers": 1, "threads_per_worker": 1}) as backend:
        runner = DaskRunner(backend)
        assert backend._cluster is not None
        spec = backend._cluster._cluster.worker_spec[0]
        spec["options"] = {**spec["options"], "preload": ["no_such_module_here"]}
        await service_loop().run(close_nannies(backend))
        waiting = runner.function(square, 3)
        await runner.submit(waiting)
        assert await asyncio.wait_for(runner.end(waiting), 25) == "FAILED"
        assert isinstance(waiting["exception"], BackendError)
        assert "all workers of its cluster have ended" in str(waiting["exception"])
        assert "no_such_module_here" in str(waiting["exception"])
        later = runner.function(square, 3)
        assert await runner.run(later) == ["FAILED"]


async def test_task_killing_its_workers_fails_with_worker_died() -> None:
    import dask

    with dask.config.set({"distributed.scheduler.allowed-failures": 1}):
        async with DaskExecutionBackend(TWO_PROCESSES) as backend:
            runner = DaskRunner(backend)
            deadly, fine = runner.function(kill_worker), runner.function(square, 3)
            assert await runner.run(deadly, fine) == ["FAILED", "DONE"]
            assert isinstance(deadly["exception"], WorkerDied)
            assert "2 worker processes died while they ran it" in str(deadly["exception"])
            assert type(deadly["exception"].__cause__).__name__ == "KilledWorker"


def signal_own_group() -> None:
    os.killpg(0, signal.SIGTERM)


def lower_limit_for_good() -> int:
    """Lower a limit as a program without privileges, which cannot raise it again."""
    if os.getuid() == 0:
        os.setegid(65534)
        os.seteuid(65534)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 40, 1 << 40))
    return os.getpid()


def process_and_limit() -> tuple[int, int]:
    return os.getpid(), resource.getrlimit(resource.RLIMIT_FSIZE)[1]


async def test_task_that_signals_its_group_ends_only_its_worker() -> None:
    import dask

    with dask.config.set({"distributed.scheduler.allowed-failures": 0}):
        options = {"n_workers": 1, "threads_per_worker": 1}
        async with DaskExecutionBackend(options) as backend:
            runner = DaskRunner(backend)
            deadly = runner.function(signal_own_group)
            assert await runner.run(deadly) == ["FAILED"]
            assert isinstance(deadly["exception"], WorkerDied)
            assert await runner.run(runner.function(square, 3)) == ["DONE"]


@pytest.mark.timeout(150)
async def test_worker_with_lowered_limit_is_replaced() -> None:
    options = {"n_workers": 1, "threads_per_worker": 1}
    async with DaskExecutionBackend(options) as backend:
        runner = DaskRunner(backend)
        lowering, later = runner.function(lower_limit_for_good), runner.function(process_and_limit)
        assert await runner.run(lowering) == ["DONE"]
        assert await runner.run(later) == ["DONE"]
        pid, limit = later["return_value"]
        assert pid != lowering["return_value"]
        assert limit == resource.getrlimit(resource.RLIMIT_FSIZE)[1]


async def test_tasks_that_had_not_begun_survive_the_death_of_their_worker() -> None:
    import dask

    with dask.config.set({"distributed.scheduler.allowed-failures": 0}):
        options = {"n_workers": 1, "threads_per_worker": 1}
        async with DaskExecutionBackend(options) as backend, Gate() as gate:
            assert backend._cluster is not None
            cluster = backend._cluster._cluster
            runner = DaskRunner(backend)
            held = runner.function(hold, *gate.address, "held")
            await runner.submit(held)
            await gate.started("held")
            waiting = [runner.function(square, number) for number in range(2)]
            await runner.submit(*waiting)
            (worker,) = cluster.scheduler.workers.values()
            await until(lambda: len(worker.processing) == 3)
            (nanny,) = cluster.workers.values()
            os.kill(nanny.pid, signal.SIGKILL)
            assert await runner.end(held) == "FAILED"
            assert isinstance(held["exception"], WorkerDied)
            assert [await runner.end(task) for task in waiting] == ["DONE", "DONE"]


async def test_lost_scheduler_fails_active_and_later_tasks(tmp_path: Path) -> None:
    with (
        scheduler_process(tmp_path) as (address, scheduler),
        worker_process(address, tmp_path),
    ):
        async with DaskExecutionBackend(cluster=address) as backend, Gate() as gate:
            runner = DaskRunner(backend)
            held = [runner.function(hold, *gate.address, "held"), runner.executable("sleep", "60")]
            queued = [runner.function(square, number) for number in range(500)]
            await runner.submit(*held)
            for task in held:  # they occupy both threads of the worker
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


async def test_restart_names_missing_scheduler(tmp_path: Path) -> None:
    import dask

    with scheduler_process(tmp_path) as (address, scheduler), worker_process(address, tmp_path):
        backend = await DaskExecutionBackend(cluster=address)
        runner = DaskRunner(backend)
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


async def test_closed_cluster_fails_tasks() -> None:
    from distributed import LocalCluster

    async with LocalCluster(**SMALL, **HERE, asynchronous=True) as cluster:
        backend = await DaskExecutionBackend(cluster=cluster)
        runner = DaskRunner(backend)
        task = runner.function(asyncio.sleep, 60)
        await runner.submit(task)
        await runner.running(task)
    assert await runner.end(task) == "FAILED"
    assert isinstance(task["exception"], BackendError)
    await backend.shutdown()


async def test_cancellation_by_another_client_fails_task(cluster: Any) -> None:
    from distributed import Client, Future

    async with DaskExecutionBackend(cluster=cluster) as backend, Gate() as gate:
        runner = DaskRunner(backend)
        task = runner.function(hold, *gate.address, "held", key="held-by-another")
        await runner.submit(task)
        await gate.started("held")
        with Client(cluster, set_as_default=False) as client:
            client.cancel([Future("held-by-another", client)], force=True)
            assert await runner.end(task) == "FAILED"
        assert isinstance(task["exception"], TaskExecutionError)
        assert "cancelled on the cluster" in str(task["exception"])
        gate.release("held")
        await gate.ended("held")


@pytest.mark.parametrize("timeout", [None, 0.5], ids=["cancel", "timeout"])
@pytest.mark.parametrize("processes", [False, True], ids=["threads", "processes"])
async def test_sync_function_that_runs_on_does_not_block_later_tasks(
    processes: bool, timeout: float | None
) -> None:
    options: dict[str, Any] = {
        "n_workers": 1,
        "threads_per_worker": 1,
        "processes": processes,
    }
    async with DaskExecutionBackend(options) as backend, Gate() as gate:
        runner = DaskRunner(backend)
        for round_number in range(3):
            name = f"hung-{round_number}"
            hung = runner.function(hold, *gate.address, name, timeout=timeout)
            await runner.submit(hung)
            await gate.started(name)
            if timeout is None:
                assert await backend.cancel_task(hung["uid"])
            else:
                assert await runner.end(hung) == "FAILED"
            later = [runner.function(square, number) for number in range(10)]
            await runner.submit(*later)
            for task in later:
                assert await asyncio.wait_for(runner.end(task), 10) == "DONE"
        for round_number in range(3):
            gate.release(f"hung-{round_number}")
            await gate.ended(f"hung-{round_number}")
        assert await runner.run(runner.function(square, 3)) == ["DONE"]


async def test_cancel_kills_executable_ignoring_sigterm(cluster: Any, tmp_path: Path) -> None:
    async with DaskExecutionBackend(cluster=cluster) as backend:
        runner = DaskRunner(backend)
        script = f"trap '' TERM; echo $$ > {tmp_path}/new; mv {tmp_path}/new {tmp_path}/pid; "
        script += "while :; do sleep 0.1; done"
        task = runner.executable("/bin/sh", "-c", script)
        await runner.submit(task)
        await runner.running(task)
        await until((tmp_path / "pid").exists)
        pid = int((tmp_path / "pid").read_text())
        assert await backend.cancel_task(task["uid"])
        assert not psutil.pid_exists(pid)


@pytest.mark.parametrize(
    "options", [SMALL, {"n_workers": 1, "threads_per_worker": 2}], ids=["threads", "processes"]
)
async def test_shutdown_ends_executables_and_async_functions(options: dict[str, Any]) -> None:
    async with Gate() as gate:
        backend = await DaskExecutionBackend(options)
        runner = DaskRunner(backend)
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
async def test_executables_end_with_killed_worker(sig: int, tmp_path: Path) -> None:
    async with DaskExecutionBackend(TWO_PROCESSES) as backend, Gate() as gate:
        runner = DaskRunner(backend)
        # It waits at the gate in its first run. Dask runs it again, and it exits at once.
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


async def test_thousand_tasks_are_cancelled_together(cluster: Any) -> None:
    async with DaskExecutionBackend(cluster=cluster) as backend:
        runner = DaskRunner(backend)
        tasks = [runner.function(time.sleep, 0.05) for _ in range(1000)]
        await runner.submit(*tasks)
        await runner.end(tasks[0])
        await asyncio.gather(*(backend.cancel_task(task["uid"]) for task in tasks))
        states = [await runner.end(task) for task in tasks]
        assert states.count("CANCELED") > 900


async def test_tasks_cancelled_in_any_phase_end_once(cluster: Any) -> None:
    async with DaskExecutionBackend(cluster=cluster) as backend:
        runner = DaskRunner(backend)
        for pause in (0, 0.001, 0.005, 0.02, 0.05):
            tasks = [runner.function(square, n) for n in range(20)]
            tasks += [runner.executable("true") for _ in range(5)]
            await runner.submit(*tasks)
            await asyncio.sleep(pause)
            cancelled = await asyncio.gather(*(backend.cancel_task(t["uid"]) for t in tasks))
            states = [await runner.end(task) for task in tasks]
            assert [state == "CANCELED" for state in states] == cancelled
        assert not backend._works
        assert backend._dask_client is not None
        assert not backend._dask_client._works


@pytest.mark.timeout(150)
async def test_exit_without_shutdown_leaves_no_process(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import asyncio, time\n"
        "from rhapsody.backends import DaskExecutionBackend\n"
        "async def main():\n"
        "    states = asyncio.Queue()\n"
        "    backend = await DaskExecutionBackend({'n_workers': 1, 'threads_per_worker': 2})\n"
        "    backend.register_callback(lambda task, state: states.put_nowait(state))\n"
        "    await backend.submit_tasks([\n"
        "        {'uid': 'a', 'executable': 'sleep', 'arguments': ['987']},\n"
        "        {'uid': 'b', 'function': time.sleep, 'args': (987,)},\n"
        "    ])\n"
        "    assert [await states.get() for _ in range(2)] == ['RUNNING'] * 2\n"
        "if __name__ == '__main__':\n"
        "    asyncio.run(main())\n"
    )
    program = await asyncio.create_subprocess_exec(sys.executable, script, stderr=subprocess.PIPE)
    _, errors = await asyncio.wait_for(program.communicate(), 120)
    assert program.returncode == 0, errors
    assert b"Traceback" not in errors
    await until(lambda: not any(map(_is_sleeper, psutil.process_iter())))


def _is_sleeper(process: psutil.Process) -> bool:
    try:
        return bool(process.cmdline() == ["sleep", "987"])
    except psutil.Error:
        return False


async def test_large_result_arrives_among_small_ones(cluster: Any) -> None:
    async with DaskExecutionBackend(cluster=cluster) as backend:
        runner = DaskRunner(backend)
        large = runner.function(lambda: bytes(64 * 1024 * 1024))
        small = [runner.function(square, n) for n in range(50)]
        assert set(await runner.run(large, *small)) == {"DONE"}
        assert len(large["return_value"]) == 64 * 1024 * 1024


async def test_shutdown_leaves_no_thread() -> None:
    before = set(threading.enumerate())
    async with DaskExecutionBackend(SMALL) as backend:
        runner = DaskRunner(backend)
        await runner.run(*(runner.function(square, n) for n in range(10)))
    shared = ("rhapsody-service", "rhapsody-io", "Dask-Offload")
    await until(
        lambda: all(
            thread.name.startswith(shared) for thread in set(threading.enumerate()) - before
        )
    )
