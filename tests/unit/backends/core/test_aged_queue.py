from hypothesis import given
from hypothesis import strategies as st

from rhapsody.backends.core.aged_queue import AGING_SECONDS, AgedQueue, Arrivals


class Clock:
    """A clock that a test sets."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_items_of_one_priority_keep_their_order() -> None:
    queue: AgedQueue[str] = AgedQueue()
    queue.extend("ab")
    queue.add("c")
    queue.extend("")
    assert len(queue) == 3
    assert queue.clear() == ["a", "b", "c"]
    assert queue.key is None


def test_higher_priority_comes_first() -> None:
    queue: AgedQueue[str] = AgedQueue(Arrivals(Clock()))
    queue.extend("ab")
    queue.add("low", -1)
    queue.add("high", 1)
    queue.add("higher", 2)
    assert queue.clear() == ["higher", "high", "a", "b", "low"]


def test_age_makes_up_for_priority() -> None:
    clock = Clock()
    queue: AgedQueue[str] = AgedQueue(Arrivals(clock))
    queue.add("old")
    clock.now = AGING_SECONDS + 1
    queue.add("new", 1)
    assert queue.first() == "old"
    assert queue.clear() == ["old", "new"]


def test_items_put_back_come_before_all_others() -> None:
    queue: AgedQueue[str] = AgedQueue()
    queue.add("urgent", 100)
    queue.put_back("second")
    queue.put_back("first")
    assert queue.clear() == ["first", "second", "urgent"]


@given(st.lists(st.tuples(st.floats(0, 100), st.integers(-3, 3)), max_size=60))
def test_items_leave_in_the_order_of_their_keys(arrivals: list[tuple[float, int]]) -> None:
    clock = Clock()
    queue: AgedQueue[tuple[float, int]] = AgedQueue(Arrivals(clock))
    expected = []
    for number, (pause, priority) in enumerate(arrivals):
        clock.now += pause
        key = clock.now - AGING_SECONDS * priority
        queue.add((key, number), priority)
        expected.append((key, number))
    keys = []
    while queue.key is not None:
        assert queue.key[0] == queue.first()[0]
        keys.append(queue.pop()[0])
    assert keys == sorted(key for key, _ in expected)
