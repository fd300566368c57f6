"""The parameters of an endpoint backend."""

import logging
from typing import Any

import pytest

from rhapsody.errors import ConfigurationError
from rhapsody.inference.endpoints.config import EndpointConfig

URL = "http://host:8000/v1"


def test_slash_at_the_end_is_removed() -> None:
    assert EndpointConfig(base_url=f"{URL}/").urls == [URL]


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("host:8000/v1", "must be like 'http://host:8000/v1', got 'host:8000/v1'"),
        ("ftp://host/v1", "must be like"),
        ("http://host:x/v1", "must be like"),
        ("", "must be like"),
        (f"{URL}/chat/completions", f"must end before the route '/chat/completions': '{URL}'"),
        ("http://me:secret@host/v1", "must not contain a user or a password"),
        (f"{URL}?key=1", "must have no query"),
        ([], "must have at least one URL"),
        ([URL, f"{URL}/"], "has a URL twice"),
    ],
)
def test_invalid_url_is_refused(url: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message.replace("(", r"\(")):
        _ = EndpointConfig(base_url=url).urls


def test_password_in_a_url_is_not_repeated() -> None:
    with pytest.raises(ConfigurationError) as caught:
        _ = EndpointConfig(base_url="http://me:secret@host/v1").urls
    assert "secret" not in str(caught.value)


def test_one_key_is_for_all_urls() -> None:
    config = EndpointConfig(base_url=[URL, "http://other/v1"], api_key="key")
    assert config.keys == ["key", "key"]


def test_each_url_may_have_its_own_key() -> None:
    config = EndpointConfig(base_url=[URL, "http://other/v1"], api_key=["key", None])
    assert config.keys == ["key", None]
    with pytest.raises(ConfigurationError, match="has 1 keys for 2 URLs"):
        _ = EndpointConfig(base_url=[URL, "http://other/v1"], api_key=["key"]).keys


@pytest.mark.parametrize("key", ["", "a b", "a\nb", 7])
def test_invalid_key_is_refused_without_repeating_it(key: Any) -> None:
    with pytest.raises(ConfigurationError, match="'api_key' must be non-empty text") as caught:
        EndpointConfig(base_url=URL, api_key=key)
    assert str(key) not in str(caught.value) or not str(key).strip()


def test_key_is_not_shown() -> None:
    assert "a-secret" not in repr(EndpointConfig(base_url=URL, api_key="a-secret"))


def test_key_over_plain_http_is_warned_about(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        _ = EndpointConfig(base_url="http://127.0.0.1:1/v1", api_key="a-secret").keys
        assert not caplog.records
        _ = EndpointConfig(base_url=URL, api_key="a-secret").keys
    assert f"the key for {URL} is sent without encryption" in caplog.text
    assert "a-secret" not in caplog.text


def test_unknown_parameter_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="max_concurency"):
        EndpointConfig(base_url=URL, max_concurency=3)  # type: ignore[call-arg]  # on purpose
