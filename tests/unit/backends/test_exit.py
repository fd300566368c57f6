"""A program that ends, in whatever way, leaves no process behind."""

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

# A shell starts what it runs in the background with this signal ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)

def run_for_ever():
    time.sleep(60)

async def started(backend, *tasks):
    begun = asyncio.Event()
    running = set()
    def on_state(task, state):
        running.add(task["uid"])
        if len(running) == len(tasks):
            begun.set()
    backend.register_callback(on_state)
    await backend.submit_tasks(list(tasks))
    await begun.wait()

def shell(n):
    script = 'sleep 60 & echo running $$ $!; wait'
    return {"uid": f"shell.{n}", "executable": "/bin/sh", "arguments": ["-c", f"({script}) >&2"],
            "capture_stdio": False}

def function(n):
    return {"uid": f"function.{n}", "function": run_for_ever}
"""

END = """
if __name__ == "__main__":
    asyncio.run(main())
"""


class Program:
    """A program that uses the backend, with all the processes and files it makes."""

    def __init__(self, scratch: Path) -> None:
        self.scratch = scratch
        self._mark = scratch.name  # in the environment of whatever it starts
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
        """End what a failed test has left."""
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
    with tempfile.TemporaryDirectory(prefix="exit-") as scratch:  # short enough for sockets
        program = Program(Path(scratch))
        yield program
        program.end_all()


def much_to_do(and_then: str) -> str:
    return f"""
        async def main():
            backend = ConcurrentExecutionBackend("process", max_workers=2, max_children=2)
            await started(backend, shell(1), shell(2), function(1), function(2))
            await backend.submit_tasks([shell(n) for n in range(3, 20)])
            await backend.submit_tasks([function(n) for n in range(3, 20)])
            {and_then}
    """


@pytest.mark.parametrize(
    "way_out",
    [
        pytest.param("pass", id="returning"),
        pytest.param("sys.exit(3)", id="sys.exit"),
        pytest.param("raise ValueError('a bug')", id="an exception"),
    ],
)
def test_nothing_is_left_without_a_shutdown(way_out: str, program: Program) -> None:
    program.run(much_to_do(way_out))
    assert wait_gone(*program.processes()) == []
    assert program.files() == []


def test_an_interrupt_from_the_keyboard_ends_everything(program: Program) -> None:
    process = program.start(much_to_do("print('waiting', flush=True); await asyncio.sleep(60)"))
    assert process.stdout is not None
    assert process.stdout.readline() == "waiting\n"
    process.send_signal(signal.SIGINT)
    program.end(process)
    assert wait_gone(*program.processes()) == []
    assert program.files() == []


def test_functions_still_being_started_are_ended(program: Program) -> None:
    program.run("""
        async def main():
            backend = ConcurrentExecutionBackend("process", max_workers=2)
            backend.register_callback(lambda task, state: None)
            await backend.submit_tasks([function(n) for n in range(6)])
    """)
    assert wait_gone(*program.processes()) == []
    assert program.files() == []


def test_worker_processes_do_not_outlive_a_killed_program(program: Program) -> None:
    program.run("""
        async def main():
            backend = ConcurrentExecutionBackend("process", max_workers=2)
            await started(backend, function(1), function(2))
            os.kill(os.getpid(), 9)
    """)
    assert wait_gone(*program.processes()) == []


@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGKILL])
def test_executables_do_not_outlive_a_killed_program(program: Program, sig: int) -> None:
    program.run(f"""
        async def main():
            backend = ConcurrentExecutionBackend()
            await started(backend, shell(1), shell(2))
            os.kill(os.getpid(), {int(sig)})
    """)
    assert wait_gone(*program.processes()) == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_that_exits_ends_nothing_of_its_parents(program: Program) -> None:
    said, errors = program.run("""
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
    assert said.splitlines() == ["exit code 0", "cancelled True"], errors
    assert wait_gone(*program.processes()) == []


def test_a_shutdown_leaves_nothing_for_the_exit(program: Program) -> None:
    said, errors = program.run("""
        import glob, tempfile

        async def main():
            async with ConcurrentExecutionBackend("process", max_workers=2) as backend:
                await started(backend, shell(1), function(1))
            print("left", glob.glob(tempfile.gettempdir() + "/rhapsody-*"))
    """)
    assert said.splitlines()[-1] == "left []"
    assert errors == ""
    assert wait_gone(*program.processes()) == []
