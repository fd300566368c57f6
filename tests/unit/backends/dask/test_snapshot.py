"""Snapshots of large results."""

import pickle

import numpy as np
from dask.sizeof import sizeof

from rhapsody.backends.dask.snapshot import Snapshot


def test_snapshot_does_not_change_with_its_value() -> None:
    array = np.ones(1000)
    snapshot = Snapshot.of([array, array])
    array[:] = 2
    first, second = snapshot.copy()
    assert first is second
    assert first.sum() == 1000
    assert snapshot.nbytes > array.nbytes


def test_every_copy_has_data_of_its_own() -> None:
    snapshot = Snapshot.of({"a": np.ones(1000), "b": b"x" * 1000})
    copy = snapshot.copy()
    copy["a"][:] = 5
    assert snapshot.copy()["a"].sum() == 1000
    assert snapshot.load()["b"] == b"x" * 1000


def test_read_only_arrays_stay_so() -> None:
    array = np.ones(1000)
    array.flags.writeable = False
    snapshot = pickle.loads(pickle.dumps(Snapshot.of((array, np.ones(3)))))
    assert [one.flags.writeable for one in snapshot.copy()] == [False, True]
    assert [one.flags.writeable for one in snapshot.load()] == [False, True]


def test_dask_knows_the_size_of_a_snapshot() -> None:
    array = np.ones(1000)
    assert sizeof(Snapshot.of(array)) >= array.nbytes
