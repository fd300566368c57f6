"""The address that a worker started by Dragon connects to, and the signals that it sends."""

import os
import pickle
import posix
import signal
import subprocess
from collections.abc import Callable
from functools import partial

import pytest

from rhapsody.backends.dragon import worker_process
from rhapsody.backends.workers import worker
from rhapsody.backends.workers.worker import WorkerSetup
from tests.support.fake_dragon import HOST_ID


@pytest.mark.usefixtures("dragon_modules")
def test_address_is_unique_for_run_and_node() -> None:
    assert worker_process.node_address("run") == f"\0run-{HOST_ID:x}"


@pytest.mark.usefixtures("dragon_modules")
def test_worker_gets_the_address_of_its_own_node(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[object] = []
    monkeypatch.setattr(worker_process, "keep_runtime_alive", lambda: done.append("signals"))
    monkeypatch.setattr(worker_process, "relay_stdio", lambda: done.append("relay"))
    monkeypatch.setattr(worker_process, "connect", lambda address: address)
    monkeypatch.setattr(worker, "serve", lambda *arguments: done.append(arguments))
    setup = WorkerSetup(3, "run", ("/path",))
    worker_process.serve(setup)
    assert done == ["signals", "relay", (setup, f"\0run-{HOST_ID:x}")]


KILLPG_FROM_PICKLE = partial(pickle.loads, pickle.dumps(os.killpg))


@pytest.fixture
def _protected(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (os, posix):  # so that they are restored
        monkeypatch.setattr(module, "kill", os.kill)
        monkeypatch.setattr(module, "killpg", os.killpg)
    worker_process.keep_runtime_alive()


@pytest.mark.usefixtures("_protected")
@pytest.mark.parametrize(
    "end_group",
    [
        lambda: os.killpg(0, signal.SIGKILL),
        lambda: KILLPG_FROM_PICKLE()(0, signal.SIGKILL),
        lambda: os.killpg(os.getpgrp(), signal.SIGKILL),
        lambda: os.kill(0, signal.SIGTERM),
        lambda: os.kill(-os.getpgrp(), signal.SIGTERM),
    ],
    ids=["killpg 0", "pickled", "killpg", "kill 0", "kill -group"],
)
def test_task_cannot_signal_the_group_of_the_runtime(end_group: Callable[[], None]) -> None:
    with pytest.raises(PermissionError, match="shares its process group with the Dragon runtime"):
        end_group()


@pytest.mark.usefixtures("_protected")
def test_task_can_signal_other_processes() -> None:
    os.killpg(os.getpgrp(), 0)  # only asks whether the group exists
    os.kill(os.getpid(), 0)
    for send in (os.kill, os.killpg):
        with subprocess.Popen(["/bin/sleep", "60"], start_new_session=True) as child:
            send(child.pid, signal.SIGKILL)
        assert child.returncode == -signal.SIGKILL


@pytest.mark.usefixtures("_protected")
def test_functions_that_send_signals_can_be_pickled_in_a_worker() -> None:
    for send in (os.kill, os.killpg):
        assert pickle.loads(pickle.dumps(send)) is send
    assert os.kill.__name__ == "kill"
