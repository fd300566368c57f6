"""The queue that agents write and the program reads: locked queues are recognised."""

import asyncio
import threading
from typing import Any

import pytest

from rhapsody.backends.dragon import program_queue
from rhapsody.backends.dragon.program_queue import ProgramQueue
from tests.support.waiting import until

pytestmark = pytest.mark.usefixtures("dragon_modules")


async def opened(entries: list[Any]) -> ProgramQueue:
    queue = ProgramQueue("dragon", entries.extend)
    assert queue.current is None
    await queue.open()
    return queue


async def test_entries_arrive_in_order() -> None:
    entries: list[Any] = []
    queue = await opened(entries)
    for number in range(200):
        queue.current.put(b"%d" % number)
    await until(lambda: len(entries) == 200)
    assert entries == [b"%d" % number for number in range(200)]
    made = queue.current
    await queue.close()
    assert made.destroyed


async def test_queue_that_works_is_not_locked() -> None:
    entries: list[Any] = []
    queue = await opened(entries)
    assert not await queue.is_locked()
    assert not await queue.is_locked()
    await queue.close()
    assert entries == []


async def test_queue_without_passage_is_locked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(program_queue, "PROBE_SECONDS", 0.02)
    queue = await opened([])
    locked, unlocked = queue.current, threading.Event()
    monkeypatch.setattr(locked, "put", lambda message: unlocked.wait(30))
    assert await queue.is_locked()
    await queue.open()
    assert queue.current is not locked
    assert not await queue.is_locked()
    await queue.close()
    unlocked.set()
    locked._queue.put(b"")


async def test_queue_that_is_locked_between_two_entries_is_recognised(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(program_queue, "PROBE_SECONDS", 0.02)
    queue = await opened([])
    locked, unlocked = queue.current, threading.Event()
    monkeypatch.setattr(locked, "put", lambda message: unlocked.wait(30))

    def get_nowait() -> bytes:
        unlocked.wait(30)
        return b""

    monkeypatch.setattr(locked, "get_nowait", get_nowait)
    locked._queue.put(b"entry")
    assert await asyncio.wait_for(queue.is_locked(), 5)
    await queue.close()
    unlocked.set()


async def test_queue_is_not_locked_while_its_entries_are_handled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(program_queue, "PROBE_SECONDS", 0.01)
    began, goes_on = threading.Event(), threading.Event()

    def handle(entries: list[Any]) -> None:
        began.set()
        goes_on.wait(0.1)  # ten times as long as the time of a probe

    queue = ProgramQueue("dragon", handle)
    await queue.open()
    queue.current.put(b"entry")
    await until(began.is_set)
    assert not await queue.is_locked()
    await queue.close()


async def test_queue_that_was_not_opened_can_be_closed() -> None:
    await ProgramQueue("dragon", print).close()
