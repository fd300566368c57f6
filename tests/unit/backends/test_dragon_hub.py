"""The connections of one host's workers: notes in, messages out, ends that are seen."""

import asyncio
import errno
import os
import pickle
import socket
import subprocess
import sys
import textwrap
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import pytest_asyncio

from rhapsody.backends import dragon_hub
from rhapsody.backends import dragon_wire as wire
from rhapsody.backends.dragon_hub import Bundle, Hub
from tests.support.waiting import until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="sockets without files are Linux's")


@dataclass(frozen=True)
class OneHost:
    socket: str


class Heard:
    def __init__(self) -> None:
        self.notes: list[tuple[int, wire.Note]] = []
        self.bundles = 0

    def __call__(self, bundles: list[Bundle]) -> None:
        self.bundles += 1
        self.notes += [(number, note) for number, notes in bundles for note in notes]

    def words(self, number: int) -> list[int]:
        return [note[1] for sender, note in self.notes if sender == number]


@pytest.fixture
def heard() -> Heard:
    return Heard()


@pytest.fixture
def address() -> OneHost:
    return OneHost(f"\0rhapsody-test-{uuid.uuid4().hex}")


@pytest_asyncio.fixture
async def hub(heard: Heard, address: OneHost) -> AsyncIterator[Hub]:
    hub = Hub("here", address, heard)  # type: ignore[arg-type]
    yield hub
    hub.close()


async def connect(hub: Hub, address: OneHost, number: int) -> socket.socket:
    worker = socket.socket(socket.AF_UNIX)
    worker.connect(address.socket)
    worker.sendall(wire.note(number, wire.HELLO, 0.0, pickle.dumps(os.getpid())))
    await until(lambda: number in hub.links)
    return worker


async def test_a_worker_is_known_by_its_first_note(
    hub: Hub, address: OneHost, heard: Heard
) -> None:
    with await connect(hub, address, 7):
        await until(lambda: bool(heard.notes))
        ((number, (token, word, _, payload)),) = heard.notes
        assert (number, token, word) == (7, 7, wire.HELLO)
        assert pickle.loads(payload) == (os.getpid(), "here")


async def test_short_calls_are_told_of_once(hub: Hub, address: OneHost, heard: Heard) -> None:
    with await connect(hub, address, 1) as worker:
        await until(lambda: bool(heard.notes))
        worker.sendall(
            b"".join(
                wire.note(token, wire.BEGUN) + wire.note(token, wire.PLAIN_VALUE)
                for token in range(100)
            )
        )
        await until(lambda: len(heard.notes) == 101)
        assert heard.words(1)[1:] == [wire.PLAIN_VALUE] * 100
        assert heard.bundles == 2


async def test_what_a_worker_wrote_outlives_it(hub: Hub, address: OneHost, heard: Heard) -> None:
    with await connect(hub, address, 1) as worker:
        worker.sendall(wire.note(3, wire.PLAIN_VALUE) + wire.note(4, wire.BEGUN))
    await until(lambda: wire.GONE in heard.words(1))
    assert heard.words(1) == [wire.HELLO, wire.PLAIN_VALUE, wire.BEGUN, wire.GONE]
    assert not hub.links


async def test_a_long_call_is_told_of_while_it_runs(
    hub: Hub, address: OneHost, heard: Heard
) -> None:
    with await connect(hub, address, 1) as worker:
        worker.sendall(wire.note(3, wire.BEGUN))
        await until(lambda: wire.BEGUN in heard.words(1))


async def test_a_large_message_waits_for_a_worker_that_reads_slowly(
    hub: Hub, address: OneHost
) -> None:
    message = os.urandom(5_000_000)
    with await connect(hub, address, 1) as worker:
        hub.deliver(1, message)
        hub.deliver(1, b"next")
        expected = wire.frame(message) + wire.frame(b"next")
        received = bytearray()

        def read() -> None:
            while len(received) < len(expected):
                received.extend(worker.recv(100_000))

        await asyncio.wait_for(asyncio.to_thread(read), 30)
        assert received == expected


async def test_a_message_to_a_worker_that_has_gone_is_dropped(hub: Hub, address: OneHost) -> None:
    with await connect(hub, address, 1):
        link = hub.links[1]
    await until(lambda: not hub.links)
    link.write(b"late")
    hub.deliver(1, b"late")


async def test_without_descriptors_workers_wait_and_the_loop_does_not_spin(
    hub: Hub,
    address: OneHost,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def accept() -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    listening = hub._listener
    monkeypatch.setattr(dragon_hub, "ACCEPT_SECONDS", 0.1)
    monkeypatch.setattr(hub, "_listener", SimpleNamespace(accept=accept, fileno=listening.fileno))
    connecting = asyncio.ensure_future(connect(hub, address, 1))
    await until(lambda: bool(caplog.records))
    for _ in range(100):
        await asyncio.sleep(0)
    assert len(caplog.records) == 1
    monkeypatch.undo()
    (await connecting).close()


async def test_another_user_is_not_listened_to(
    hub: Hub, address: OneHost, heard: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dragon_hub.os, "geteuid", lambda: os.getuid() + 1)
    with socket.socket(socket.AF_UNIX) as other:
        other.connect(address.socket)
        assert not dragon_hub.is_of_this_user(other)
        other.settimeout(10)
        assert await asyncio.to_thread(other.recv, 1) == b""
    assert not heard.notes


FORKING = """
    import asyncio, os, socket, sys
    from rhapsody.backends.dragon_hub import Hub

    class OneHost:
        socket = "\\0rhapsody-test-" + sys.argv[1]

    async def main():
        hub = Hub("here", OneHost, print)
        worker = socket.socket(socket.AF_UNIX)
        worker.connect(OneHost.socket)
        await asyncio.sleep(0.05)
        child = os.fork()
        if not child:
            worker.close()
            sys.stdin.read()  # until the test says so
            os._exit(0)
        hub.close()
        worker.settimeout(10)
        print(worker.recv(1), flush=True)
        sys.stdin.close()
        os.waitpid(child, 0)

    asyncio.run(main())
"""


def test_a_forked_child_of_the_head_does_not_keep_workers_alive() -> None:
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
