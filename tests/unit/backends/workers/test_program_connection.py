"""A worker's side of its connection."""

import os
import pickle
import socket
import sys
import uuid
from collections.abc import Iterator

import pytest

from rhapsody.backends.workers import program_connection
from rhapsody.backends.workers.messages import (
    PLAIN_VALUE,
    READY,
    RUNNING,
    STOP,
    WorkerMessage,
    WorkerMessageDecoder,
    encode_message,
    frame,
)
from rhapsody.backends.workers.program_connection import ProgramConnection, connect

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has abstract sockets")


@pytest.fixture
def address() -> str:
    return f"\0rhapsody-test-{uuid.uuid4().hex}"


@pytest.fixture
def listener(address: str) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen()
        listener.settimeout(10)
        yield listener


def receive(program: socket.socket, count: int) -> list[WorkerMessage]:
    program.settimeout(10)
    decoder, messages = WorkerMessageDecoder(), list[WorkerMessage]()
    while len(messages) < count:
        messages += decoder.feed(program.recv(1000))
    return messages


def test_ready_is_sent_first(listener: socket.socket, address: str) -> None:
    connection = ProgramConnection(7, connect(address))
    with listener.accept()[0] as program:
        ((number, kind, _, payload),) = receive(program, 1)
    assert (number, kind, pickle.loads(payload)) == (7, READY, os.getpid())
    connection.close_in_child()


def test_messages_are_sent_by_the_next_flush(listener: socket.socket, address: str) -> None:
    connection = ProgramConnection(7, connect(address))
    with listener.accept()[0] as program:
        receive(program, 1)
        connection.write(1, RUNNING)
        connection.write(1, PLAIN_VALUE, 0.5, b"payload")
        program.setblocking(False)
        with pytest.raises(BlockingIOError):
            program.recv(1)
        connection.flush()
        assert receive(program, 2) == [(1, RUNNING, 0.0, b""), (1, PLAIN_VALUE, 0.5, b"payload")]
    connection.close_in_child()


def test_read_returns_messages_and_none_at_the_end(listener: socket.socket, address: str) -> None:
    connection = ProgramConnection(7, connect(address))
    with listener.accept()[0] as program:
        program.sendall(frame(encode_message(STOP)))
        assert connection.read() == (STOP,)
    assert connection.read() is None
    connection.close_in_child()


def test_messages_to_a_program_that_has_ended_are_dropped() -> None:
    program, inherited = socket.socketpair()
    program.close()
    connection = ProgramConnection(7, inherited)
    connection.write(1, RUNNING)
    connection.flush()
    assert connection.read() is None
    connection.close_in_child()


def test_socket_without_listener_is_an_error(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(program_connection, "CONNECT_SECONDS", 0.0)
    with pytest.raises(ConnectionRefusedError):
        ProgramConnection(7, connect(address))


def test_listener_of_another_user_is_refused(
    listener: socket.socket, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(program_connection, "is_of_this_user", lambda connection: False)
    with pytest.raises(PermissionError, match="another user"):
        ProgramConnection(7, connect(address))
