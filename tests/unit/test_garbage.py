"""Full collections of the garbage collector while many tasks are active."""

import gc
from collections.abc import Iterator
from typing import Any

import pytest

from rhapsody import garbage
from rhapsody.garbage import MANY, STEP, FullCollections, watch_tasks
from tests.support.clock import FakeClock


class Owner:
    """Has a number of active tasks."""

    def __init__(self, active: int) -> None:
        self.active = active


@pytest.fixture
def owner() -> Owner:
    return Owner(MANY)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def collections(
    owner: Owner, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> Iterator[FullCollections]:
    monkeypatch.setattr(garbage, "_is_automatic", lambda: True)
    collections = FullCollections(clock.time)
    collections.add(owner, lambda one: one.active)
    gc.unfreeze()  # pytest's own plugins may have frozen objects
    yield collections
    gc.unfreeze()


FULL = {"generation": 2, "collected": 0, "uncollectable": 0}


def test_objects_are_put_aside_while_many_tasks_are_active(collections: FullCollections) -> None:
    collections("start", FULL)
    assert gc.get_freeze_count() > 0


@pytest.mark.parametrize(("phase", "generation"), [("stop", 2), ("start", 1)])
def test_other_collections_are_left_alone(
    collections: FullCollections, phase: str, generation: int
) -> None:
    collections(phase, {**FULL, "generation": generation})
    assert gc.get_freeze_count() == 0


def test_nothing_is_put_aside_for_few_tasks(collections: FullCollections, owner: Owner) -> None:
    owner.active = MANY - 1
    collections("start", FULL)
    assert gc.get_freeze_count() == 0


def test_objects_are_put_aside_before_an_operation_on_many_tasks(
    collections: FullCollections, owner: Owner
) -> None:
    collections.prepare_for(MANY - 1)
    owner.active = MANY - 1
    collections.prepare_for(MANY)
    assert gc.get_freeze_count() == 0
    owner.active = MANY
    collections.prepare_for(MANY)
    assert gc.get_freeze_count() > 0


def test_objects_of_a_steady_number_of_tasks_are_collected(
    collections: FullCollections, owner: Owner
) -> None:
    collections("start", FULL)
    frozen = gc.get_freeze_count()
    kept: list[Any] = [[] for _ in range(100)]
    owner.active += STEP - 1
    collections("start", FULL)
    assert gc.get_freeze_count() <= frozen
    owner.active += 1
    collections("start", FULL)
    assert gc.get_freeze_count() >= frozen
    assert len(kept) == 100


def test_all_objects_are_collected_again_after_a_rest(
    collections: FullCollections, owner: Owner, clock: FakeClock
) -> None:
    collections("start", FULL)
    owner.active = 0
    collections("start", FULL)
    assert gc.get_freeze_count() > 0
    clock.now += garbage.REST_SECONDS + 1
    collections("start", FULL)
    assert gc.get_freeze_count() == 0


def test_explicit_collection_visits_all_objects(
    collections: FullCollections, monkeypatch: pytest.MonkeyPatch
) -> None:
    collections("start", FULL)
    monkeypatch.setattr(garbage, "_is_automatic", lambda: False)
    collections("start", FULL)
    assert gc.get_freeze_count() == 0


def test_program_that_freezes_objects_itself_is_left_alone(collections: FullCollections) -> None:
    gc.freeze()
    collections("start", FULL)
    gc.unfreeze()
    collections("start", FULL)
    assert gc.get_freeze_count() > 0


def test_owner_is_held_weakly(collections: FullCollections, owner: Owner) -> None:
    other = Owner(5 * MANY)
    collections.add(other, lambda one: one.active)
    owner.active = 0
    del other
    collections("start", FULL)
    assert gc.get_freeze_count() == 0


def test_automatic_collection_is_told_from_an_explicit_one() -> None:
    starts: list[bool] = []

    def note(phase: str, info: dict[str, int]) -> None:
        if phase == "start" and info["generation"] == 2:
            starts.append(garbage._is_automatic())

    gc.collect()
    gc.callbacks.append(note)
    try:
        kept: list[Any] = []
        while not starts:
            kept += [[] for _ in range(10_000)]
        gc.collect()
    finally:
        gc.callbacks.remove(note)
    assert starts[0]
    assert not starts[-1]


def test_one_callback_serves_all_owners(owner: Owner) -> None:
    watch_tasks(owner, lambda one: 0)
    watch_tasks(owner, lambda one: 0)
    assert gc.callbacks.count(garbage._full_collections) == 1
