"""A text that is known in advance, written token by token like a completion."""

from __future__ import annotations

from collections import deque

from rhapsody.inference.embedded.tokens import tokenize

__all__ = ["KnownText"]


class KnownText:
    """A known text while it is written.

    Args:
        text: The text.
        max_tokens: Maximum number of its tokens that are written.
    """

    def __init__(self, text: str, max_tokens: int) -> None:
        self._left = deque(tokenize(text))
        self._max_tokens = max_tokens
        self.text = ""
        self.tokens = 0
        self.finish_reason: str | None = None

    def advance(self) -> str:
        """Write one more token, and return it."""
        token = self._left.popleft() if self._left else ""
        self.text += token
        self.tokens += 1
        if not self._left:
            self.finish_reason = "stop"
        elif self.tokens >= self._max_tokens:
            self.finish_reason = "length"
        return token
