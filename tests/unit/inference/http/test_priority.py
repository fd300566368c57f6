"""The priority of HTTP requests."""

import json
from typing import Any

import pytest

from rhapsody.inference.http.bodies import BodyError
from rhapsody.inference.http.priority import URGENT, with_order
from rhapsody.inference.prompts import order_of

CHAT = "/v1/chat/completions"


def sent(body: dict[str, Any], header: str | None = None) -> dict[str, Any]:
    sent: dict[str, Any] = json.loads(with_order(CHAT, json.dumps(body).encode(), header, order_of))
    return sent


def is_order(order: int, priority: int) -> bool:
    return order_of(priority) - 10_000 < order <= order_of(priority)


@pytest.mark.parametrize("body", [{}, {"model": "m", "messages": []}, {"text": "\u00e9"}])
@pytest.mark.parametrize(("header", "priority"), [(None, URGENT), ("0", 0), ("-7", -7)])
def test_header_is_the_priority_and_urgent_the_default(
    body: dict[str, Any], header: str | None, priority: int
) -> None:
    result = sent(body, header)
    assert is_order(result.pop("priority"), priority)
    assert result == body


def test_field_of_the_body_wins() -> None:
    assert is_order(sent({"priority": 3, "n": 1}, "50")["priority"], 3)
    assert is_order(sent({"priority": None}, "50")["priority"], 50)


def test_escaped_field_cannot_set_the_place() -> None:
    data = with_order(CHAT, rb'{"n": 1, "pri\u006frity": 9}', None, order_of)
    assert is_order(json.loads(data)["priority"], 9)


@pytest.mark.parametrize(
    ("path", "data"),
    [
        ("/v1/models", b"{}"),
        (CHAT, b""),
        (CHAT, b"[1]"),
        (CHAT, b'{"priority": '),
    ],
)
def test_other_bodies_are_unchanged(path: str, data: bytes) -> None:
    assert with_order(path, data, None, order_of) == data


@pytest.mark.parametrize("header", ["", "high", "1.5", "101", "-101"])
def test_invalid_header_is_refused(header: str) -> None:
    with pytest.raises(BodyError, match="a whole number from -100 to 100"):
        with_order(CHAT, b"{}", header, order_of)


@pytest.mark.parametrize("priority", [1.5, True, "1", 10**9])
def test_invalid_field_is_refused(priority: Any) -> None:
    with pytest.raises(BodyError, match="a whole number from -100 to 100"):
        sent({"priority": priority})
