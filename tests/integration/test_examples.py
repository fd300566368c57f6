"""Every example runs by the command in its docstring, with the expected output and no warning."""

import ast
import os
import pty
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import IO

import pytest

from tests.support.on_dragon import under_dragon
from tests.support.vllm_servers import set_environment

pytestmark = pytest.mark.asyncflow

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted(path.name for path in ROOT.glob("examples/*.py"))
WRITTEN = {"01_quickstart.py": ["quickstart-report.html"]}
"""Files that an example leaves in the working directory."""
WARNING = re.compile(r"warning|error|traceback|exception|never awaited|was destroyed", re.I)

KEY_LINES = {
    "01_quickstart.py": [
        "not a real model",
        r"decide +function +0 +1 +0",
        r"Decision: look more closely around damping 0\.\d+, where the mean energy is 0\.\d+\.",
        r"19 tasks in [\d.]+ s; the prompts left in .+ prompts",
        r"Tasks: 5240 DONE, in",
        r"Prompts: \d+ per second, in \d+ batches of \d+ prompts on average",
        r"expr 40 \* 2 +80",
        r"Live page, until the tasks have ended:\n  http://127\.0\.0\.1:\d+/",
        r"All backends are shut down\..*\n  file:///.*/quickstart-report\.html",
    ],
    "02_session_mixed.py": [
        r"Task 1 \[AI\]: \w+",
        r"Task 2 \[AI\]: \['.+', '.+'\]",
        r"Task 3 \[Compute\]: Hello from an executable!",
        r"Task 4 \[Compute\]: 12",
        r"'DONE': 4",
    ],
    "03_asyncflow_dag.py": [
        r"Workflow 999: \{'sum': 1997001, 'even': 1000\}",
        r"Completed 1000 workflows, 3000 tasks, in",
        r"\d+ tasks per second",
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
        r"Stopped by its timeout: .*timeout of 0\.2 s",
        r"In AsyncFlow, niceness: 1\d",
    ],
    "09_active_learning.py": [
        r"Round 1: 6 flights, the longest 236\.00 m, at 16\.3 degrees and 2930 rpm",
        r"the model says: \w+",
        r"Converged after \d rounds: 236\.7\d m, at 1[67]\.\d degrees and 2[23]\d\d rpm\.",
        r"the longest of 441 flights on a grid: 236\.72 m",
    ],
    "10_two_models.py": [
        "Explain why ice floats on water",
        r"3\. \w+",
        r"The judge says: \w+",
        r"Draft 1 is kept: the judge names none\.",
        "Model drafter: 3 prompts",
        "Model judge: 3 prompts",
    ],
    "13_chat.py": [
        r"you +What is energy\?\nmodel  \w+",
        r"you +Why is the sky blue\?\nmodel  \w+",
        r"The model is shut down\.",
    ],
    "14_tools.py": [
        r'calls period \{"length": 2\.5\}',
        r"gets 7874 kg/m3",
        r"Answer: The tools returned: 3\.172; 7874 kg/m3\.",
        r"gets \d{4}-\d\d-\d\d",
    ],
}
KEY_LINES_OF_DASK = [
    r"400000 samples: mean 0\.002, spread 1\.000",
    r"An existing cluster at tcp://127\.0\.0\.1:\d+",
    "an executable on Linux",
    r"it still has 1 worker\(s\)",
]
KEY_LINES_OF_VLLM = [
    r"Serving at http://127\.0\.0\.1:\d+",
    r"Agent 1 calls (period\(\d+\): [\d.]+ s|factor\((\d+)\): \2:)",
    r"Agent 3 was asked: .+\n  and says: .+",
]
KEY_LINES_OF_LANGGRAPH = [
    r"The model calls period \{'length': 2\.5\}",
    r"machine returns \w+",
    r"Answer: The tools returned: 3\.172 s, computed by process \d+; \w+\.",
    r"Tasks: \{'DONE': 2\}",
]
KEY_LINES_UNDER_DRAGON = {
    "08_dragon.py": [
        r"pi is about 3\.1\d+: 200 tasks in [\d.]+ s",
        "An executable on Linux",
        r"Rank 3 of 4: pi is about 3\.\d+",
        r"All 4 ranks together: pi is about 3\.1\d+",
    ],
}


def test_every_example_is_tested() -> None:
    run = [*KEY_LINES, *KEY_LINES_UNDER_DRAGON, "11_agents.py", "12_dask.py"]
    run.append("16_langgraph.py")
    assert sorted(EXAMPLES) == sorted(run)


def test_table_of_examples_is_complete_and_ordered() -> None:
    table = (ROOT / "examples" / "README.md").read_text()
    assert re.findall(r"^\| \[(\w+\.py)\]\(\1\) \|", table, re.M) == EXAMPLES
    assert re.findall(r"^## (\w+\.py)$", table, re.M) == EXAMPLES


@pytest.mark.parametrize("name", EXAMPLES)
def test_docstring_names_requirements_and_duration(name: str) -> None:
    docstring = ast.get_docstring(ast.parse((ROOT / "examples" / name).read_text()))
    assert docstring is not None
    assert re.search(r"\bneeds\b", docstring, re.I)
    assert re.search(r"\bTakes\s", docstring)


@pytest.mark.parametrize("name", KEY_LINES)
def test_example_runs_as_documented(name: str, tmp_path: Path) -> None:
    run = run_as_documented(name, tmp_path, KEY_LINES[name])
    assert not WARNING.search(run.stderr), run.stderr


@pytest.mark.dask
def test_dask_example_runs_as_documented(tmp_path: Path) -> None:
    # Its stderr is not checked: on a busy machine Dask warns about workers that are slow to end.
    run_as_documented("12_dask.py", tmp_path, KEY_LINES_OF_DASK)


@pytest.mark.dask
def test_dask_example_accepts_scheduler_address(tmp_path: Path) -> None:
    from distributed import LocalCluster

    with LocalCluster(
        processes=False, protocol="tcp://", host="127.0.0.1", dashboard_address=None
    ) as cluster:
        address = cluster.scheduler_address
        lines = [f"An existing cluster at {address}", "a function on Python"]
        run_as_documented("12_dask.py", tmp_path, lines, address)


def test_langgraph_example_runs_as_documented(tmp_path: Path) -> None:
    pytest.importorskip("langgraph", reason="pip install langgraph langchain-openai")
    run_as_documented("16_langgraph.py", tmp_path, KEY_LINES_OF_LANGGRAPH)


@pytest.mark.vllm
@pytest.mark.slow
@pytest.mark.timeout(360)
def test_vllm_example_runs_as_documented(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    set_environment(monkeypatch)
    run_as_documented("11_agents.py", tmp_path, KEY_LINES_OF_VLLM, timeout=340)


def run_as_documented(
    name: str, folder: Path, lines: list[str], *arguments: str, timeout: float = 50
) -> "subprocess.CompletedProcess[str]":
    path = ROOT / "examples" / name
    # The command is for the root of the checkout, but the tests run in another folder.
    assert f"\n    python examples/{name}\n" in path.read_text()
    run = subprocess.run(
        [sys.executable, path, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONWARNINGS": "default", "COLUMNS": "200"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    for line in lines:
        assert re.search(line, run.stdout), f"no {line!r} in:\n{run.stdout}"
    assert [path.name for path in folder.iterdir()] == WRITTEN.get(name, [])
    return run


@pytest.mark.dragon
@pytest.mark.timeout(120)
@pytest.mark.parametrize("name", KEY_LINES_UNDER_DRAGON)
def test_dragon_example_runs_as_documented(name: str, tmp_path: Path) -> None:
    path = ROOT / "examples" / name
    assert f"\n    dragon examples/{name}\n" in path.read_text()
    with under_dragon(
        str(path), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=tmp_path
    ) as launcher:
        said, _ = launcher.communicate(timeout=100)
    assert launcher.returncode == 0, said
    for line in KEY_LINES_UNDER_DRAGON[name]:
        assert re.search(line, said), f"no {line!r} in:\n{said}"


def test_quickstart_reports_progress_on_stderr(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, ROOT / "examples" / "01_quickstart.py"],
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert re.search(r"dragon_vllm: 5000 done, [\d.,]+/s, [\d.]+ prompts a batch", run.stderr)
    assert "\x1b" not in run.stdout + run.stderr


@pytest.mark.parametrize(
    ("name", "missing", "advice"),
    [
        ("05_openai_client.py", "openai", "pip install openai"),
        ("08_dragon.py", "dragon", 'pip install ".[dragon]"'),
        ("11_agents.py", "openai", "pip install openai"),
        ("11_agents.py", "transformers", 'pip install ".[vllm-dragon]"'),
        ("12_dask.py", "distributed", 'pip install ".[dask]"'),
        ("16_langgraph.py", "langgraph", "pip install langgraph langchain-openai"),
    ],
)
def test_example_names_missing_package(
    name: str, missing: str, advice: str, tmp_path: Path
) -> None:
    start = (
        f"import runpy, sys; sys.modules[{missing!r}] = None; "
        "runpy.run_path(sys.argv.pop(), run_name='__main__')"
    )
    run = subprocess.run(
        [sys.executable, "-c", start, ROOT / "examples" / name],
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert run.returncode == 1
    assert advice in run.stderr.splitlines()[-1], run.stderr


@pytest.mark.parametrize(
    "end", ["/quit\n", "\x04", signal.SIGINT], ids=["quit", "ctrl-d", "ctrl-c"]
)
def test_chat_in_terminal_ends_on_request(end: str | signal.Signals) -> None:
    ours, terminal = pty.openpty()
    with (
        os.fdopen(ours, "r+b", buffering=0) as screen,
        subprocess.Popen(
            [sys.executable, ROOT / "examples" / "13_chat.py"],
            stdin=terminal,
            stdout=terminal,
            stderr=terminal,
            env={**os.environ, "TERM": "dumb"},  # no codes for colours between the words
        ) as chat,
    ):
        os.close(terminal)
        try:
            see(screen, "you    ")
            screen.write(b"What is energy?\n")
            see(screen, "model", "you    ")  # the model may write "you", too
            if isinstance(end, signal.Signals):
                chat.send_signal(end)
            else:
                screen.write(end.encode())
            said = see(screen, "The model is shut down.")
            assert "Traceback" not in said
            assert chat.wait(20) == 0
        finally:
            chat.kill()  # it has ended, unless the test fails


def see(screen: IO[bytes], *texts: str) -> str:
    """Read a program's output until it contains each text, in this order."""
    shown = ""
    for text in texts:
        begin = len(shown)
        while text not in shown[begin:]:
            shown += screen.read(1).decode()
    return shown
