"""The Dragon launcher, under a real `dragon` command on this one machine."""

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
from tests.support.processes import wait_gone
from tests.support.under_dragon import under_dragon

pytestmark = [pytest.mark.dragon, pytest.mark.slow, pytest.mark.timeout(120)]


@contextlib.contextmanager
def program(what: str, folder: Path) -> Iterator["subprocess.Popen[str]"]:
    """Run a program under `dragon`."""
    with under_dragon(
        str(dragon_program.__file__),
        what,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd=folder,
        tmpdir=str(folder),
    ) as running:
        yield running


def told(line: str) -> dict[str, Any] | None:
    # Dragon passes lines on in pieces: something else may stand before one of ours.
    with contextlib.suppress(ValueError):
        found = json.loads(line[line.index("{") :])
        return found if isinstance(found, dict) else None
    return None


def test_servers_near_and_far(tmp_path: Path) -> None:
    with program("near_and_far", tmp_path) as running:
        output, _ = running.communicate(timeout=100)
    assert running.returncode == 0, output
    found = list(filter(None, map(told, output.splitlines())))
    assert len(found) == 3, output
    near, far, beyond = found
    assert near["answers"] == far["answers"] == 100
    assert all(address.startswith("unix:") for address in near["addresses"])
    assert all(address.startswith("http://") for address in far["addresses"])
    assert len(set(near["nodes"])) == 1
    assert wait_gone(*near["pids"], *far["pids"]) == []
    assert "num_nodes=1 from offset=1 needs 2 nodes, and there is 1" in beyond["refused"]


def test_nothing_survives_the_head(tmp_path: Path) -> None:
    with program("until_killed", tmp_path) as running:
        assert running.stdout is not None
        found = next(filter(None, map(told, running.stdout)))
        os.kill(found["head"], signal.SIGKILL)
        assert wait_gone(*found["pids"]) == []


@pytest.mark.vllm
@pytest.mark.timeout(360)
def test_vllm_answers_a_session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.support.vllm_servers import set_environment

    set_environment(monkeypatch)
    with program("vllm", tmp_path) as running:
        output, _ = running.communicate(timeout=330)
    assert running.returncode == 0, output
    [found] = filter(None, map(told, output.splitlines()))
    assert found["responses"] == 16
    assert found["echo"] == "Hello from Dragon!\n"
    assert wait_gone(*found["pids"]) == []
