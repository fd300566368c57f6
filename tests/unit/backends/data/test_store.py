"""The store of a backend."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio

from rhapsody.backends.data import store as store_module
from rhapsody.backends.data.client import DataClient
from rhapsody.backends.data.packing import THRESHOLD, Packed
from rhapsody.backends.data.store import DataStore
from tests.support.waiting import until

ARRAY = np.arange(THRESHOLD)


class Pair:
    """A store, and the client of its worker 1."""

    def __init__(self, memory_limit: int | None) -> None:
        self.trimmed: list[int] = []
        loop = asyncio.get_running_loop()
        self.store = DataStore(loop, memory_limit, self.give_back, self.trimmed.append)
        self.store.admit(1)
        self.client = DataClient(self.store.folders, 1, lambda: None)

    def give_back(self, worker: int, name: str, reusable: bool) -> None:
        assert worker == 1
        self.client.take_back(name, reusable)

    def files(self) -> list[str]:
        """The segments that exist."""
        folders = (self.store.folders.memory, self.store.folders.disk)
        return [name for folder in folders for name in os.listdir(folder) if name[-1].isdigit()]

    def result(self, value: Any) -> Any:
        """Return a value as the program gets it from the worker."""
        packed = self.client.pack(value)
        return packed if isinstance(packed, bytes) else self.store.load(packed)


@pytest_asyncio.fixture
async def pair() -> AsyncIterator[Pair]:
    made = Pair(64 << 20)
    yield made
    await made.store.close()


async def test_result_frees_its_segment_when_it_is_dropped(pair: Pair) -> None:
    result = pair.result(ARRAY)
    await asyncio.sleep(0)
    assert len(pair.files()) == 1
    del result
    await asyncio.sleep(0)
    for _ in range(store_module.TRIMS):
        pair.client.trim()
    assert pair.files() == []


async def test_worker_holds_its_arguments_until_it_drops_them(pair: Pair) -> None:
    packed = pair.store.pack(ARRAY, 1)
    assert isinstance(packed, Packed)
    argument = pair.client.load(packed)
    await asyncio.sleep(0)
    assert len(pair.files()) == 1
    del argument
    pair.store.drop(1, pair.client.take_dropped())
    await until(lambda: pair.store._writer._kept)
    for _ in range(store_module.TRIMS):
        pair.store._trim_all()
    await until(lambda: pair.files() == [])


async def test_chain_passes_one_segment_on(pair: Pair) -> None:
    result = pair.result(ARRAY)
    packed = pair.store.pack([result], 1)
    assert isinstance(packed, Packed)
    del result
    await asyncio.sleep(0)
    assert pair.files() == list(packed.segments)
    (argument,) = pair.client.load(packed)
    assert argument[-1] == ARRAY[-1]
    returned = pair.result(argument)
    del argument
    pair.store.drop(1, pair.client.take_dropped())
    await asyncio.sleep(0)
    assert pair.files() == list(packed.segments)
    assert returned[-1] == ARRAY[-1]


async def test_what_a_dead_worker_held_and_wrote_is_freed(pair: Pair) -> None:
    kept = pair.result(ARRAY)
    pair.client.pack(ARRAY)  # the message with this one was never sent
    pair.store.pack(ARRAY, 1)
    await asyncio.sleep(0)
    assert len(pair.files()) == 3
    pair.store.forget(1)
    pair.store.pack(ARRAY, 1)  # too late
    await asyncio.sleep(0)
    for _ in range(store_module.TRIMS):
        pair.store._trim_all()
    await until(lambda: len(pair.files()) == 1)
    assert kept[-1] == ARRAY[-1]
    del kept
    await until(lambda: pair.files() == [])


async def test_unused_segments_are_removed_after_a_while(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "KEEP_SECONDS", 0.01)
    pair.result(ARRAY)
    await until(lambda: pair.trimmed == [1] * store_module.TRIMS)


async def test_kept_mappings_end_after_a_while(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "KEEP_SECONDS", 0.01)
    packed = pair.store.pack(ARRAY, 1)
    assert isinstance(packed, Packed)
    for load in (pair.client.load, pair.store.load):
        load(packed)
    pair.store.drop(1, pair.client.take_dropped())
    await until(lambda: pair.trimmed == [1] * store_module.TRIMS)
    await until(lambda: not pair.store._packer._mappings._kept)
    for _ in pair.trimmed:
        pair.client.trim()
    assert not pair.client._packer._mappings._kept


async def test_worker_that_has_ended_is_not_told_to_trim(pair: Pair) -> None:
    pair.store.forget(1)
    pair.store.drop(1, [("memory-1-1", True)])
    pair.store._trim_all()
    assert pair.trimmed == []


async def test_close_leaves_nothing_but_loaded_values(pair: Pair) -> None:
    result = pair.result(ARRAY)
    await pair.store.close()
    assert not os.path.exists(pair.store.folders.memory)
    assert not os.path.exists(pair.store.folders.disk)
    assert result.sum() == ARRAY.sum()
    del result
    await asyncio.sleep(0)
    with pytest.raises(ValueError, match="descriptor"):
        pair.store.pack(ARRAY, 1)


async def test_default_limit_is_half_of_the_shared_memory() -> None:
    made = Pair(None)
    status = os.statvfs(made.store.folders.memory)
    assert made.store.folders.limit == status.f_blocks * status.f_frsize // 2
    await made.store.close()


async def test_works_without_shared_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(store_module, "SHARED_MEMORY", str(tmp_path / "absent"))
    made = Pair(64 << 20)
    assert made.result(ARRAY)[-1] == ARRAY[-1]
    await made.store.close()


PROGRAM = """
import asyncio, sys
import numpy as np
from rhapsody.backends.data.store import DataStore

async def main():
    store = DataStore(asyncio.get_running_loop(), None, print, print)
    store.admit(1)
    store.pack(np.arange(1_000_000), 1)
    print(store.folders.memory, store.folders.disk, flush=True)
    sys.stdin.read()

asyncio.run(main())
"""


async def test_next_start_removes_what_a_killed_program_left() -> None:
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", PROGRAM]
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as program:
        assert program.stdout is not None
        left = program.stdout.readline().split()
        program.send_signal(signal.SIGKILL)
    assert len(left) == 2
    assert all(map(os.path.exists, left))
    made = Pair(None)
    await made.store.close()
    assert not any(map(os.path.exists, left))
