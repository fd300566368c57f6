"""The configuration of the HTTP server."""

import socket
from typing import Any

import pytest

from rhapsody.errors import ConfigurationError
from rhapsody.inference.configuration.listening import ListenConfig


def test_keys_have_the_names_of_their_clients() -> None:
    config = ListenConfig(api_key="one", api_keys={"alice": "two"})
    assert {name: key.key for name, key in config.keys().items()} == {
        "default": "one",
        "alice": "two",
    }


def test_given_host_is_the_address() -> None:
    assert ListenConfig(host="127.0.0.1").bind_address() == "127.0.0.1"


def test_name_that_cannot_be_resolved_means_all_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    assert ListenConfig().bind_address() is None


@pytest.mark.parametrize(
    ("field", "value"), [("port", 65536), ("api_key", "a b"), ("cors_origins", ["app.example"])]
)
def test_invalid_value_is_refused(field: str, value: Any) -> None:
    with pytest.raises(ConfigurationError, match=field):
        ListenConfig(**{field: value})
