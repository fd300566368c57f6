"""Values in segments."""

import gc
import os
import pickle
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from rhapsody.backends.data import mappings
from rhapsody.backends.data.packing import THRESHOLD, Packed, Packer
from rhapsody.backends.data.segments import Folders, Segments, Span
from rhapsody.backends.data.writer import SegmentWriter

LARGE = THRESHOLD // 8
"""Length of an array of doubles that goes into a segment."""


@dataclass
class Process:
    """A process that uses the store."""

    packer: Packer
    dropped: list[tuple[str, bool]] = field(default_factory=list)


@pytest.fixture
def process(segments: Segments) -> Process:
    dropped: list[tuple[str, bool]] = []
    packer = Packer(segments, SegmentWriter(segments, 1), lambda *end: dropped.append(end))
    return Process(packer, dropped)


def pack(process: Process, value: Any) -> Packed:
    packed = process.packer.pack(value)
    assert isinstance(packed, Packed)
    arrived = pickle.loads(pickle.dumps(packed))
    assert isinstance(arrived, Packed)
    return arrived


@pytest.mark.parametrize("value", [3, "text", b"x" * 1000, [1, {"a": None}]])
def test_small_value_is_a_plain_pickle(process: Process, value: Any, folders: Folders) -> None:
    packed = process.packer.pack(value)
    assert isinstance(packed, bytes)
    assert pickle.loads(packed) == value
    assert os.listdir(folders.memory) == []


def test_small_arrays_travel_in_the_message(process: Process, folders: Folders) -> None:
    packed = pack(process, [np.arange(10), np.zeros(0)])
    first, second = process.packer.load(packed)
    first += 1
    assert (first.tolist(), second.tolist()) == (list(range(1, 11)), [])
    assert os.listdir(folders.memory) == []


def test_large_arrays_go_into_one_segment(process: Process, folders: Folders) -> None:
    packed = pack(process, {"a": [np.arange(LARGE)], "b": np.ones(3), "c": np.zeros(0)})
    assert len(packed.segments) == len(os.listdir(folders.memory)) == 1
    assert isinstance(packed.stream, bytes)
    loaded = process.packer.load(packed)
    assert loaded["a"][0][-1] == LARGE - 1
    assert (loaded["b"].sum(), loaded["c"].size) == (3, 0)


def test_beyond_the_maximum_of_mappings_data_is_copied(
    process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mappings, "MOST_MAPPINGS", 2)
    packed = [pack(process, np.full(LARGE, i)) for i in range(3)]
    loaded = [process.packer.load(each) for each in packed]
    assert [array.tolist() for array in loaded] == [[i] * LARGE for i in range(3)]
    loaded[2] += 1
    assert process.dropped == [(name, True) for name in packed[2].segments]
    del loaded
    assert len(process.dropped) == 3


def test_many_small_arrays_are_counted_together(process: Process) -> None:
    packed = pack(process, [np.full(1000, i) for i in range(100)])
    assert packed.segments
    assert [array[0] for array in process.packer.load(packed)] == list(range(100))


@pytest.mark.parametrize(
    "value",
    [
        os.urandom(THRESHOLD),
        bytearray(os.urandom(THRESHOLD)),
        "ä" * THRESHOLD,
        [os.urandom(100_000) for _ in range(4)],
        {str(i): i for i in range(50_000)},
    ],
    ids=["bytes", "bytearray", "text", "list of bytes", "dict"],
)
def test_large_values_without_buffers_go_into_a_segment(process: Process, value: Any) -> None:
    packed = pack(process, value)
    assert isinstance(packed.stream, Span)
    loaded = process.packer.load(packed)
    assert type(loaded) is type(value)
    assert loaded == value
    assert process.dropped == [(packed.stream.segment, True)]  # it was copied


def test_buffers_and_a_large_stream_share_a_segment(process: Process) -> None:
    text = os.urandom(THRESHOLD)
    packed = pack(process, (np.arange(LARGE), text))
    assert len(packed.segments) == 1
    array, loaded = process.packer.load(packed)
    assert (array[-1], loaded) == (LARGE - 1, text)
    assert process.dropped == []
    del array
    assert len(process.dropped) == 1


def test_each_load_has_its_own_writable_value(process: Process) -> None:
    packed = pack(process, np.zeros(LARGE))
    one, other = process.packer.load(packed), process.packer.load(packed)
    one[:] = 1
    assert other.sum() == 0


def test_read_only_array_stays_read_only(process: Process) -> None:
    array = np.zeros(LARGE)
    array.flags.writeable = False
    assert not process.packer.load(pack(process, array)).flags.writeable


def test_unchanged_data_stays_where_it_is(process: Process, folders: Folders) -> None:
    first = pack(process, np.arange(LARGE))
    array = process.packer.load(first)
    again = pack(process, {"whole": array, "half": array[LARGE // 2 :]})
    assert again.segments == first.segments
    assert len(os.listdir(folders.memory)) == 1
    loaded = process.packer.load(again)
    assert (loaded["whole"][7], loaded["half"][0]) == (7, LARGE // 2)


def test_changed_data_is_written_anew(process: Process) -> None:
    first = pack(process, np.zeros(LARGE))
    array = process.packer.load(first)
    array[0] = 1
    again = pack(process, array)
    assert again.segments.isdisjoint(first.segments)
    assert process.packer.load(again).sum() == 1


def test_data_frame_is_not_copied(process: Process) -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"a": np.arange(LARGE), "b": np.zeros(LARGE)})
    packed = pack(process, frame)
    assert isinstance(packed.stream, bytes)
    loaded = process.packer.load(packed)
    loaded.loc[0, "a"] = 5
    assert loaded["a"].iloc[:2].tolist() == [5, 1]


def test_tensor_is_not_copied(process: Process) -> None:
    torch = pytest.importorskip("torch")
    packed = pack(process, [torch.arange(LARGE)])
    assert isinstance(packed.stream, bytes)
    loaded = process.packer.load(packed)
    loaded[0] += 1
    assert loaded[0][:3].tolist() == [1, 2, 3]


class CannotBeRebuilt:
    def __init__(self) -> None:
        self.data = np.zeros(LARGE)

    def __setstate__(self, state: object) -> None:
        raise ValueError("broken")


def test_value_that_cannot_be_rebuilt_uses_nothing(process: Process) -> None:
    packed = pack(process, CannotBeRebuilt())
    with pytest.raises(ValueError, match="broken"):
        process.packer.load(packed)
    gc.collect()
    assert process.dropped == [(next(iter(packed.segments)), True)]


def test_lost_segment_is_an_error_and_is_dropped(process: Process, segments: Segments) -> None:
    packed = pack(process, [np.zeros(LARGE), os.urandom(THRESHOLD)])
    for name in packed.segments:
        segments.remove(name)
    with pytest.raises(FileNotFoundError):
        process.packer.load(packed)
    assert {name for name, _ in process.dropped} == packed.segments


def test_array_without_order_is_pickled(process: Process) -> None:
    array = np.arange(4 * LARGE).reshape(2, -1)[:, ::2]
    loaded = process.packer.load(pack(process, array))
    assert np.array_equal(loaded, array)
