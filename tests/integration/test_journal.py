"""Drills: a program with a journal is killed at random moments or edited, and started again."""

import os
import pickle
import random
import shutil
import subprocess
import sys
import time
from collections import Counter
from contextlib import closing
from pathlib import Path

import pytest

from rhapsody.journal.store import Store
from tests.support.waiting import until_blocking

PROGRAM = """
import asyncio, os, sys, time
from asyncflow_ext import WorkflowEngine
from rhapsody.backends import ConcurrentExecutionBackend, DragonVllmInferenceBackend

folder, size, executor = sys.argv[1], int(sys.argv[2]), sys.argv[3]
STEP = 1

def log(name, n):
    descriptor = os.open(os.path.join(folder, "ran"), os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(descriptor, f"{name} {n}\\n".encode())
    os.close(descriptor)
    time.sleep(0.005)

def shifted(n):
    return n + STEP

async def main():
    model = DragonVllmInferenceBackend(
        None, "embedded", engine="embedded", launcher="local", use_service=False
    )
    backend = ConcurrentExecutionBackend(max_workers=4, executor=executor)
    async with WorkflowEngine.create(
        backend=[backend, model], journal=os.path.join(folder, "run.journal")
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
        print("recalled", flow.journal.get_statistics()["recalled"])
        print("result", result[1])

if __name__ == "__main__":
    asyncio.run(main())
"""

SIZE = 12
TASKS = 4 * SIZE + 2 * SIZE // 4 + 1
"""Sources, left and right sides, joins, executables, prompts, and the total."""


def committed(path: Path) -> set[str]:
    """Return the calls whose results are in the file of a program that is not running."""
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
        executor: The executor of its backend.
    """

    def __init__(self, folder: Path, executor: str = "thread", size: int = SIZE) -> None:
        self.journal = folder / "run.journal"
        self.log = folder / "ran"
        self.program = folder / "program.py"
        self.program.write_text(PROGRAM)
        self.command = [sys.executable, str(self.program), str(folder), str(size), executor]

    def start(self) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.command, stdout=subprocess.PIPE, text=True, start_new_session=True
        )

    def ran(self) -> list[str]:
        """Return the calls that ran so far, in all runs."""
        return self.log.read_text().splitlines() if self.log.exists() else []

    def kill_after(self, calls: int, seconds: float) -> None:
        """Run the program and kill it, some seconds after a number of calls ran."""
        before = len(self.ran())
        with self.start() as process:
            until_blocking(
                lambda: len(self.ran()) >= before + calls or process.poll() is not None, 50
            )
            time.sleep(seconds)
            process.kill()
            process.communicate(timeout=50)

    def finish(self) -> tuple[int, int]:
        """Run the program to its end; return its result and how many results it recalled."""
        with self.start() as process:
            output, _ = process.communicate(timeout=50)
        assert process.returncode == 0
        words = dict(line.split() for line in output.splitlines())
        return int(words["result"]), int(words["recalled"])

    def edit(self, old: str, new: str) -> Counter[str]:
        """Edit the program and run it; return how often each of its functions ran."""
        text = self.program.read_text()
        assert text.count(old) == 1
        self.program.write_text(text.replace(old, new))
        before = len(self.ran())
        _, recalled = self.finish()
        names = Counter(call.split()[0] for call in self.ran()[before:])
        prompts = TASKS - recalled - names.total()  # prompts are not logged
        return names + Counter(ask=prompts)


@pytest.mark.asyncflow
@pytest.mark.slow
@pytest.mark.parametrize(("executor", "kills"), [("thread", 3), ("process", 1)])
def test_killed_program_repeats_no_committed_call(
    tmp_path: Path, executor: str, kills: int
) -> None:
    moment = random.Random(executor)
    reference = tmp_path / "reference"
    reference.mkdir()
    result, _ = Drill(reference).finish()
    drill = Drill(tmp_path, executor)
    kept: set[str] = set()
    for _ in range(kills):
        before = len(drill.ran())
        drill.kill_after(moment.randint(1, 14), moment.uniform(0.0, 0.1))
        assert kept & set(drill.ran()[before:]) == set()
        now = committed(drill.journal)
        assert kept <= now
        kept = now
    before = len(drill.ran())
    assert drill.finish() == (result, len(kept))
    assert kept & set(drill.ran()[before:]) == set()
    before = len(drill.ran())
    assert drill.finish() == (result, TASKS)
    assert drill.ran()[before:] == []


@pytest.mark.asyncflow
@pytest.mark.slow
def test_edited_program_runs_what_changed_and_what_follows_from_it(tmp_path: Path) -> None:
    drill = Drill(tmp_path)
    joined = {"join": SIZE, "total": 1}
    drill.finish()
    assert drill.edit("def shifted(n):\n", "\n\ndef shifted(n):  # a comment\n") == {}
    assert drill.edit("return n + STEP", "return n + 2 * STEP") == {"left": SIZE, **joined}
    assert drill.edit("STEP = 1", "STEP = 3") == {"left": SIZE, **joined}
    asked = SIZE // 4
    assert drill.edit("What is {begun[0]}?", "Why is {begun[0]}?") == {
        "ask": asked,
        "join": asked,
        "total": 1,
    }
    assert drill.edit("STEP = 3", "STEP = 1") == {"join": asked, "total": 1}


EXAMPLE = Path(__file__).parents[2] / "examples" / "resubmit"


@pytest.mark.asyncflow
def test_job_submits_itself_until_its_program_has_finished(tmp_path: Path) -> None:
    for file in EXAMPLE.glob("*.*"):
        shutil.copy(file, tmp_path)
    queue = tmp_path / "queue"
    commands = {
        "sbatch": f'#!/bin/sh\necho "$@" >> {queue}\n',
        "python": f'#!/bin/sh\nexec {sys.executable} "$@"\n',
    }
    for name, text in commands.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o700)
    # 100 tasks of 0.4 s on 4 workers take 10 s; a job has 8 s for them.
    jobs = ["job.sh 100 0.4 1"]
    outputs = []
    while jobs:
        job = jobs.pop(0)
        environment = {
            **os.environ,
            "PATH": f"{tmp_path}:{os.environ['PATH']}",
            "SLURM_JOB_END_TIME": str(time.time() + 9),
        }
        run = subprocess.run(
            ["bash", *job.split()],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=50,
            check=True,
        )
        outputs.append(run.stdout)
        assert len(outputs) < 12
        if queue.exists():
            jobs = queue.read_text().splitlines()
            queue.unlink()
    assert outputs[-1] == f"total: {sum(n * n for n in range(100))}\n"
    assert len(outputs) > 1
    assert set(outputs[:-1]) == {""}
