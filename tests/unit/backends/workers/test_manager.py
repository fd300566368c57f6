"""The worker manager without processes; tests/unit/backends/dragon has those with workers."""

import logging
from typing import Any

import pytest

from rhapsody.allocation import Node
from rhapsody.backends.base import BaseBackend
from rhapsody.backends.workers.manager import Limits, WorkerManager
from rhapsody.backends.workers.worker_state import EXCLUSIVE
from tests.support.waiting import until


async def test_message_to_an_unknown_node_is_logged_and_the_manager_goes_on(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[Any] = []
    limits = Limits(workers=1, async_per_worker=1, grace=1.0)
    backend = BaseBackend()
    manager = WorkerManager("test", [Node("here")], limits, lambda work: EXCLUSIVE, backend)
    await manager.start()
    with caplog.at_level(logging.WARNING):
        manager.send_to("elsewhere", 1, "message")
        await until(lambda: "node elsewhere is not known" in caplog.text)
    monkeypatch.setattr(manager, "_deliver_elsewhere", lambda *message: sent.append(message))
    manager.send_to("elsewhere", 2, "message")
    await until(lambda: bool(sent))
    await manager.stop()
