import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.support.processes import wait_gone

BEGIN = """
import asyncio, os, signal, sys, time
from rhapsody.backends import ConcurrentExecutionBackend

# A shell starts background jobs with this signal ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)

def run_forever():
    time.sleep(60)

async def started(backend, *tasks):
    all_running = asyncio.Event()
    running = set()
    def on_state(task, state):
        running.add(task["uid"])
        if len(running) == len(tasks):
            all_running.set()
    backend.register_callback(on_state)
    await backend.submit_tasks(list(tasks))
    await all_running.wait()

def shell(n):
    script = 'sleep 60 & echo running $$ $!; wait'
    return {"uid": f"shell.{n}", "executable": "/bin/sh", "arguments": ["-c", f"({script}) >&2"],
            "capture_stdio": False}

def function(n):
    return {"uid": f"function.{n}", "function": run_forever}
"""

END = """
if __name__ == "__main__":
    asyncio.run(main())
"""


class Program:
    """A program that uses the backend, with all processes and files that it creates."""

    def __init__(self, scratch: Path) -> None:
        self.scratch = scratch
        self._mark = scratch.name  # in the environment of all its processes
        self._started: list[subprocess.Popen[str]] = []

    def start(self, main: str) -> subprocess.Popen[str]:
        path = self.scratch / "program.py"
        path.write_text(BEGIN + textwrap.dedent(main) + END)
        process = subprocess.Popen(
            [sys.executable, str(path)],
            env={**os.environ, "EXIT_TEST": self._mark, "TMPDIR": str(self.scratch)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._started.append(process)
        return process

    def run(self, main: str) -> tuple[str, str]:
        return self.end(self.start(main))

    def end(self, process: subprocess.Popen[str]) -> tuple[str, str]:
        return process.communicate(timeout=40)

    def end_all(self) -> None:
        """Kill the processes that a failed test left behind."""
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for process in self._started:
            with process:
                process.kill()

    def processes(self) -> list[int]:
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get("EXIT_TEST") == self._mark:
                    found.append(process.pid)
        return found

    def files(self) -> list[Path]:
        return list(self.scratch.glob("rhapsody-*"))


@pytest.fixture
def program() -> Iterator[Program]:
    with tempfile.TemporaryDirectory(prefix="exit-") as scratch:  # a short path, for sockets
        program = Program(Path(scratch))
        yield program
        program.end_all()


def many_tasks(and_then: str) -> str:
    return f"""
        async def main():
            backend = ConcurrentExecutionBackend("process", max_workers=2, max_children=2)
            await started(backend, shell(1), shell(2), function(1), function(2))
            await backend.submit_tasks([shell(n) for n in range(3, 20)])
            await backend.submit_tasks([function(n) for n in range(3, 20)])
            {and_then}
    """


@pytest.mark.parametrize(
    "ending",
    [
        pytest.param("pass", id="returning"),
        pytest.param("sys.exit(3)", id="sys.exit"),
        pytest.param("raise ValueError('a bug')", id="an exception"),
    ],
)
def test_exit_without_shutdown_leaves_no_process(ending: str, program: Program) -> None:
    program.run(many_tasks(ending))
    assert wait_gone(*program.processes()) == []
    assert program.files() == []


def test_keyboard_interrupt_leaves_no_process(program: Program) -> None:
    process = program.start(many_tasks("print('waiting', flush=True); await asyncio.sleep(60)"))
    assert process.stdout is not None
    assert process.stdout.readline() == "waiting\n"
    process.send_signal(signal.SIGINT)
    program.end(process)
    assert wait_gone(*program.processes()) == []
    assert program.files() == []


def test_exit_during_start_leaves_no_process(program: Program) -> None:
    program.run("""
        async def main():
            backend = ConcurrentExecutionBackend("process", max_workers=2)
            backend.register_callback(lambda task, state: None)
            await backend.submit_tasks([function(n) for n in range(6)])
    """)
    assert wait_gone(*program.processes()) == []
    assert program.files() == []


def test_worker_processes_end_with_killed_program(program: Program) -> None:
    program.run("""
        async def main():
            backend = ConcurrentExecutionBackend("process", max_workers=2)
            await started(backend, function(1), function(2))
            os.kill(os.getpid(), 9)
    """)
    assert wait_gone(*program.processes()) == []


@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGKILL])
def test_executables_end_with_killed_program(program: Program, sig: int) -> None:
    program.run(f"""
        async def main():
            backend = ConcurrentExecutionBackend()
            await started(backend, shell(1), shell(2))
            os.kill(os.getpid(), {int(sig)})
    """)
    assert wait_gone(*program.processes()) == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_exit_of_forked_child_does_not_affect_parent(program: Program) -> None:
    output, errors = program.run("""
        import multiprocessing, warnings

        async def main():
            warnings.simplefilter("ignore")  # that this process has threads
            async with ConcurrentExecutionBackend(max_children=2) as backend:
                await started(backend, shell(1))
                child = multiprocessing.get_context("fork").Process(target=len, args=("",))
                child.start()
                child.join()
                print("exit code", child.exitcode)
                print("cancelled", await backend.cancel_task("shell.1"))
    """)
    assert output.splitlines() == ["exit code 0", "cancelled True"], errors
    assert wait_gone(*program.processes()) == []


def test_shutdown_leaves_no_process_and_no_file(program: Program) -> None:
    output, errors = program.run("""
        import glob, tempfile

        async def main():
            async with ConcurrentExecutionBackend("process", max_workers=2) as backend:
                await started(backend, shell(1), function(1))
            print("left", glob.glob(tempfile.gettempdir() + "/rhapsody-*"))
    """)
    assert output.splitlines()[-1] == "left []"
    assert errors == ""
    assert wait_gone(*program.processes()) == []
