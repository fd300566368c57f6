"""The process of a vLLM server: its sockets, and its end with its parent; vLLM is replaced."""

import fcntl
import os
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from rhapsody.inference.protocol.process import PARENT_VARIABLE
from rhapsody.inference.vllm import server, versions
from tests.support.processes import wait_gone
from tests.support.waiting import until_blocking

PROGRAM = """
import subprocess, sys, time
from rhapsody.inference.vllm import server, versions

def run_serve():
    child = subprocess.Popen(["sleep", "60"])
    print(child.pid, sys.argv, flush=True)
    time.sleep(60)

versions.run_serve = run_serve
server.END_SECONDS = 0.2
server.main()
"""


@contextmanager
def serving() -> Iterator[tuple[subprocess.Popen[str], int, int]]:
    """Start a server in its own process group, and close its pipe at the end.

    Yields:
        The server, its child's process id, and the parent's end of the pipe.
    """
    read_end, write_end = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, "serve", "model"],
        env={**os.environ, PARENT_VARIABLE: str(read_end)},
        pass_fds=(read_end,),
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    os.close(read_end)
    with process:
        assert process.stdout is not None
        try:
            child, _, arguments = process.stdout.readline().partition(" ")
            assert arguments.strip() == "['vllm', 'serve', 'model']"
            yield process, int(child), write_end
        finally:
            os.close(write_end)
            process.wait(10)


def test_server_and_its_children_end_when_the_parent_is_gone() -> None:
    with serving() as (process, child, _):
        assert process.poll() is None
    assert process.returncode != 0
    assert wait_gone(process.pid, child) == []


def test_data_in_the_parent_pipe_does_not_end_the_server() -> None:
    with serving() as (process, child, pipe):
        os.write(pipe, b"still here")
        until_blocking(lambda: _unread_bytes(pipe) == 0)
        assert process.poll() is None
    assert wait_gone(process.pid, child) == []


def _unread_bytes(pipe: int) -> int:
    number: int = struct.unpack("i", fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)))[0]
    return number


@pytest.fixture
def arguments(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The command line; vLLM is not run."""
    given = ["server.py", "serve", "model"]
    monkeypatch.setattr(sys, "argv", given)
    monkeypatch.setattr(versions, "run_serve", lambda: None)
    monkeypatch.delenv("VLLM_RPC_BASE_PATH", raising=False)
    monkeypatch.delenv(PARENT_VARIABLE, raising=False)
    return given


@pytest.fixture
def rpc_path(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    yield
    os.environ.pop("VLLM_RPC_BASE_PATH", None)


@pytest.mark.usefixtures("rpc_path")
def test_sockets_of_vllm_are_beside_the_server_socket(arguments: list[str]) -> None:
    arguments += ["--uds", "/tmp/private/replica.sock"]
    server.main()
    assert os.environ["VLLM_RPC_BASE_PATH"] == "/tmp/private"
    assert arguments[0] == "vllm"


@pytest.mark.usefixtures("rpc_path")
def test_sockets_of_vllm_stay_if_the_path_is_too_long(arguments: list[str]) -> None:
    arguments += ["--uds", str(Path("/tmp") / ("x" * 80) / "replica.sock")]
    server.main()
    assert "VLLM_RPC_BASE_PATH" not in os.environ


@pytest.mark.usefixtures("rpc_path")
def test_server_on_a_port_leaves_the_sockets_of_vllm(arguments: list[str]) -> None:
    server.main()
    assert "VLLM_RPC_BASE_PATH" not in os.environ
