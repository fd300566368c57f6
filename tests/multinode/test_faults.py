"""Killed workers and agents of the other node, and the end of its processes."""

import os
import signal
import time

from rhapsody.backends import DragonExecutionBackendV3
from rhapsody.backends.dragon import processes
from rhapsody.errors import WorkerDied
from tests.support.on_dragon import DragonRunner
from tests.support.processes import is_alive
from tests.support.waiting import until


async def test_killed_worker_of_the_other_node_is_replaced(there: str) -> None:
    async with DragonExecutionBackendV3(num_workers=1, nodes=[there]) as backend:
        runner = DragonRunner(backend)
        long = runner.function(time.sleep, 120)
        rest = [runner.function(os.getpid) for _ in range(20)]
        await runner.submit(long, *rest)
        await until(lambda: runner.began(long))
        (victim,) = backend.worker_pids  # a process id of that node
        on_its_node = {"ranks": 1, "nodes": [there]}
        kill = runner.function(os.kill, victim, signal.SIGKILL, options=on_its_node)
        assert await runner.run(kill) == ["DONE"]
        assert await runner.end(long) == "FAILED"
        assert isinstance(long["exception"], WorkerDied)
        assert f"on node {there}, was ended by SIGKILL" in str(long["exception"])
        assert [await runner.end(task) for task in rest] == ["DONE"] * 20
        assert victim not in {task["return_value"] for task in rest}


async def test_killed_agent_of_the_other_node_is_replaced(there: str) -> None:
    async with DragonExecutionBackendV3(num_workers=2) as backend:
        runner = DragonRunner(backend)
        both = [runner.function(time.sleep, 120) for _ in range(2)]
        await runner.submit(*both)
        await until(lambda: all(map(runner.began, both)))
        assert backend._manager is not None
        processes.kill(backend._manager._agent_links._agents[there].puid)
        await until(lambda: any(len(runner.reports.states(t["uid"])) > 1 for t in both))
        for task in both:
            await backend.cancel_task(task["uid"])
        assert sorted([await runner.end(task) for task in both]) == ["CANCELED", "FAILED"]
        assert await runner.run(*(runner.function(os.getpid) for _ in range(20))) == ["DONE"] * 20


async def test_stop_leaves_no_process_on_the_other_node(there: str) -> None:
    async with DragonExecutionBackendV3(num_workers=1, nodes=[there]) as backend:
        runner = DragonRunner(backend)
        running = runner.executable("/bin/sleep", "120.125")
        await runner.submit(running)
        await until(lambda: runner.began(running))
        (worker,) = backend.worker_pids
    assert await runner.end(running) == "CANCELED"
    async with DragonExecutionBackendV3(num_workers=1, nodes=[there]) as backend:
        look = DragonRunner(backend)
        alive = look.function(is_alive, worker)
        sleeping = look.executable("/bin/sh", "-c", "ps -eo args | grep -c '[1]20.125' || true")
        assert await look.run(alive, sleeping) == ["DONE", "DONE"]
        assert (alive["return_value"], sleeping["stdout"]) == (False, "0\n")
