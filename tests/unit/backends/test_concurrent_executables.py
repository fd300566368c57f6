"""Executables beside functions."""

from pathlib import Path

import pytest

from rhapsody.backends import ConcurrentExecutionBackend
from rhapsody.testing import samples
from rhapsody.testing.gate import Gate
from tests.support.concurrent_runner import Runner


async def test_no_more_run_at_once_than_allowed(tmp_path: Path, gate: Gate) -> None:
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


async def test_500_at_once_all_end() -> None:
    async with ConcurrentExecutionBackend() as backend:
        runner = Runner(backend)
        tasks = [samples.executable(f"task.{n}", "/bin/echo", str(n)) for n in range(500)]
        assert set(await runner.run(*tasks)) == {"DONE"}
        assert [task["stdout"] for task in tasks] == [f"{n}\n" for n in range(500)]


async def test_a_failure_keeps_what_was_written(threads: Runner) -> None:
    task = samples.executable("task.1", "/bin/sh", "-c", "echo half; exit 3")
    assert await threads.run(task) == ["FAILED"]
    assert (task["stdout"], task["exit_code"]) == ("half\n", 3)
    assert task["exception"].exit_code == 3


async def test_an_unknown_option_is_named_once(
    threads: Runner, caplog: pytest.LogCaptureFixture
) -> None:
    options = {"ranks": 4}
    for n in range(2):
        task = samples.executable(f"task.{n}", "/bin/true", task_backend_specific_kwargs=options)
        assert await threads.run(task) == ["DONE"]
    assert caplog.text.count("has no use for the option 'ranks'") == 1
    assert "it knows cwd, env, shell, timeout" in caplog.text
