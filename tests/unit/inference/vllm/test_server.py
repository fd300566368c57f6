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
import multiprocessing, subprocess, sys, time
from multiprocessing import resource_tracker
from multiprocessing.shared_memory import SharedMemory
from rhapsody.inference.vllm import server, versions

def run_serve():
    memory = SharedMemory(create=True, size=10)
    semaphore = multiprocessing.get_context("spawn").Semaphore()
    # As if the tracker had been killed.
    resource_tracker.unregister(memory._name, "shared_memory")
    resource_tracker.unregister(semaphore._semlock.name, "semaphore")
    child = subprocess.Popen(["sleep", "60"])
    print(child.pid, memory.name, semaphore._semlock.name, sys.argv, flush=True)
    time.sleep(60)

versions.run_serve = run_serve
server.END_SECONDS = 0.2
server.main()
"""


@contextmanager
def serving() -> Iterator[tuple[subprocess.Popen[str], int, int, list[Path]]]:
    """Start a server in its own process group, and close its pipe at the end.

    Yields:
        The server, its child's process id, the parent's end of the pipe, and the files of the
        server's shared memory.
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
            child, memory, semaphore, arguments = process.stdout.readline().split(" ", 3)
            assert arguments.strip() == "['vllm', 'serve', 'model']"
            files = [Path("/dev/shm", memory), Path(f"/dev/shm/sem.{semaphore.lstrip('/')}")]
            yield process, int(child), write_end, files
        finally:
            os.close(write_end)
            process.wait(10)


def test_server_and_its_children_end_when_the_parent_is_gone() -> None:
    with serving() as (process, child, *_):
        assert process.poll() is None
    assert process.returncode != 0
    assert wait_gone(process.pid, child) == []


def test_shared_memory_of_a_killed_server_is_removed() -> None:
    with serving() as (*_, files):
        assert all(file.exists() for file in files)
    until_blocking(lambda: not any(file.exists() for file in files))


def test_data_in_the_parent_pipe_does_not_end_the_server() -> None:
    with serving() as (process, child, pipe, _):
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
