"""The address that a worker started by Dragon connects to."""

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
    monkeypatch.setattr(worker_process, "relay_stdio", lambda: done.append("relay"))
    monkeypatch.setattr(worker_process, "connect", lambda address: address)
    monkeypatch.setattr(worker, "serve", lambda *arguments: done.append(arguments))
    setup = WorkerSetup(3, "run", ("/path",))
    worker_process.serve(setup)
    assert done == ["relay", (setup, f"\0run-{HOST_ID:x}")]
