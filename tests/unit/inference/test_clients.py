"""The HTTP clients of a server: limits, shares and usage."""

from typing import Any

import pytest

from rhapsody.errors import ConfigurationError
from rhapsody.inference.clients import ApiKey, Client, Clients, parse_keys, replacing_keys
from tests.support.clock import FakeClock


def client(clock: FakeClock, **limits: float) -> Client:
    return Client("alice", ApiKey(key="secret", **limits), clock.time)  # type: ignore[arg-type]


def test_rate_is_prompts_per_minute() -> None:
    clock = FakeClock()
    alice = client(clock, rate=30)
    assert [alice.try_enter() for _ in range(30)] == [0.0] * 30
    assert alice.try_enter() == pytest.approx(2)
    clock.advance(2)
    assert alice.try_enter() == 0
    assert (alice.prompts, alice.refused) == (31, 1)


def test_large_request_is_paid_for_later() -> None:
    clock = FakeClock()
    alice = client(clock, rate=60)
    assert alice.try_enter(180) == 0
    assert alice.try_enter() == pytest.approx(121)
    clock.advance(121)
    assert alice.try_enter() == 0


def test_client_without_rate_is_never_refused() -> None:
    alice = client(FakeClock())
    assert alice.try_enter(10**6) == 0


def test_weights_share_the_model() -> None:
    clock = FakeClock()
    light, heavy = client(clock), client(clock, weight=3)
    orders = [(light.order(0), "light") for _ in range(400)]
    orders += [(heavy.order(0), "heavy") for _ in range(400)]
    first = [name for _, name in sorted(orders)[:400]]
    assert 290 <= first.count("heavy") <= 310


def test_priority_is_limited() -> None:
    clock = FakeClock()
    modest, bold = client(clock, max_priority=2), client(clock)
    assert modest.order(50) == bold.order(2)


def test_clients_are_found_by_key() -> None:
    clients = Clients(parse_keys({"alice": "a", "bob": {"key": "b", "weight": 2}}, "d"))
    assert [found and found.name for found in map(clients.find, "abdx")] == [
        "alice",
        "bob",
        "default",
        None,
    ]
    assert clients.find("") is None
    assert clients.required


def test_without_keys_everybody_is_one_client() -> None:
    clients = Clients({})
    assert not clients.required
    found = clients.find("anything")
    assert found is not None
    assert [one.name for one in clients] == [found.name] == ["default"]


def test_replaced_keys_keep_the_usage() -> None:
    clients = Clients(parse_keys({"alice": "a", "bob": "b"}))
    for key in "ab":
        found = clients.find(key)
        assert found is not None
        found.add_usage({"prompt_tokens": 3, "completion_tokens": 4})
    clients.replace(parse_keys({"alice": "c"}))
    assert clients.find("a") is clients.find("b") is None
    found = clients.find("c")
    assert found is not None
    assert (found.prompt_tokens, found.completion_tokens) == (3, 4)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"alice": ""}, "'key' must be non-empty text"),
        ({"alice": "two words"}, "'key' must be non-empty text"),
        ({"alice": {"key": "a", "weight": 0}}, "'weight' must be above 0"),
        ({"alice": {"key": "a", "rate": -1}}, "'rate' must be prompts per minute"),
        ({"alice": {"key": "a", "wieght": 1}}, "weight"),
        ({"alice": {}}, "key"),
        ({"alice": "same", "bob": "same"}, "the client 'bob' has the key of another one"),
    ],
)
def test_invalid_keys_are_refused(keys: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message) as refused:
        parse_keys(keys)  # type: ignore[arg-type]
    assert "two words" not in str(refused.value)


def test_name_of_the_client_with_api_key_is_taken() -> None:
    with pytest.raises(
        ConfigurationError, match="'default' is the name of the client with api_key"
    ):
        parse_keys({"default": "b"}, "a")
    assert list(parse_keys({"default": "b"})) == ["default"]


@pytest.mark.parametrize("keys", [None, ["a"], "a"])
def test_keys_that_are_no_dict_are_refused(keys: Any) -> None:
    with pytest.raises(ConfigurationError, match="'api_keys' must be a dict of keys by name"):
        parse_keys(keys)


def test_last_key_cannot_be_replaced_by_none() -> None:
    with pytest.raises(ConfigurationError, match="everybody could use the server"):
        replacing_keys({}, None)
    assert list(replacing_keys({}, "a")) == ["default"]
