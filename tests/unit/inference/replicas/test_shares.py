"""Shares of a batch."""

from hypothesis import given
from hypothesis import strategies as st

from rhapsody.inference.replicas.shares import even_shares


def test_servers_of_equal_load_get_equal_shares() -> None:
    assert even_shares("abcde", {"one": 2, "two": 2}) == [
        ("one", ["a", "b", "c"]),
        ("two", ["d", "e"]),
    ]


def test_busy_server_gets_nothing() -> None:
    assert even_shares("ab", {"busy": 9, "idle": 0}) == [("idle", ["a", "b"])]


@given(st.lists(st.integers(0, 50), min_size=1, max_size=8), st.integers(1, 100))
def test_shares_are_the_batch_and_make_loads_even(loads: list[int], number: int) -> None:
    shares = even_shares(range(number), dict(enumerate(loads)))
    assert [prompt for _, share in shares for prompt in share] == list(range(number))
    raised = list(loads)
    for server, share in shares:
        raised[server] += len(share)
    used = [raised[server] for server, _ in shares]
    assert max(used) - min(used) <= 1
    assert all(raised[server] >= max(used) - 1 for server in range(len(loads)))
