"""Every example runs as its docstring prints it, says what it should, and complains of nothing."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.under_dragon import under_dragon

pytestmark = pytest.mark.asyncflow

ROOT = Path(__file__).parents[2]
COMPLAINT = re.compile(r"warning|error|traceback|exception|never awaited|was destroyed", re.I)

KEY_LINES = {
    "01_quickstart.py": [
        "not a real model",
        r"decide +function +0 +1 +0",
        r"Decision: look more closely around damping 0\.\d+, where the mean energy is 0\.\d+\.",
        r"19 tasks in [\d.]+ s; the prompts left in .+ prompts",
        r"Tasks: 5240 DONE, in",
        r"Prompts: \d+ per second, in \d+ batches of \d+ prompts on average",
        r"expr 40 \* 2 +80",
        "All backends are shut down",
    ],
    "02_session_mixed.py": [
        r"Task 1 \[AI\]: \w+",
        r"Task 2 \[AI\]: \['.+', '.+'\]",
        r"Task 3 \[Compute\]: Hello from an executable!",
        r"Task 4 \[Compute\]: 12",
        r"'DONE': 4",
    ],
    "03_asyncflow_dag.py": [
        r"Workflow 9: \{'sum': 508536, 'even': 505\}",
        r"Completed 10 workflows, 30 tasks, in",
    ],
    "04_ai_task_pipeline.py": [
        r"Summary of run 2: \w+",
        r"Decision: run 2 goes on; the model said '.+'",
        r"Model small: 3 prompts",
        r"Model large: 1 prompts",
    ],
    "05_openai_client.py": [
        r"Serving at http://127\.0\.0\.1:\d+",
        r"Models: \['embedded'\]",
        r"Answer: \w+",
        r"Stream: \w+",
        "The server is gone.",
    ],
    "06_blocking_script.py": [
        r"Roots: \[0\.0, 1\.0, 1\.414, 1\.732, 2\.0\]",
        r"Answer: \w+",
        r"Reason: Task 'task\.\d+' failed with exit code",
    ],
    "07_own_backend.py": [
        r"Backends: .*nice",
        r"In a Session, niceness: \[\d+, \d+, \d+, \d+\]",
        r"Stopped in time: .*timeout of 0\.2 s",
        r"In AsyncFlow, niceness: 1\d",
    ],
}
KEY_LINES_UNDER_DRAGON = {
    "08_dragon.py": [
        r"pi is about 3\.1\d+: 200 tasks in [\d.]+ s",
        "An executable on Linux",
        r"Rank 3 of 4: pi is about 3\.\d+",
    ],
}


def test_every_example_is_run_here() -> None:
    run = KEY_LINES | KEY_LINES_UNDER_DRAGON
    assert sorted(path.name for path in ROOT.glob("examples/*.py")) == sorted(run)


@pytest.mark.parametrize("name", KEY_LINES)
def test_an_example_runs_as_printed(name: str, tmp_path: Path) -> None:
    path = ROOT / "examples" / name
    # The printed command is for the root of a checkout; only that may not be written to here.
    assert f"\n    python examples/{name}\n" in path.read_text()
    run = subprocess.run(
        [sys.executable, path],
        cwd=tmp_path,
        env={**os.environ, "PYTHONWARNINGS": "default", "COLUMNS": "200"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=50,
    )
    assert run.returncode == 0, run.stderr
    for line in KEY_LINES[name]:
        assert re.search(line, run.stdout), f"no {line!r} in:\n{run.stdout}"
    assert not COMPLAINT.search(run.stderr), run.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.dragon
@pytest.mark.timeout(120)
@pytest.mark.parametrize("name", KEY_LINES_UNDER_DRAGON)
def test_an_example_for_dragon_runs_as_printed(name: str, tmp_path: Path) -> None:
    path = ROOT / "examples" / name
    assert f"\n    dragon examples/{name}\n" in path.read_text()
    with under_dragon(
        str(path), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=tmp_path
    ) as launcher:
        said, _ = launcher.communicate(timeout=100)
    assert launcher.returncode == 0, said
    for line in KEY_LINES_UNDER_DRAGON[name]:
        assert re.search(line, said), f"no {line!r} in:\n{said}"


def test_the_quickstart_reports_its_progress_on_standard_error(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, ROOT / "examples" / "01_quickstart.py"],
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=50,
    )
    assert re.search(r"dragon_vllm: 5000 done, [\d.,]+/s, [\d.]+ prompts a batch", run.stderr)
    assert "\x1b" not in run.stdout + run.stderr


def test_the_openai_example_says_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "openai.py").write_text("raise ImportError('not here')\n")
    run = subprocess.run(
        [sys.executable, ROOT / "examples" / "05_openai_client.py"],
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=50,
    )
    assert run.returncode == 1
    assert "pip install openai" in run.stderr
    assert "Traceback" not in run.stderr
