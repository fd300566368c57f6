"""The Dragon launcher under a real `dragon` command, on this machine."""

import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import dragon_program
from tests.support.on_dragon import under_dragon
from tests.support.processes import wait_gone

pytestmark = [pytest.mark.dragon, pytest.mark.slow, pytest.mark.timeout(120)]


@contextlib.contextmanager
def program(name: str, folder: Path) -> Iterator["subprocess.Popen[str]"]:
    """Run a program under `dragon`."""
    with under_dragon(
        str(dragon_program.__file__),
        name,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd=folder,
        tmpdir=str(folder),
    ) as running:
        yield running


def message_in(line: str) -> dict[str, Any] | None:
    # Dragon forwards output in pieces, so other text may precede a line of the program.
    with contextlib.suppress(ValueError):
        found = json.loads(line[line.index("{") :])
        # The log of a killed server has a line of JSON, too.
        return found if isinstance(found, dict) and "listening" not in found else None
    return None


def test_local_and_remote_servers(tmp_path: Path) -> None:
    with program("local_and_remote", tmp_path) as running:
        output, _ = running.communicate(timeout=100)
    assert running.returncode == 0, output
    found = list(filter(None, map(message_in, output.splitlines())))
    assert len(found) == 3, output
    local, remote, beyond = found
    assert local["responses"] == remote["responses"] == 100
    assert all(address.startswith("unix:") for address in local["addresses"])
    assert all(address.startswith("http://") for address in remote["addresses"])
    assert len(set(local["nodes"])) == 1
    assert wait_gone(*local["pids"], *remote["pids"]) == []
    assert "num_nodes=1 from offset=1 needs 2 nodes, and there is 1" in beyond["refused"]


def test_servers_end_with_the_program(tmp_path: Path) -> None:
    with program("until_killed", tmp_path) as running:
        assert running.stdout is not None
        found = next(filter(None, map(message_in, running.stdout)))
        os.kill(found["head"], signal.SIGKILL)
        assert wait_gone(*found["pids"]) == []


@pytest.mark.vllm
@pytest.mark.timeout(360)
def test_session_on_vllm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.support.vllm_servers import set_environment

    set_environment(monkeypatch)
    with program("vllm", tmp_path) as running:
        output, _ = running.communicate(timeout=330)
    assert running.returncode == 0, output
    [found] = filter(None, map(message_in, output.splitlines()))
    assert found["responses"] == 16
    assert found["echo"] == "Hello from Dragon!\n"
    assert wait_gone(*found["pids"]) == []
