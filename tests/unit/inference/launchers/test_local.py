"""The local launcher: a server's process, its process group, its log, and its GPUs."""

import sys
from pathlib import Path

import psutil
import pytest

from rhapsody.allocation import Node
from rhapsody.inference.launchers.local import LocalLauncher, LocalProcess
from rhapsody.inference.replicas.placement import Place
from tests.support.waiting import until

PARENT = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print(child.pid, flush=True)
time.sleep(60)
"""


async def launch(script: str, folder: Path, **environment: str) -> LocalProcess:
    return await LocalLauncher().launch(
        [sys.executable, "-c", script], environment, folder / "server.log", folder / "socket"
    )


async def test_output_goes_to_the_log(tmp_path: Path) -> None:
    server = await launch("import sys; print('out'); print('err', file=sys.stderr)", tmp_path)
    assert await server.wait() == 0
    assert sorted(server.log_tail().split()) == ["err", "out"]
    await server.stop()


async def test_log_tail_is_the_end_of_the_log(tmp_path: Path) -> None:
    server = await launch("print('x' * 100_000); print('the end \\udcff'.encode())", tmp_path)
    await server.wait()
    tail = server.log_tail()
    assert len(tail) < 5000
    await server.stop()


async def test_variables_are_added_to_inherited_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("INHERITED", "1")
    script = "import os; print(os.environ['INHERITED'], os.environ['ADDED'])"
    server = await launch(script, tmp_path, ADDED="2")
    await server.wait()
    assert server.log_tail() == "1 2"
    await server.stop()


def test_server_starts_on_a_loop_of_another_kind(tmp_path: Path) -> None:
    uvloop = pytest.importorskip("uvloop")

    async def run() -> int:
        server = await launch("print('out')", tmp_path)
        try:
            return await server.wait()
        finally:
            await server.stop()

    loop = uvloop.new_event_loop()
    try:
        assert loop.run_until_complete(run()) == 0
    finally:
        loop.close()


async def test_stop_ends_children_of_the_server(tmp_path: Path) -> None:
    server = await launch(PARENT, tmp_path)
    await until(server.log_tail)
    child = psutil.Process(int(server.log_tail()))
    await server.stop()
    assert await server.wait() < 0
    child.wait(10)


async def test_stop_kills_server_ignoring_sigterm(tmp_path: Path) -> None:
    script = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
        "print('deaf', flush=True); time.sleep(60)"
    )
    server = await launch(script, tmp_path)
    await until(lambda: "deaf" in server.log_tail())
    await server.stop(grace=0.1)
    assert await server.wait() == -9


async def test_stopped_server_gets_no_signals(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = await launch("pass", tmp_path)
    await server.wait()
    await server.stop()
    signalled: list[int] = []
    monkeypatch.setattr(
        "rhapsody.inference.launchers.local.signal_group", lambda pid, sig: signalled.append(pid)
    )
    await server.stop()
    server.kill()
    assert signalled == []  # its id may belong to another process


async def test_missing_program_raises_os_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        await LocalLauncher().launch(
            ["/no/such/program"], {}, tmp_path / "log", tmp_path / "socket"
        )


async def test_server_sees_the_gpus_of_its_place(tmp_path: Path) -> None:
    launcher = LocalLauncher(Place(Node("here", gpus=(0, 1, 2)), (1, 2)))
    script = "import os; print(os.environ['CUDA_VISIBLE_DEVICES'])"
    log, socket = tmp_path / "log", tmp_path / "socket"
    server = await launcher.launch([sys.executable, "-c", script], {}, log, socket)
    await server.wait()
    assert server.log_tail() == "1,2"
    await server.stop()
