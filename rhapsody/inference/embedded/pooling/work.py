"""One input that the model turns into numbers, as work for the scheduler of prompts."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

from rhapsody.inference.embedded.pooling.vectors import bytes_of, cosine, embed, probabilities
from rhapsody.inference.embedded.tokens import iterate_tokens
from rhapsody.inference.protocol.errors import RequestError

__all__ = ["PoolingWork"]


class PoolingWork:
    """One input and, after its only step, its numbers.

    Args:
        kind: "embed", "score" or "classify".
        text: The text; the query of a score.
        document: The document of a score, else None.
        labels: The labels of the model.
        max_model_len: Maximum number of tokens.

    Raises:
        RequestError: The kind is unknown, or a text is missing, empty or too long.
    """

    def __init__(
        self,
        kind: object,
        text: object,
        document: object,
        labels: Sequence[str],
        max_model_len: int,
    ) -> None:
        if kind not in ("embed", "score", "classify"):
            raise RequestError(
                f"kind must be 'embed', 'score' or 'classify', got {kind!r:.80}.", "kind"
            )
        if (document is None) == (kind == "score"):
            raise RequestError("document must be given for the kind 'score' only.", "document")
        given = {"prompt": text, "document": document}
        for name, value in given.items():
            missing = value is None and name == "prompt"
            if missing or value == "" or not isinstance(value, (str, type(None))):
                raise RequestError(f"{name} must be a non-empty str, got {value!r:.80}.", name)
        self.kind = str(kind)
        self.labels = tuple(labels) if kind == "classify" else ()
        self.data = b""
        self.text = ""
        self.tokens = 0
        self.finish_reason: str | None = None
        self._texts = [str(value) for value in given.values() if value is not None]
        limit = max_model_len + 1
        self.length = sum(
            sum(1 for _ in islice(iterate_tokens(text), limit)) for text in self._texts
        )
        if self.length > max_model_len:
            raise RequestError(
                f"This model's maximum context length is {max_model_len} tokens, and the input "
                "has more. Please shorten it.",
                "prompt",
            )

    def advance(self) -> str:
        """Compute the numbers."""
        vectors = [embed(text) for text in self._texts]
        numbers = vectors[0]
        if self.kind == "score":
            numbers = [cosine(*vectors)]
        elif self.kind == "classify":
            numbers = probabilities(self._texts[0], self.labels)
        self.data = bytes_of(numbers)
        self.finish_reason = "stop"
        return ""
