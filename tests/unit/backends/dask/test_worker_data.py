"""A Dask worker's part in the store for large data."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from rhapsody.backends.dask.worker_data import TAKE_BACK, TRIM, WorkerData, number_of
from rhapsody.backends.data.packing import THRESHOLD, Packed
from rhapsody.backends.data.segments import Folders, writer_of
from rhapsody.scratch import Scratch

ARRAY = np.arange(THRESHOLD)


@pytest.fixture
def folders(tmp_path: Path) -> Iterator[Folders]:
    """The folders of a store of this program."""
    made = [Scratch(name, str(tmp_path)) for name in ("memory", "disk")]
    yield Folders(str(made[0].path), str(made[1].path), 1 << 24)
    for scratch in made:
        scratch.remove()


@pytest.fixture
def reports() -> list[None]:
    """One entry for each call of `on_report`."""
    return []


@pytest.fixture
def data(folders: Folders, reports: list[None]) -> Iterator[WorkerData]:
    opened = WorkerData.open(folders, None, lambda: reports.append(None))
    assert opened is not None
    yield opened
    opened.close()


def packed(data: WorkerData) -> Packed:
    result = data.pack(ARRAY)
    assert isinstance(result, Packed)
    return result


def test_numbers_tell_workers_apart(data: WorkerData, folders: Folders) -> None:
    other = WorkerData.open(folders, None, lambda: None)
    assert other is not None
    assert 0 < number_of(data) != number_of(other) > 0
    assert [writer_of(name) for name in packed(data).segments] == [data.number]
    assert number_of(None) == 0
    other.close()


def test_used_segments_are_reported_before_they_are_dropped(
    data: WorkerData, reports: list[None]
) -> None:
    result = packed(data)
    (name,) = result.segments
    array = data.load(result)
    assert (array == ARRAY).all()
    assert reports
    assert data.take_report() == ([name], [])
    del array
    assert data.take_report() == ([], [(name, True)])
    assert data.take_report() == ([], [])


def test_orders_are_followed(data: WorkerData, folders: Folders) -> None:
    (name,) = packed(data).segments
    data.follow([(TAKE_BACK, name, True), (TRIM,)])
    assert (Path(folders.memory) / name).exists()
    data.follow([(TRIM,)])
    assert not (Path(folders.memory) / name).exists()


def test_worker_with_little_memory_keeps_no_segment(folders: Folders) -> None:
    data = WorkerData.open(folders, ARRAY.nbytes, lambda: None)
    assert data is not None
    (name,) = packed(data).segments
    data.follow([(TAKE_BACK, name, True)])
    assert not (Path(folders.memory) / name).exists()
    data.close()


def test_worker_that_does_not_see_the_store_does_without(tmp_path: Path) -> None:
    other_host = Folders(str(tmp_path / "memory"), str(tmp_path / "disk"), 0)
    assert WorkerData.open(other_host, None, lambda: None) is None
