"""The agent of a node: messages in both directions, and its end with the program."""

import asyncio
import pickle
import socket
import subprocess
import sys
import threading
import uuid
from typing import Any

import pytest

from rhapsody.backends.dragon import agent
from rhapsody.backends.workers.messages import (
    PLAIN_VALUE,
    READY,
    MessageBatch,
    encode_worker_message,
    frame,
)
from tests.support.fake_dragon import FakeQueue

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has abstract sockets")


@pytest.mark.usefixtures("dragon_modules")
def test_agent_passes_messages_in_both_directions() -> None:
    outbox, address = FakeQueue(), f"\0rhapsody-test-{uuid.uuid4().hex}"
    running = threading.Thread(target=asyncio.run, args=(agent._serve("b", address, outbox),))
    running.start()
    node, inbox = pickle.loads(outbox.get(timeout=10))
    assert node == "b"
    with socket.socket(socket.AF_UNIX) as worker:
        worker.settimeout(10)
        worker.connect(address)
        worker.sendall(encode_worker_message(7, READY, 0.0, pickle.dumps(1000)))
        worker.sendall(encode_worker_message(1, PLAIN_VALUE, 0.5, b"payload"))
        received: list[tuple[int, Any]] = []
        while len(received) < 2:
            batches: list[MessageBatch] = pickle.loads(outbox.get(timeout=10))
            received += [(number, message) for number, many in batches for message in many]
        assert [number for number, _ in received] == [7, 7]
        assert pickle.loads(received[0][1][3]) == (1000, "b")
        assert received[1][1] == (1, PLAIN_VALUE, 0.5, b"payload")
        inbox.put(pickle.dumps((7, b"message")))
        assert worker.recv(100) == frame(b"message")
        inbox.put(b"")
        assert worker.recv(1) == b""
    running.join(10)
    assert not running.is_alive()


def test_wait_for_any_returns_when_a_process_has_ended() -> None:
    with (
        subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as first,
        subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as second,
    ):
        waiting = threading.Thread(target=agent._wait_for_any, args=([first.pid, second.pid],))
        waiting.start()
        waiting.join(0.2)
        assert waiting.is_alive()
        second.kill()
        waiting.join(10)
        assert not waiting.is_alive()
        first.kill()


def test_wait_for_any_returns_at_once_if_a_process_does_not_exist() -> None:
    with subprocess.Popen(["/bin/true"]) as ended:
        ended.wait()
    agent._wait_for_any([ended.pid])
