"""Prefix-aware routing: which replica gets a prompt, and what is remembered."""

from hypothesis import given
from hypothesis import strategies as st

from rhapsody.inference.prefix_keys import prefix_keys
from rhapsody.inference.replicas.prefixes import PrefixRouter

SLACK = 3


def keys(name: str, end: str = "") -> tuple[int, ...]:
    return prefix_keys(name * 3000 + end * 6000)


def router(max_prefixes: int = 1000) -> PrefixRouter[str]:
    return PrefixRouter(SLACK, max_prefixes)


def test_new_prefix_goes_to_the_least_loaded() -> None:
    assert router().choose(keys("x"), {"a": 2, "b": 1}) == "b"


def test_known_prefix_goes_to_its_replica_within_the_slack() -> None:
    on = router()
    on.choose(keys("x"), {"a": 0, "b": 1})
    assert on.choose(keys("x"), {"a": SLACK, "b": 0}) == "a"
    assert on.choose(keys("x"), {"a": SLACK + 1, "b": 0}) == "b"
    assert (on.hits, on.misses) == (1, 2)


def test_longest_common_prefix_decides() -> None:
    on = router()
    on.choose(keys("x", "1"), {"a": 0, "b": 1})
    on.choose(keys("x", "2"), {"a": SLACK + 2, "b": 1})
    loads = {"a": 1, "b": 1}
    assert on.choose(keys("x", "1"), loads) == "a"
    assert on.choose(keys("x", "2"), loads) == "b"


def test_prefix_on_several_replicas_goes_to_the_less_loaded_of_them() -> None:
    on = router()
    on.choose(keys("x"), {"a": 0, "b": 9, "c": 9})
    on.choose(keys("x"), {"a": 9, "b": 0, "c": 9})
    assert on.choose(keys("x"), {"a": 3, "b": 2, "c": 0}) == "b"


def test_replica_that_is_not_ready_is_not_chosen() -> None:
    on = router()
    on.choose(keys("x"), {"a": 0, "b": 1})
    assert on.choose(keys("x"), {"b": 9}) == "b"


def test_prefixes_of_a_dead_replica_are_forgotten() -> None:
    on = router()
    on.choose(keys("x"), {"a": 0, "b": 1})
    on.forget("a")
    on.forget("never seen")
    assert on.choose(keys("x"), {"a": 1, "b": 0}) == "b"
    assert on.choose(keys("x"), {"a": 0, "b": 2}) == "b"


def test_oldest_prefixes_are_forgotten() -> None:
    on = router(max_prefixes=5)
    on.choose(prefix_keys("x" * 1100), {"a": 0, "b": 1})
    on.choose(prefix_keys("y" * 1100), {"a": 1, "b": 0})
    on.choose(prefix_keys("x" * 1100), {"a": 0, "b": 0})
    for other in "123":
        on.choose(prefix_keys(other * 600), {"a": 5, "b": 0})
    assert len(on) == 5
    assert on.choose(prefix_keys("x" * 1100), {"a": 1, "b": 0}) == "a"
    assert on.choose(prefix_keys("y" * 1100), {"a": 0, "b": 1}) == "a"


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), max_size=300))
def test_loads_never_differ_by_more_than_the_slack(prompts: list[tuple[int, bool]]) -> None:
    on: PrefixRouter[int] = PrefixRouter(SLACK)
    loads = dict.fromkeys(range(4), 0)
    for prefix, dies in prompts:
        chosen = on.choose((prefix,), loads)
        loads[chosen] += 1
        if dies:
            on.forget(chosen)
        assert max(loads.values()) - min(loads.values()) <= SLACK + 1
