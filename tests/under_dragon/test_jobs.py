"""Jobs of several ranks, as Dragon process groups."""

import asyncio
import os
import socket
import time
from pathlib import Path
from typing import Any

import pytest

from rhapsody.errors import ResourceError, TaskExecutionError
from tests.support.on_dragon import DragonRunner
from tests.support.waiting import until

pytestmark = pytest.mark.asyncio(loop_scope="module")


def rank(number: int = 0) -> tuple[int, int, int]:
    return int(os.environ["RHAPSODY_RANK"]), int(os.environ["RHAPSODY_RANKS"]), number


def fail_at(which: int) -> int:
    if rank()[0] == which:
        raise LookupError(f"rank {which} fails")
    return 1


async def test_executable_of_four_ranks(runner: DragonRunner) -> None:
    task = runner.executable(
        "/bin/sh",
        "-c",
        "echo rank $RHAPSODY_RANK of $RHAPSODY_RANKS; echo oops >&2",
        options={"ranks": 4},
    )
    assert await runner.run(task) == ["DONE"]
    assert task["stdout"] == "".join(f"rank {n} of 4\n" for n in range(4))
    assert [r["exit_code"] for r in task["ranks"]] == [0, 0, 0, 0]
    assert [r["stdout"] for r in task["ranks"]] == [f"rank {n} of 4\n" for n in range(4)]
    assert task["ranks"][3]["stderr"] == "oops\n"


async def test_executable_with_a_failing_rank_fails(runner: DragonRunner, tmp_path: Path) -> None:
    task = runner.executable(
        "pwd; test $RHAPSODY_RANK != 1 || { echo enough >&2; exit 3; }",
        options={"ranks": 2, "shell": True, "cwd": str(tmp_path)},
    )
    assert await runner.run(task) == ["FAILED"]
    assert [r["exit_code"] for r in task["ranks"]] == [0, 3]
    assert task["exit_code"] == 3
    assert "1 of its 2 ranks failed; rank 1: " in str(task["exception"])
    assert "enough" in str(task["exception"])
    assert task["ranks"][0]["stdout"] == f"{tmp_path}\n"


async def test_function_of_four_ranks(runner: DragonRunner) -> None:
    task = runner.function(rank, 7, options={"ranks": 4})
    assert await runner.run(task) == ["DONE"]
    assert task["return_value"] == (0, 4, 7)
    assert [r["return_value"] for r in task["ranks"]] == [(n, 4, 7) for n in range(4)]


async def test_function_with_a_failing_rank_fails(runner: DragonRunner) -> None:
    task = runner.function(fail_at, 1, options={"ranks": 2})
    assert await runner.run(task) == ["FAILED"]
    assert type(task["exception"]) is LookupError
    assert task["ranks"][0]["return_value"] == 1


async def test_function_with_dead_ranks_fails(runner: DragonRunner) -> None:
    task = runner.function(os._exit, 5, options={"ranks": 2})
    assert await runner.run(task) == ["FAILED"]
    assert isinstance(task["exception"], TaskExecutionError)
    assert "rank 0 ended with exit code 5" in str(task["exception"])
    assert [r["exit_code"] for r in task["ranks"]] == [5, 5]


async def test_process_templates_describe_ranks(runner: DragonRunner, tmp_path: Path) -> None:
    from dragon.infrastructure.policy import Policy
    from dragon.native.machine import current

    async def where() -> str:
        return f"{socket.gethostname()} {os.environ.get('WHO')}"

    host_name = current().hostname
    here = Policy(placement=Policy.Placement.HOST_NAME, host_name=host_name)
    one = runner.executable("/bin/pwd", options={"process_template": {"cwd": str(tmp_path)}})
    four = runner.executable(
        "/bin/sh",
        "-c",
        "echo $WHO",
        options={"process_templates": [(2, {"env": {"WHO": "a"}}), (2, {"env": {"WHO": "b"}})]},
    )
    function = runner.function(
        where, options={"process_template": {"policy": here, "env": {"WHO": "me"}}}
    )
    assert await runner.run(one, four, function) == ["DONE"] * 3
    assert one["stdout"] == f"{tmp_path}\n"
    assert four["stdout"] == "a\na\nb\nb\n"
    assert function["return_value"] == f"{socket.gethostname()} me"


async def test_missing_resources_are_refused(runner: DragonRunner) -> None:
    from dragon.infrastructure.policy import Policy

    there = Policy(placement=Policy.Placement.HOST_NAME, host_name="elsewhere")
    tasks = [
        runner.function(rank, options=options)
        for options in (
            {"ranks": 1, "gpus_per_rank": 8},
            {"ranks": 1, "nodes": ["elsewhere"]},
            {"process_template": {"policy": there}},
        )
    ]
    assert await runner.run(*tasks) == ["FAILED"] * 3
    for task in tasks:
        assert isinstance(task["exception"], ResourceError)


async def test_cancelled_job_ends_its_ranks(runner: DragonRunner, tmp_path: Path) -> None:
    script = f'echo $$ > "{tmp_path}/$RHAPSODY_RANK"; sleep 60'
    task = runner.executable("/bin/sh", "-c", script, options={"ranks": 2})
    waiting = runner.function(rank, options={"ranks": 2})
    await runner.submit(task, waiting)
    await until(lambda: len(list(tmp_path.iterdir())) == 2)
    assert await runner.backend.cancel_task(waiting["uid"])
    began = time.monotonic()
    assert await runner.backend.cancel_task(task["uid"])
    assert time.monotonic() - began < 5.0
    pids = [int(path.read_text()) for path in tmp_path.iterdir()]
    await until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))


async def test_timeout_fails_job(runner: DragonRunner) -> None:
    task = runner.function(time.sleep, 60, options={"ranks": 2, "timeout": 1.5})
    assert await runner.run(task) == ["FAILED"]
    assert "within its timeout" in str(task["exception"])


async def test_jobs_and_tasks_run_side_by_side(runner: DragonRunner) -> None:
    tasks: list[Any] = [runner.function(rank, n, options={"ranks": 2}) for n in range(3)]
    tasks += [runner.function(asyncio.sleep, 0.01) for _ in range(50)]
    assert await runner.run(*tasks) == ["DONE"] * 53


def mode() -> str | None:
    return os.environ.get("MODE")


async def test_resources_make_a_function_a_job(runner: DragonRunner) -> None:
    task = runner.function(mode)
    task["resources"] = {"ranks": 2, "env": {"MODE": "fast"}}
    assert await runner.run(task) == ["DONE"]
    assert [each["return_value"] for each in task["ranks"]] == ["fast", "fast"]


async def test_job_that_can_never_fit_fails_before_it_starts(runner: DragonRunner) -> None:
    task = {**runner.function(rank), "resources": {"gpus": 1000}, "priority": 1}
    assert await runner.run(task) == ["FAILED"]
    assert isinstance(task["exception"], ResourceError)
    assert "it asks for 1 CPU and 1000 GPUs" in str(task["exception"])
