"""The local launcher: a server's process, its group, its log and its leash."""

import sys
from pathlib import Path

import psutil
import pytest

from rhapsody.inference.launchers.local import ChildProcess, LocalLauncher, local_gpus
from rhapsody.inference.placement import Host, Place

PARENT = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print(child.pid, flush=True)
time.sleep(60)
"""


async def launch(script: str, folder: Path, **environment: str) -> ChildProcess:
    return await LocalLauncher().launch(
        [sys.executable, "-c", script], environment, folder / "server.log", folder / "socket"
    )


async def test_output_goes_to_the_log(tmp_path: Path) -> None:
    server = await launch("import sys; print('out'); print('err', file=sys.stderr)", tmp_path)
    assert await server.wait() == 0
    assert sorted(server.log_tail().split()) == ["err", "out"]
    await server.end()


async def test_the_tail_of_a_log_is_its_end(tmp_path: Path) -> None:
    server = await launch("print('x' * 100_000); print('the end \\udcff'.encode())", tmp_path)
    await server.wait()
    tail = server.log_tail()
    assert len(tail) < 5000
    await server.end()


async def test_variables_are_added_to_this_processs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("INHERITED", "1")
    script = "import os; print(os.environ['INHERITED'], os.environ['ADDED'])"
    server = await launch(script, tmp_path, ADDED="2")
    await server.wait()
    assert server.log_tail() == "1 2"
    await server.end()


async def test_the_end_of_a_server_is_the_end_of_its_children(tmp_path: Path) -> None:
    server = await launch(PARENT, tmp_path)
    while not server.log_tail():
        assert psutil.pid_exists(server.pid)
    child = psutil.Process(int(server.log_tail()))
    await server.end()
    assert await server.wait() < 0
    child.wait(10)


async def test_one_that_ignores_the_polite_signal_is_killed(tmp_path: Path) -> None:
    script = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
        "print('deaf', flush=True); time.sleep(60)"
    )
    server = await launch(script, tmp_path)
    while "deaf" not in server.log_tail():
        assert psutil.pid_exists(server.pid)
    await server.end(grace=0.1)
    assert await server.wait() == -9


async def test_what_has_ended_is_not_signalled_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = await launch("pass", tmp_path)
    await server.wait()
    await server.end()
    signalled: list[int] = []
    monkeypatch.setattr(
        "rhapsody.inference.launchers.local.end_group", lambda pid, sig: signalled.append(pid)
    )
    await server.end()
    server.kill()
    assert signalled == []  # the number may be another's by now


async def test_a_program_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        await LocalLauncher().launch(
            ["/no/such/program"], {}, tmp_path / "log", tmp_path / "socket"
        )


def with_smi(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Put an nvidia-smi on the path that does as a test says."""
    program = folder / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/bin:/usr/bin")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def test_the_gpus_with_the_most_free_memory_come_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_smi(tmp_path, monkeypatch, 'printf "0, 70000\\n1, 3\\n2, 500\\n3, 40000\\n"')
    assert local_gpus() == (1, 2, 3, 0)


@pytest.mark.parametrize("script", ["exit 9", "echo No devices were found"])
def test_a_driver_that_does_not_answer_means_no_gpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str
) -> None:
    with_smi(tmp_path, monkeypatch, script)
    assert local_gpus() == ()


@pytest.mark.parametrize(
    ("variable", "gpus"),
    [("2,3", ("2", "3")), ("", ()), ("-1", ()), ("GPU-ab,GPU-cd", ("GPU-ab", "GPU-cd"))],
)
def test_the_variable_says_which_gpus_may_be_used(
    monkeypatch: pytest.MonkeyPatch, variable: str, gpus: tuple[str, ...]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", variable)
    assert local_gpus() == gpus


async def test_a_server_sees_the_gpus_of_its_place(tmp_path: Path) -> None:
    launcher = LocalLauncher(Place(Host("here", (0, 1, 2)), (1, 2)))
    script = "import os; print(os.environ['CUDA_VISIBLE_DEVICES'])"
    log, socket = tmp_path / "log", tmp_path / "socket"
    server = await launcher.launch([sys.executable, "-c", script], {}, log, socket)
    await server.wait()
    assert server.log_tail() == "1,2"
    await server.end()
