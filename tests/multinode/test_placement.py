"""Placement of tasks and ranks, and data between the nodes."""

import os
import socket
import time
from pathlib import Path

import pytest

from rhapsody.backends import DragonExecutionBackendV3
from tests.support.on_dragon import DragonRunner

pytestmark = pytest.mark.asyncio(loop_scope="module")


def where() -> str:
    time.sleep(0.2)
    return socket.gethostname()


def rank() -> tuple[int, str]:
    return int(os.environ["RHAPSODY_RANK"]), socket.gethostname()


def exit_with_rank() -> None:
    os._exit(10 + rank()[0])


def reverse(data: bytes) -> bytes:
    return data[::-1]


async def test_workers_are_spread_over_the_nodes(
    runner: DragonRunner, here: str, there: str
) -> None:
    functions = [runner.function(where) for _ in range(20)]
    executables = [runner.executable("/bin/sh", "-c", "sleep 0.2; hostname") for _ in range(20)]
    assert set(await runner.run(*functions, *executables)) == {"DONE"}
    assert {task["return_value"] for task in functions} == {here, there}
    assert {task["stdout"] for task in executables} == {f"{here}\n", f"{there}\n"}


async def test_nodes_are_chosen_by_number_or_by_name(here: str, there: str) -> None:
    for nodes, expected in ((1, here), ([there], there)):
        async with DragonExecutionBackendV3(num_workers=2, nodes=nodes) as backend:
            runner = DragonRunner(backend)
            tasks = [runner.function(where) for _ in range(10)]
            assert set(await runner.run(*tasks)) == {"DONE"}
            assert {task["return_value"] for task in tasks} == {expected}


async def test_large_arguments_pass_between_the_nodes(there: str, tmp_path: Path) -> None:
    data = os.urandom(20_000_000)
    async with DragonExecutionBackendV3(num_workers=1, nodes=[there]) as backend:
        runner = DragonRunner(backend)
        task = runner.function(reverse, data)
        assert await runner.run(task) == ["DONE"]
        assert task["return_value"] == data[::-1]


async def test_job_runs_on_both_nodes_in_blocks(
    runner: DragonRunner, here: str, there: str
) -> None:
    task = runner.function(rank, options={"ranks": 4})
    script = "echo $RHAPSODY_RANK on $(hostname)"
    shell = runner.executable(script, options={"ranks": 4, "shell": True})
    assert await runner.run(task, shell) == ["DONE", "DONE"]
    found = [each["return_value"] for each in task["ranks"]]
    assert [number for number, _ in found] == [0, 1, 2, 3]
    hosts = [host for _, host in found]
    assert set(hosts) == {here, there}
    assert hosts == sorted(hosts, key=lambda host: host != here)  # in blocks
    assert shell["stdout"] == "".join(f"{n} on {host}\n" for n, host in enumerate(hosts))


async def test_job_runs_on_its_named_nodes(runner: DragonRunner, there: str) -> None:
    task = runner.function(rank, options={"ranks": 2, "nodes": [there]})
    assert await runner.run(task) == ["DONE"]
    assert [each["return_value"] for each in task["ranks"]] == [(0, there), (1, there)]


async def test_each_rank_has_its_own_exit_code(runner: DragonRunner) -> None:
    task = runner.function(exit_with_rank, options={"ranks": 4})
    assert await runner.run(task) == ["FAILED"]
    assert [each["exit_code"] for each in task["ranks"]] == [10, 11, 12, 13]
