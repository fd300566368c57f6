"""The connections of one node's workers: messages in both directions, and disconnections."""

import asyncio
import errno
import logging
import os
import pickle
import socket
import subprocess
import sys
import textwrap
import uuid
from collections.abc import AsyncIterator
from types import SimpleNamespace

import pytest
import pytest_asyncio

from rhapsody.backends.workers import connections as connections_module
from rhapsody.backends.workers.connections import Connections, is_of_this_user
from rhapsody.backends.workers.messages import (
    DISCONNECTED,
    PLAIN_VALUE,
    READY,
    RUNNING,
    WorkerMessage,
    encode_worker_message,
    frame,
)
from tests.support.waiting import until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has abstract sockets")


class Received:
    """Collects the messages that connections pass on."""

    def __init__(self) -> None:
        self.messages: list[tuple[int, WorkerMessage]] = []
        self.passes = 0

    def __call__(self, number: int, messages: list[WorkerMessage]) -> None:
        self.passes += 1
        self.messages += [(number, message) for message in messages]

    def kinds(self, number: int) -> list[int]:
        return [message[1] for sender, message in self.messages if sender == number]


@pytest.fixture
def received() -> Received:
    return Received()


@pytest.fixture
def address() -> str:
    return f"\0rhapsody-test-{uuid.uuid4().hex}"


@pytest_asyncio.fixture
async def connections(received: Received, address: str) -> AsyncIterator[Connections]:
    connections = Connections("here", address, received)
    yield connections
    connections.close()


async def connect(connections: Connections, address: str, number: int) -> socket.socket:
    worker = socket.socket(socket.AF_UNIX)
    worker.connect(address)
    worker.sendall(encode_worker_message(number, READY, 0.0, pickle.dumps(os.getpid())))
    await until(lambda: number in connections.by_number)
    return worker


async def test_ready_message_gets_the_name_of_the_node(
    connections: Connections, address: str, received: Received
) -> None:
    with await connect(connections, address, 7):
        await until(lambda: bool(received.messages))
        ((number, (call_id, kind, _, payload)),) = received.messages
        assert (number, call_id, kind) == (7, 7, READY)
        assert pickle.loads(payload) == (os.getpid(), "here")


async def test_short_calls_are_not_reported_as_running(
    connections: Connections, address: str, received: Received
) -> None:
    with await connect(connections, address, 1) as worker:
        await until(lambda: bool(received.messages))
        worker.sendall(
            b"".join(
                encode_worker_message(call_id, RUNNING)
                + encode_worker_message(call_id, PLAIN_VALUE)
                for call_id in range(100)
            )
        )
        await until(lambda: len(received.messages) == 101)
        assert received.kinds(1)[1:] == [PLAIN_VALUE] * 100
        assert received.passes == 2


async def test_messages_of_a_worker_are_read_after_its_end(
    connections: Connections, address: str, received: Received
) -> None:
    with await connect(connections, address, 1) as worker:
        worker.sendall(encode_worker_message(3, PLAIN_VALUE) + encode_worker_message(4, RUNNING))
    await until(lambda: DISCONNECTED in received.kinds(1))
    assert received.kinds(1) == [READY, PLAIN_VALUE, RUNNING, DISCONNECTED]
    assert not connections.by_number


async def test_long_call_is_reported_while_it_runs(
    connections: Connections, address: str, received: Received
) -> None:
    with await connect(connections, address, 1) as worker:
        worker.sendall(encode_worker_message(3, RUNNING))
        await until(lambda: RUNNING in received.kinds(1))


async def receive(worker: socket.socket, count: int) -> bytes:
    received = bytearray()

    def read() -> None:
        while len(received) < count and (data := worker.recv(100_000)):
            received.extend(data)

    await asyncio.wait_for(asyncio.to_thread(read), 30)
    return bytes(received)


async def test_message_is_sent_to_the_worker_of_its_number(
    connections: Connections, address: str
) -> None:
    with (
        await connect(connections, address, 1) as first,
        await connect(connections, address, 2) as second,
    ):
        connections.send(2, b"second")
        connections.send(1, b"first")
        assert await receive(first, len(frame(b"first"))) == frame(b"first")
        assert await receive(second, len(frame(b"second"))) == frame(b"second")


async def test_large_message_waits_for_a_slow_reader(
    connections: Connections, address: str
) -> None:
    message = os.urandom(5_000_000)
    with await connect(connections, address, 1) as worker:
        connections.send(1, message)
        connections.send(1, b"next")
        expected = frame(message) + frame(b"next")
        assert await receive(worker, len(expected)) == expected


async def test_message_to_a_disconnected_worker_is_dropped(
    connections: Connections, address: str, caplog: pytest.LogCaptureFixture
) -> None:
    with await connect(connections, address, 1):
        connection = connections.by_number[1]
    await until(lambda: not connections.by_number)
    connection.write(b"late")
    connections.send(1, b"late")
    with await connect(connections, address, 2) as other:
        connections.send(2, b"in time")
        assert await receive(other, len(frame(b"in time"))) == frame(b"in time")
    assert not caplog.records


async def test_connection_is_accepted_later_without_spinning_if_descriptors_are_used_up(
    connections: Connections,
    address: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    attempts = 0

    def accept() -> None:
        nonlocal attempts
        attempts += 1
        raise OSError(errno.EMFILE, "Too many open files")

    listener = connections._listener
    monkeypatch.setattr(connections_module, "ACCEPT_SECONDS", 0.1)
    failing = SimpleNamespace(accept=accept, fileno=listener.fileno)
    monkeypatch.setattr(connections, "_listener", failing)
    with caplog.at_level(logging.ERROR):
        connecting = asyncio.ensure_future(connect(connections, address, 1))
        await until(lambda: bool(caplog.records))
        for _ in range(100):
            await asyncio.sleep(0)
    assert attempts == 1
    assert "is retried: [Errno 24] Too many open files" in caplog.text
    monkeypatch.undo()
    (await connecting).close()


async def test_connection_of_another_user_is_closed(
    connections: Connections, address: str, received: Received, monkeypatch: pytest.MonkeyPatch
) -> None:
    user = os.getuid()
    monkeypatch.setattr(os, "geteuid", lambda: user + 1)
    with socket.socket(socket.AF_UNIX) as other:
        other.connect(address)
        assert not is_of_this_user(other)
        other.settimeout(10)
        assert await asyncio.to_thread(other.recv, 1) == b""
    assert not received.messages


async def test_close_disconnects_workers(address: str, received: Received) -> None:
    connections = Connections("here", address, received)
    with await connect(connections, address, 1) as worker:
        connections.close()
        worker.settimeout(10)
        assert await asyncio.to_thread(worker.recv, 1) == b""
        with socket.socket(socket.AF_UNIX) as late, pytest.raises(ConnectionRefusedError):
            late.connect(address)


FORKING = """
    import asyncio, os, socket, sys
    from rhapsody.backends.workers.connections import Connections

    address = "\\0rhapsody-test-" + sys.argv[1]

    async def main():
        connections = Connections("here", address, print)
        worker = socket.socket(socket.AF_UNIX)
        worker.connect(address)
        while not connections.open:
            await asyncio.sleep(0.01)
        child = os.fork()
        if not child:
            worker.close()
            sys.stdin.read()  # until the test closes it
            os._exit(0)
        connections.close()
        worker.settimeout(10)
        print(worker.recv(1), flush=True)
        sys.stdin.close()
        os.waitpid(child, 0)

    asyncio.run(main())
"""


def test_forked_child_does_not_keep_connections_open() -> None:
    program = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(FORKING), uuid.uuid4().hex]
    with subprocess.Popen(
        program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "b''\n"
        finally:
            process.stdin.close()
            process.wait(20)
