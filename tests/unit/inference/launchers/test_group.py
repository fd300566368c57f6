"""A server of several ranks, as small real processes: they start and end together."""

import asyncio
import json
import os
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil
import pytest

from rhapsody.allocation import Node
from rhapsody.inference.launchers import group as group_module
from rhapsody.inference.launchers.group import GroupLauncher, GroupProcess
from rhapsody.inference.launchers.local import LocalLauncher, LocalProcess
from rhapsody.inference.replicas.placement import Place
from tests.support.waiting import until

NODE = Node("this machine", gpus=(0, 1, 2))
PLACE = Place(NODE, (0,), (Place(NODE, (1,)), Place(NODE, (2,))))

RANK = """
import json, os, sys, time
names = ("CUDA_VISIBLE_DEVICES", "VLLM_HOST_IP")
print(json.dumps({"arguments": sys.argv[1:], **{n: os.environ[n] for n in names}}), flush=True)
time.sleep(60)
"""
DEAF = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN);" + RANK
CHILD = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'input()'])\n" + RANK


async def launch(script: str, folder: Path) -> GroupProcess:
    launcher = GroupLauncher(PLACE, [LocalLauncher(rank) for rank in PLACE.ranks])
    command = [sys.executable, "-c", script]
    return await launcher.launch(command, {}, folder / "server.log", folder / "server.sock")


def logs(folder: Path) -> list[Path]:
    return [folder / name for name in ("server.log", "server.rank1.log", "server.rank2.log")]


async def until_started(folder: Path) -> None:
    await until(lambda: all(log.exists() and log.read_text() for log in logs(folder)))


async def test_ranks_know_each_other_and_have_gpus_of_their_own(tmp_path: Path) -> None:
    server = await launch(RANK, tmp_path)
    await until_started(tmp_path)
    said = [json.loads(log.read_text()) for log in logs(tmp_path)]
    await server.stop()
    assert [one["CUDA_VISIBLE_DEVICES"] for one in said] == ["0", "1", "2"]
    assert {one["VLLM_HOST_IP"] for one in said} == {"127.0.0.1"}
    ports = {one["arguments"][7] for one in said}
    assert len(ports) == 1
    for rank, one in enumerate(said):
        expected = ["--nnodes", "3", "--node-rank", str(rank), "--master-addr", "127.0.0.1"]
        assert one["arguments"][:6] == expected
        assert ("--headless" in one["arguments"]) == (rank > 0)


@pytest.mark.parametrize("killed", [0, 1, 2])
async def test_death_of_one_rank_ends_all_at_once(tmp_path: Path, killed: int) -> None:
    server = await launch(DEAF, tmp_path)
    await until_started(tmp_path)
    processes = [psutil.Process(pid) for pid in server.pids]
    os.kill(server.pids[killed], signal.SIGKILL)
    assert await asyncio.wait_for(server.wait(), 30) == -signal.SIGKILL
    began = asyncio.get_running_loop().time()
    await server.stop(grace=600)  # ranks that ignore SIGTERM are not waited for
    assert asyncio.get_running_loop().time() - began < 300
    assert not any(process.is_running() for process in processes)
    assert server.stopped


async def test_children_of_all_ranks_end(tmp_path: Path) -> None:
    server = await launch(CHILD, tmp_path)
    await until_started(tmp_path)
    children = [child for pid in server.pids for child in psutil.Process(pid).children()]
    server.kill()
    await server.wait()
    await server.stop()
    psutil.wait_procs(children, 30)
    assert not any(child.is_running() for child in children)


async def test_log_of_the_rank_that_exited_is_shown(tmp_path: Path) -> None:
    script = """
import sys, time
if "--node-rank" in sys.argv and sys.argv[sys.argv.index("--node-rank") + 1] == "1":
    sys.exit("MemoryError: no room on this rank")
time.sleep(60)
"""
    server = await launch(script, tmp_path)
    assert await asyncio.wait_for(server.wait(), 30) == 1
    assert server.log_tail() == "MemoryError: no room on this rank"
    await server.stop()


async def test_ranks_that_started_are_stopped_if_another_cannot(tmp_path: Path) -> None:
    class Refusing(LocalLauncher):
        async def launch(
            self, command: Sequence[str], environment: Mapping[str, str], log: Path, socket: Path
        ) -> LocalProcess:
            raise OSError("no such node")

    launcher = GroupLauncher(PLACE, [LocalLauncher(), LocalLauncher(), Refusing()])
    command = [sys.executable, "-c", RANK]
    with pytest.raises(OSError, match="no such node"):
        await launcher.launch(command, {}, tmp_path / "server.log", tmp_path / "server.sock")
    marked = str(tmp_path / "server.sock")
    assert not [p for p in psutil.Process().children(True) if marked in _arguments(p)]


def _arguments(process: psutil.Process) -> list[str]:
    try:
        return list(process.cmdline())
    except psutil.Error:
        return []


def test_taken_port_is_not_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        monkeypatch.setattr(group_module, "PORTS", range(port, port + 1))
        with pytest.raises(OSError, match="is free on"):
            group_module._free_port("127.0.0.1")


def test_address_of_an_unknown_node_is_its_name() -> None:
    assert group_module._address_of("no-such-node.invalid") == "no-such-node.invalid"
