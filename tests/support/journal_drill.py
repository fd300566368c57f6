"""A program with a journal, which drills kill at random moments or edit, and start again."""

from __future__ import annotations

import contextlib
import os
import pickle
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from rhapsody import EXIT_RESUBMIT
from rhapsody.journal.store import Store
from tests.support.on_dragon import under_dragon
from tests.support.processes import wait_gone
from tests.support.waiting import until_blocking

PROGRAM = """
import asyncio, os, sys, time
from asyncflow_ext import WorkflowEngine
from rhapsody import EXIT_RESUBMIT, WalltimeReached
from rhapsody.backends import (
    ConcurrentExecutionBackend,
    DaskExecutionBackend,
    DragonExecutionBackendV3,
    DragonVllmInferenceBackend,
)

folder, size, place = sys.argv[1], int(sys.argv[2]), sys.argv[3]
STEP = 1

def write(name, line):
    descriptor = os.open(os.path.join(folder, name), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(descriptor, f"{line}\\n".encode())
    os.close(descriptor)

def log(name, n):
    write("ran", f"{name} {n}")
    time.sleep(0.005)

def shifted(n):
    return n + STEP

def execution():
    if place == "dask":
        return DaskExecutionBackend({"n_workers": 2, "threads_per_worker": 2})
    if place == "dragon":
        return DragonExecutionBackendV3(num_workers=2)
    return ConcurrentExecutionBackend(max_workers=4, executor=place)

async def main():
    model = DragonVllmInferenceBackend(
        None, "embedded", engine="embedded", launcher="local", use_service=False
    )
    async with WorkflowEngine.create(
        backend=[execution(), model], journal=os.path.join(folder, "run.journal")
    ) as flow:

        @flow.function_task
        async def source(n):
            log("source", n)
            return n, n

        @flow.function_task
        async def left(begun):
            log("left", begun[0])
            return begun[0], shifted(begun[1])

        @flow.function_task
        async def right(begun):
            log("right", begun[0])
            return begun[0], [begun[1]] * 3

        @flow.executable_task
        async def line(begun):
            return f"sh -c 'echo line {begun[0]} >> {folder}/ran; echo {begun[0]}'"

        @flow.ai_task(max_tokens=4, temperature=0)
        async def ask(begun):
            return f"What is {begun[0]}?"

        @flow.function_task
        async def join(one, two, *texts):
            log("join", one[0])
            return one[0], one[1] + sum(two[1]) + sum(map(len, texts))

        @flow.function_task
        async def total(parts):
            log("total", 0)
            return 0, sum(part[1] for part in parts)

        joins = []
        for n in range(size):
            begun = source(n)
            texts = [line(begun), ask(begun)] if n % 4 == 0 else []
            joins.append(join(left(begun), right(begun), *texts))
        result = await total(joins)
        await flow.journal.flush()
        write("ended", f"{result[1]} {flow.journal.get_statistics()['recalled']}")

if __name__ == "__main__":
    write("pids", os.getpid())
    try:
        asyncio.run(main())
    except WalltimeReached:
        sys.exit(EXIT_RESUBMIT)
"""

LIMIT_S = 100


def count_tasks(size: int) -> int:
    """Count sources, left and right sides, joins, executables, prompts, and the total."""
    return 4 * size + 2 * len(range(0, size, 4)) + 1


def committed(path: Path) -> set[str]:
    """Return the calls whose results are in the file of a program that is not running."""
    if not path.exists():  # it was killed before it opened its journal
        return set()
    with closing(Store(path)) as store:
        names = {code.number: code.name for code in store.codes()}
        results = {key: (entry.value, names[entry.code]) for key, entry in store.load()[0].items()}
    calls = set()
    for value, name in results.values():
        assert value is not None
        fields = pickle.loads(value)
        if name == "ask":
            calls.add(f"ask {fields['response']}")
        else:
            number = fields["stdout"] if name == "line" else fields["return_value"][0]
            calls.add(f"{name} {int(number)}")
    return calls


class Drill:
    """Starts the program, edits it, and kills it.

    Args:
        folder: For the program, its journal and its log.
        place: Where its functions run: "thread", "process", "dask" or "dragon".
        size: How many diamonds its graph has.
    """

    def __init__(self, folder: Path, place: str = "thread", size: int = 12) -> None:
        self.tasks = count_tasks(size)
        self.journal = folder / "run.journal"
        self.program = folder / "program.py"
        self.program.write_text(PROGRAM)
        self._folder = folder
        self._dragon = place == "dragon"
        self._arguments = [str(self.program), str(folder), str(size), place]

    @contextlib.contextmanager
    def started(self) -> Iterator[subprocess.Popen[str]]:
        """Start the program; kills what is left of it."""
        options: dict[str, Any] = {
            "stdout": subprocess.PIPE,
            "stderr": subprocess.STDOUT,
            "cwd": self._folder,
        }
        if self._dragon:
            with under_dragon(*self._arguments, **options) as launcher:
                yield launcher
            return
        with subprocess.Popen(
            [sys.executable, *self._arguments],
            stdin=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
            **options,
        ) as process:
            try:
                yield process
            finally:
                process.kill()

    def _lines(self, name: str) -> list[str]:
        file = self._folder / name
        return file.read_text().splitlines() if file.exists() else []

    def ran(self) -> list[str]:
        """Return the calls that ran so far, in all runs."""
        return self._lines("ran")

    def end_after(
        self, calls: int, seconds: float, sig: signal.Signals = signal.SIGKILL
    ) -> tuple[int | None, str]:
        """Run the program and send it a signal, some seconds after a number of calls ran.

        Args:
            calls: How many calls run before.
            seconds: How long to wait after them.
            sig: The signal.

        Returns:
            The exit code, or None after a SIGKILL; and what the program wrote.
        """
        before, runs = len(self.ran()), len(self._lines("pids"))
        with self.started() as process:

            def ready() -> bool:
                return len(self.ran()) >= before + calls or process.poll() is not None

            until_blocking(lambda: len(self._lines("pids")) > runs, LIMIT_S)
            until_blocking(ready, LIMIT_S)
            time.sleep(seconds)
            program = int(self._lines("pids")[-1])
            with contextlib.suppress(ProcessLookupError):  # it has ended already
                os.kill(program, sig)
            if sig == signal.SIGKILL and self._dragon:
                assert not wait_gone(program)
                return None, ""  # its launcher may wait for ever
            output, _ = process.communicate(timeout=LIMIT_S)
        return (None if sig == signal.SIGKILL else process.returncode), output

    def finish(self) -> tuple[int, int]:
        """Run the program to its end; return its result and how many results it recalled."""
        with self.started() as process:
            output, _ = process.communicate(timeout=LIMIT_S)
        assert process.returncode == 0, output
        result, recalled = self._lines("ended")[-1].split()
        return int(result), int(recalled)

    def edit(self, old: str, new: str) -> Counter[str]:
        """Edit the program and run it; return how often each of its functions ran."""
        text = self.program.read_text()
        assert text.count(old) == 1
        self.program.write_text(text.replace(old, new))
        before = len(self.ran())
        _, recalled = self.finish()
        names = Counter(call.split()[0] for call in self.ran()[before:])
        prompts = self.tasks - recalled - names.total()  # prompts are not logged
        return names + Counter(ask=prompts)


def end_at_random_moments(drill: Drill, ends: int, sig: signal.Signals) -> set[str]:
    """End the program several times, and check after each that it repeated no committed call.

    Args:
        drill: The program.
        ends: How often it is ended.
        sig: The signal that ends it.

    Returns:
        The calls whose results are in the journal.
    """
    moment = random.Random(ends)
    kept: set[str] = set()
    for _ in range(ends):
        before = len(drill.ran())
        calls = moment.randint(0, 2 * drill.tasks // (ends + 2))
        code, output = drill.end_after(calls, moment.uniform(0.0, 0.1), sig)
        assert code in (None, 0, EXIT_RESUBMIT), output
        assert kept & set(drill.ran()[before:]) == set()
        now = committed(drill.journal)
        assert kept <= now
        kept = now
    return kept
