"""The priority of HTTP requests, and its place in the body that a model server gets."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from rhapsody.inference.http.bodies import BodyError

__all__ = ["HEADER", "URGENT", "check_priority", "header_priority", "with_order"]

HEADER = "X-Rhapsody-Priority"
URGENT = 10
"""The priority of chats and completions: somebody waits for them."""
LIMIT = 100

ROUTES = frozenset({"/v1/chat/completions", "/v1/completions", "/v1/responses"})
"""Routes whose bodies have a field `priority`."""


def check_priority(value: Any) -> int:
    """Return a priority.

    Raises:
        BodyError: It is not a whole number from -100 to 100.
    """
    if isinstance(value, bool) or not isinstance(value, int) or abs(value) > LIMIT:
        raise BodyError(
            f"priority must be a whole number from -{LIMIT} to {LIMIT}, higher is first; got "
            f"{value!r:.80}",
            "priority",
        )
    return value


def header_priority(text: str | None) -> int | None:
    """Return the priority in a request's header, None without the header.

    Raises:
        BodyError: It is not a whole number from -100 to 100.
    """
    if text is None:
        return None
    try:
        return check_priority(int(text))
    except ValueError:
        return check_priority(text)


def with_order(path: str, data: bytes, header: str | None, order_of: Callable[[int], int]) -> bytes:
    """Return the body of a request with its place among others as the server's `priority`.

    Servers handle requests with lower numbers first, and do not age them.

    Args:
        path: The path of the request.
        data: The body. A body that is no JSON object is returned unchanged.
        header: The value of the priority header; a field `priority` in the body wins.
        order_of: Returns the place of a request of a priority.

    Raises:
        BodyError: The priority is not a whole number from -100 to 100.
    """
    start = len(data) - len(data.lstrip())
    if path not in ROUTES or data[start : start + 1] != b"{":
        return data
    given = header_priority(header)
    # A large body is parsed only if it may have the field, maybe in escaped characters.
    if b"priority" in data or b"\\u00" in data:
        try:
            body = json.loads(data)
        except (ValueError, RecursionError):
            return data
        if body.get("priority") is not None:
            given = check_priority(body["priority"])
        body["priority"] = order_of(URGENT if given is None else given)
        return json.dumps(body).encode("ascii")
    field = b'{"priority": %d' % order_of(URGENT if given is None else given)
    rest = data[start + 1 :].lstrip()
    return field + (b"" if rest.startswith(b"}") else b", ") + rest
