"""Drills: a program with a journal is killed at random moments or edited, and started again."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.journal_drill import Drill, end_at_random_moments

KILLS = int(os.environ.get("JOURNAL_DRILL_KILLS", "0"))
"""How often a program is ended, by hand; 0: as often as the tests say."""
SIZE = 12 if KILLS == 0 else 220
"""Diamonds in the graph of the program: 55 or 991 tasks."""


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> int:
    """The result of the program if nothing ends it."""
    return Drill(tmp_path_factory.mktemp("reference"), size=SIZE).finish()[0]


@pytest.mark.asyncflow
@pytest.mark.slow
@pytest.mark.timeout(240 + 30 * KILLS)
@pytest.mark.parametrize(
    ("place", "sig", "ends"),
    [
        ("thread", signal.SIGKILL, 3),
        ("thread", signal.SIGTERM, 1),
        ("process", signal.SIGKILL, 1),
        pytest.param("dask", signal.SIGKILL, 1, marks=pytest.mark.dask),
        pytest.param("dragon", signal.SIGKILL, 1, marks=pytest.mark.dragon),
    ],
)
def test_ended_program_repeats_no_committed_call(
    tmp_path: Path, result: int, place: str, sig: signal.Signals, ends: int
) -> None:
    drill = Drill(tmp_path, place, SIZE)
    kept = end_at_random_moments(drill, KILLS or ends, sig)
    before = len(drill.ran())
    assert drill.finish() == (result, len(kept))
    assert kept & set(drill.ran()[before:]) == set()


@pytest.mark.asyncflow
@pytest.mark.slow
def test_finished_program_runs_nothing_again(tmp_path: Path) -> None:
    drill = Drill(tmp_path)
    result, recalled = drill.finish()
    assert recalled == 0
    before = len(drill.ran())
    assert drill.finish() == (result, drill.tasks)
    assert drill.ran()[before:] == []


@pytest.mark.asyncflow
@pytest.mark.slow
def test_edited_program_runs_what_changed_and_what_follows_from_it(tmp_path: Path) -> None:
    size = 12
    drill = Drill(tmp_path, size=size)
    joined = {"join": size, "total": 1}
    drill.finish()
    assert drill.edit("def shifted(n):\n", "\n\ndef shifted(n):  # a comment\n") == {}
    assert drill.edit("return n + STEP", "return n + 2 * STEP") == {"left": size, **joined}
    assert drill.edit("STEP = 1", "STEP = 3") == {"left": size, **joined}
    asked = size // 4
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
