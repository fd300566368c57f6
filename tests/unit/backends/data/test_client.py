"""A worker's part in the store."""

import os
import socket
from pathlib import Path

import numpy as np
import pytest

from rhapsody.backends.data import client as client_module
from rhapsody.backends.data.client import DataClient
from rhapsody.backends.data.packing import THRESHOLD, Packed
from rhapsody.backends.data.segments import Folders, writer_of
from rhapsody.scratch import Scratch


@pytest.fixture
def calls() -> list[None]:
    """One entry for each call of `on_dropped`."""
    return []


@pytest.fixture
def client(folders: Folders, calls: list[None]) -> DataClient:
    return DataClient(folders, 4, lambda: calls.append(None))


def packed_array(client: DataClient) -> Packed:
    packed = client.pack(np.zeros(THRESHOLD // 8))
    assert isinstance(packed, Packed)
    return packed


def test_segments_have_the_number_of_the_worker(client: DataClient) -> None:
    assert [writer_of(name) for name in packed_array(client).segments] == [4]


def test_dropped_segments_are_told_once(client: DataClient, calls: list[None]) -> None:
    packed = packed_array(client)
    (name,) = packed.segments
    array = client.load(packed)
    assert (client.take_dropped(), calls) == ([], [])
    del array
    client.discard(packed)
    assert client.take_dropped() == [(name, True)] * 2
    assert client.take_dropped() == []
    assert len(calls) == 2


def test_unused_segment_is_kept_until_the_second_trim(client: DataClient, folders: Folders) -> None:
    (name,) = packed_array(client).segments
    client.take_back(name, True)
    for _ in range(2):
        assert os.listdir(folders.memory) == [name]
        client.trim()
    assert os.listdir(folders.memory) == []


def test_store_of_a_killed_program_is_removed(client: DataClient, folders: Folders) -> None:
    packed_array(client)
    for folder in (folders.memory, folders.disk):  # its owner does not lock them any more
        Path(folder, f"owner@{socket.gethostname()}").touch()
    client.remove_if_abandoned()
    assert not os.path.exists(folders.memory)
    assert not os.path.exists(folders.disk)


def test_store_of_a_living_program_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "PATIENCE_SECONDS", 0.01)
    scratch = Scratch("test")
    path = str(scratch.path)
    DataClient(Folders(path, path, 1), 4, lambda: None).remove_if_abandoned()
    assert scratch.path.exists()
    scratch.remove()
