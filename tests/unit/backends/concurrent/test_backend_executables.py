import errno
from pathlib import Path
from typing import Any

import pytest

from rhapsody.backends import ConcurrentExecutionBackend
from rhapsody.backends.executables.executable import Executable
from rhapsody.errors import TaskExecutionError
from rhapsody.testing import samples
from rhapsody.testing.gate import Gate
from tests.support.on_concurrent import ConcurrentRunner


async def test_max_children_limits_concurrent_executables(tmp_path: Path, gate: Gate) -> None:
    async with ConcurrentExecutionBackend(max_children=2) as backend:
        runner = ConcurrentRunner(backend)
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


async def test_500_concurrent_executables_finish() -> None:
    async with ConcurrentExecutionBackend() as backend:
        runner = ConcurrentRunner(backend)
        tasks = [samples.executable(f"task.{n}", "/bin/echo", str(n)) for n in range(500)]
        assert set(await runner.run(*tasks)) == {"DONE"}
        assert [task["stdout"] for task in tasks] == [f"{n}\n" for n in range(500)]


async def test_executables_wait_for_free_descriptors(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def start(executable: Executable, *args: Any) -> Any:
        starts.append(executable.uid)
        if len(starts) <= 2:
            raise TaskExecutionError(executable.uid, "no") from OSError(errno.EMFILE, "no")
        return real(executable, *args)

    starts: list[str] = []
    real = Executable.start
    monkeypatch.setattr(Executable, "start", start)
    async with ConcurrentExecutionBackend() as backend:
        runner = ConcurrentRunner(backend)
        task = samples.executable("task.1", "/bin/echo", "hello", capture_stdio=True)
        backend._work_dir = str(tmp_path)
        assert await runner.run(task) == ["DONE"]
    assert starts == ["task.1"] * 3
    assert Path(task["stdout"]).read_text() == "hello\n"


async def test_failed_executable_keeps_its_output(threads: ConcurrentRunner) -> None:
    task = samples.executable("task.1", "/bin/sh", "-c", "echo half; exit 3")
    assert await threads.run(task) == ["FAILED"]
    assert (task["stdout"], task["exit_code"]) == ("half\n", 3)
    assert task["exception"].exit_code == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ranks": 4}, "has no option 'ranks'; it knows cwd, env, shell, stdin, timeout"),
        ({"tiemout": 4}, "has no option 'tiemout'; did you mean 'timeout'?"),
    ],
)
async def test_unknown_option_is_refused(
    threads: ConcurrentRunner, options: dict[str, Any], message: str
) -> None:
    task = samples.executable("task.1", "/bin/true", task_backend_specific_kwargs=options)
    assert await threads.run(task) == ["FAILED"]
    assert message in str(task["exception"])
