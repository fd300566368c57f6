"""The batcher's rules, on a fake clock."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rhapsody.inference.batcher import Batcher
from tests.support.clock import FakeClock

MAX_WAIT = 8.0


class Replicas:
    """Receives batches: `room` is its capacity, None if no replica is ready."""

    def __init__(self, room: int | None) -> None:
        self.room = room
        self.batches: list[list[int]] = []
        self.in_flight = 0

    def capacity(self) -> int | None:
        return None if self.room is None else max(self.room - self.in_flight, 0)

    def dispatch(self, batch: list[int]) -> Any:
        assert self.room is not None, "nothing is ready"
        self.batches.append(batch)
        self.in_flight += len(batch)
        return self._until_cancelled()

    async def _until_cancelled(self) -> None:
        await asyncio.Event().wait()

    @property
    def sent(self) -> list[int]:
        return [item for batch in self.batches for item in batch]


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
async def make(clock: FakeClock) -> Any:
    made: list[Batcher[int]] = []

    def build(replicas: Replicas, max_batch_size: int = 4, **options: Any) -> Batcher[int]:
        batcher: Batcher[int] = Batcher(
            replicas.dispatch,
            replicas.capacity,
            max_batch_size=max_batch_size,
            max_wait=MAX_WAIT,
            clock=clock,
            **options,
        )
        made.append(batcher)
        return batcher

    yield build
    for batcher in made:
        await batcher.close()


Make = Callable[..., Batcher[int]]


async def test_nothing_is_sent_before_pass_ends(make: Make) -> None:
    replicas = Replicas(room=10)
    make(replicas).put(1)
    assert replicas.batches == []


async def test_items_of_one_pass_are_one_batch(make: Make, clock: FakeClock) -> None:
    replicas = Replicas(room=10)
    batcher = make(replicas)
    for item in (1, 2, 3):
        batcher.put(item)
    clock.run_pass()
    assert replicas.batches == [[1, 2, 3]]
    assert clock.time() == 0


async def test_items_over_max_batch_size_are_split(make: Make, clock: FakeClock) -> None:
    replicas = Replicas(room=100)
    batcher = make(replicas, max_batch_size=4)
    for item in range(10):
        batcher.put(item)
    clock.run_pass()
    assert replicas.batches == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


async def test_batch_is_limited_by_capacity(make: Make, clock: FakeClock) -> None:
    replicas = Replicas(room=3)
    batcher = make(replicas, max_batch_size=4)
    for item in range(6):
        batcher.put(item)
    clock.run_pass()
    assert replicas.batches == [[0, 1, 2]]
    assert len(batcher) == 3


async def test_next_batch_does_not_wait_for_previous_one(make: Make, clock: FakeClock) -> None:
    replicas = Replicas(room=10)
    batcher = make(replicas)
    batcher.put(1)
    clock.run_pass()
    batcher.put(2)
    clock.run_pass()
    assert replicas.batches == [[1], [2]]


async def test_items_wait_while_all_replicas_are_busy(make: Make, clock: FakeClock) -> None:
    replicas = Replicas(room=0)
    batcher = make(replicas)
    batcher.put(1)
    batcher.put(2)
    clock.advance(MAX_WAIT - 1)
    assert replicas.batches == []


async def test_waiting_items_are_sent_when_there_is_room(make: Make, clock: FakeClock) -> None:
    replicas = Replicas(room=0)
    batcher = make(replicas)
    batcher.put(1)
    batcher.put(2)
    clock.run_pass()
    replicas.room = 5
    batcher.wake()
    clock.run_pass()
    assert replicas.batches == [[1, 2]]


async def test_waiting_items_are_sent_when_batch_is_full(make: Make, clock: FakeClock) -> None:
    replicas = Replicas(room=0)
    batcher = make(replicas, max_batch_size=3)
    for item in range(4):
        batcher.put(item)
    clock.run_pass()
    assert replicas.batches == [[0, 1, 2]]
    assert len(batcher) == 1


async def test_waiting_items_are_sent_when_oldest_reaches_max_wait(
    make: Make, clock: FakeClock
) -> None:
    replicas = Replicas(room=0)
    batcher = make(replicas)
    batcher.put(1)
    clock.advance(3)
    batcher.put(2)
    clock.advance(MAX_WAIT - 3.5)
    assert replicas.batches == []
    clock.advance(0.5)
    assert replicas.batches == [[1, 2]]


async def test_beyond_bounds_what_busy_replicas_get(make: Make, clock: FakeClock) -> None:
    replicas = Replicas(room=0)
    left = 3
    batcher = make(replicas, beyond=lambda: left - replicas.in_flight)
    for item in range(6):
        batcher.put(item)
    clock.run_pass()
    assert replicas.batches == [[0, 1, 2]], "max_batch_size prompts wait"
    clock.advance(10 * MAX_WAIT)
    assert replicas.batches == [[0, 1, 2]]
    left = 4
    batcher.wake()
    clock.run_pass()
    assert replicas.batches == [[0, 1, 2], [3]]


async def test_no_timer_runs_while_busy_replicas_take_nothing(make: Make, clock: FakeClock) -> None:
    replicas = Replicas(room=0)
    asked: list[float] = []

    def beyond() -> int:
        asked.append(clock.time())
        return 0

    batcher = make(replicas, beyond=beyond)
    batcher.put(1)
    clock.advance(100 * MAX_WAIT)
    assert set(asked) == {MAX_WAIT}
    replicas.room = 1
    batcher.wake()
    clock.run_pass()
    assert replicas.sent == [1]


async def test_nothing_is_sent_while_no_replica_is_ready(make: Make, clock: FakeClock) -> None:
    replicas = Replicas(room=None)
    batcher = make(replicas, max_batch_size=2)
    for item in range(5):
        batcher.put(item)
    clock.advance(10 * MAX_WAIT)
    assert replicas.batches == []
    assert len(batcher) == 5


async def test_waiting_items_are_sent_when_replica_becomes_ready(
    make: Make, clock: FakeClock
) -> None:
    replicas = Replicas(room=None)
    batcher = make(replicas)
    batcher.put(1)
    clock.advance(MAX_WAIT)
    replicas.room = 1
    batcher.wake()
    clock.run_pass()
    assert replicas.batches == [[1]]


async def test_zero_max_wait_sends_at_once(clock: FakeClock) -> None:
    replicas = Replicas(room=0)
    batcher: Batcher[int] = Batcher(
        replicas.dispatch, replicas.capacity, max_batch_size=4, max_wait=0, clock=clock
    )
    batcher.put(1)
    clock.run_pass()
    assert replicas.batches == [[1]]
    await batcher.close()


async def test_removed_item_is_not_sent(make: Make, clock: FakeClock) -> None:
    replicas = Replicas(room=10)
    batcher = make(replicas)
    batcher.put(1)
    batcher.put(2)
    assert batcher.remove(1)
    clock.run_pass()
    assert replicas.batches == [[2]]


async def test_sent_item_cannot_be_removed(make: Make, clock: FakeClock) -> None:
    batcher = make(Replicas(room=10))
    batcher.put(1)
    clock.run_pass()
    assert not batcher.remove(1)


async def test_put_back_items_come_first_in_order(make: Make, clock: FakeClock) -> None:
    replicas = Replicas(room=0)
    batcher = make(replicas)
    batcher.put(3)
    batcher.put_back([1, 2])
    replicas.room = 10
    clock.run_pass()
    assert replicas.batches == [[1, 2, 3]]


async def test_put_back_does_not_extend_the_wait(make: Make, clock: FakeClock) -> None:
    replicas = Replicas(room=0)
    batcher = make(replicas)
    batcher.put(2)
    clock.advance(MAX_WAIT - 1)
    batcher.put_back([1])
    clock.advance(1)
    assert replicas.batches == [[1, 2]]


async def test_clear_removes_and_returns_waiting_items(make: Make, clock: FakeClock) -> None:
    replicas = Replicas(room=10)
    batcher = make(replicas)
    batcher.put(1)
    batcher.put(2)
    assert batcher.clear() == [1, 2]
    clock.run_pass()
    assert replicas.batches == []


async def test_on_batch_gets_wait_of_each_item(make: Make, clock: FakeClock) -> None:
    waits: list[Any] = []
    replicas = Replicas(room=0)
    batcher = make(replicas, on_batch=lambda *batch: waits.append(batch))
    batcher.put(1)
    clock.advance(2)
    batcher.put(2)
    replicas.room = 10
    clock.run_pass()
    assert waits == [([1, 2], [2.0, 0.0])]


async def test_close_cancels_batches_in_flight(clock: FakeClock) -> None:
    cancelled = []

    async def dispatch(batch: list[int]) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(batch)
            raise

    batcher: Batcher[int] = Batcher(dispatch, lambda: 10, max_batch_size=1, max_wait=1, clock=clock)
    batcher.put(1)
    clock.run_pass()
    await asyncio.sleep(0)
    await batcher.close()
    assert cancelled == [[1]]


ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.integers(1, 6)),
        st.tuples(st.just("remove"), st.integers(0, 30)),
        st.tuples(st.just("advance"), st.integers(0, 10)),
        st.tuples(st.just("room"), st.one_of(st.none(), st.integers(0, 8))),
        st.tuples(st.just("finish"), st.integers(1, 8)),
        st.tuples(st.just("put_back"), st.integers(1, 4)),
    ),
    max_size=40,
)


@given(actions=ACTIONS, max_batch_size=st.integers(1, 5))
def test_items_are_sent_once_in_order_in_bounded_batches(
    actions: list[tuple[str, Any]], max_batch_size: int
) -> None:
    async def play() -> None:
        clock, replicas = FakeClock(), Replicas(room=4)
        batcher: Batcher[int] = Batcher(
            replicas.dispatch,
            replicas.capacity,
            max_batch_size=max_batch_size,
            max_wait=MAX_WAIT,
            clock=clock,
        )
        arrived = 0
        removed: set[int] = set()
        for action, value in actions:
            if action == "put":
                for _ in range(value):
                    batcher.put(arrived)
                    arrived += 1
            elif action == "remove":
                if batcher.remove(value):
                    removed.add(value)
            elif action == "advance":
                clock.advance(value)
            elif action == "room":
                replicas.room = value
                batcher.wake()
            elif action == "finish":
                replicas.in_flight = max(replicas.in_flight - value, 0)
                batcher.wake()
            elif replicas.batches:  # the latest batch is lost and put back
                lost = replicas.batches.pop()
                replicas.in_flight = max(replicas.in_flight - len(lost), 0)
                batcher.put_back(lost)
        assert all(len(batch) <= max_batch_size for batch in replicas.batches)
        clock.advance(0)
        if replicas.room is not None:
            clock.advance(2 * MAX_WAIT)
            assert len(batcher) == 0
        waiting = batcher.clear()
        assert sorted([*replicas.sent, *waiting, *removed]) == list(range(arrived))
        assert [*replicas.sent, *waiting] == sorted([*replicas.sent, *waiting])
        await batcher.close()

    asyncio.run(play())


async def test_items_of_lower_order_are_sent_first(make: Any, clock: FakeClock) -> None:
    replicas = Replicas(None)
    batcher = make(replicas, order=lambda item: item % 10)
    for item in (5, 15, 3, 9, 1, 11):
        batcher.put(item)
    batcher.remove(3)
    replicas.room = 3
    batcher.wake()
    clock.run_pass()
    assert replicas.sent == [1, 11, 5]
    batcher.put_back([25])
    replicas.in_flight = 0
    batcher.wake()
    clock.run_pass()
    assert replicas.sent[3:] == [25, 15, 9]


async def test_removed_items_are_forgotten(make: Any, clock: FakeClock) -> None:
    batcher = make(Replicas(None))
    for item in range(5000):
        batcher.put(item)
        batcher.remove(item)
    assert len(batcher._queue) <= 1025
    assert len(batcher) == 0
