"""The kinds of AI tasks: generate, embed, score and classify, with their inputs and results."""

from __future__ import annotations

import importlib.util
import sys
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, SupportsIndex

from rhapsody.errors import PromptError

__all__ = [
    "CHAT",
    "CLASSIFY",
    "EMBED",
    "EXPECTED_PROMPTS",
    "FIRST_VERSION",
    "GENERATE",
    "KINDS",
    "SCORE",
    "ChatTurn",
    "Classification",
    "FloatArray",
    "PoolingInput",
    "floats_of",
    "is_prompt",
    "pooling_inputs",
    "pooling_result",
]

GENERATE = "generate"
EMBED = "embed"
SCORE = "score"
CLASSIFY = "classify"
KINDS = (GENERATE, EMBED, SCORE, CLASSIFY)
FIRST_VERSION = "0"
"""The version of the weights that a model is started with."""
CHAT = "chat"
"""The kind of a `ChatTurn` in a batch."""

_TEXTS = "a non-empty string or a list of strings"
EXPECTED_PROMPTS = {
    GENERATE: "a non-empty string, a list of strings, or chat messages such as "
    '[{"role": "user", "content": "..."}]',
    EMBED: f"{_TEXTS} to embed",
    SCORE: "(query, document), (query, [documents]), or a list of (query, document) pairs",
    CLASSIFY: f"{_TEXTS} to classify",
}
"""The prompts of each kind, for error messages."""


@dataclass(frozen=True)
class PoolingInput:
    """One input of another kind than generate. Its result is a row of numbers.

    Args:
        kind: "embed", "score" or "classify".
        text: The text; the query of a score.
        document: The document of a score.
    """

    kind: str
    text: str
    document: str | None = None


@dataclass(frozen=True)
class ChatTurn:
    """A chat with tools. The model responds with a message, which may call tools.

    Args:
        messages: The chat.
        options: `tools` and sampling parameters, under OpenAI's names.
    """

    messages: Sequence[Mapping[str, Any]]
    options: Mapping[str, Any]


class Classification(NamedTuple):
    """The result of classifying one text.

    Attributes:
        label: The label with the highest probability.
        probabilities: The probability of each label of the model.
    """

    label: str
    probabilities: dict[str, float]


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_pair(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and len(value) == 2 and all(map(_is_text, value))


def _is_query_with_documents(value: Any) -> bool:
    return (
        isinstance(value, (list, tuple))
        and len(value) == 2
        and _is_text(value[0])
        and _is_list_of(_is_text, value[1])
    )


def _is_chat(value: Any) -> bool:
    return _is_list_of(lambda message: isinstance(message, Mapping) and "role" in message, value)


def _is_list_of(check: Any, value: Any) -> bool:
    return isinstance(value, (list, tuple)) and len(value) > 0 and all(map(check, value))


def is_prompt(kind: str, prompt: Any) -> bool:
    """Return whether a value has the type of a prompt of a kind. Its texts may be empty."""
    if kind == SCORE:
        return _is_pair(prompt) or _is_query_with_documents(prompt) or _is_list_of(_is_pair, prompt)
    if isinstance(prompt, str) or _is_list_of(_is_text, prompt):
        return True
    return kind == GENERATE and (_is_chat(prompt) or _is_list_of(_is_chat, prompt))


def pooling_inputs(kind: str, prompt: Any) -> tuple[list[PoolingInput], bool]:
    """Return the inputs of a task, and whether its prompt is a single one.

    Args:
        kind: "embed", "score" or "classify".
        prompt: A prompt for which `is_prompt` is true.
    """
    if kind != SCORE:
        single = isinstance(prompt, str)
        return [PoolingInput(kind, text) for text in ([prompt] if single else prompt)], single
    if _is_pair(prompt):
        return [PoolingInput(kind, *prompt)], True
    if _is_query_with_documents(prompt):
        query, documents = prompt
        return [PoolingInput(kind, query, document) for document in documents], False
    return [PoolingInput(kind, *pair) for pair in prompt], False


class FloatArray(Sequence[Any]):
    """Numbers of 32 bits in one buffer: the result of tasks where NumPy is not installed.

    `numpy.asarray` and `torch.frombuffer(result.buffer, dtype=torch.float32)` share the buffer.

    Args:
        buffer: The numbers.
        shape: `(n,)`, or `(n, d)` for n rows of d numbers.
    """

    __slots__ = ("buffer", "shape")

    def __init__(self, buffer: array[float], shape: tuple[int, ...]) -> None:
        self.buffer = buffer
        self.shape = shape

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: SupportsIndex | slice) -> Any:
        """Return a number, or a row as a view of the buffer; for a slice, a list of them."""
        if isinstance(index, slice):
            return [self[position] for position in range(*index.indices(len(self)))]
        position = range(len(self))[index]
        if len(self.shape) == 1:
            return self.buffer[position]
        width = self.shape[1]
        return memoryview(self.buffer)[position * width : (position + 1) * width]

    @property
    def __array_interface__(self) -> dict[str, Any]:
        kind = "<f4" if sys.byteorder == "little" else ">f4"
        address = self.buffer.buffer_info()[0]
        return {"shape": self.shape, "typestr": kind, "data": (address, False), "version": 3}

    def tolist(self) -> list[Any]:
        """Return the numbers as a list; of rows, as a list of lists."""
        return list(self.buffer) if len(self.shape) == 1 else [list(row) for row in self]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, FloatArray):
            return NotImplemented
        return self.shape == other.shape and self.buffer == other.buffer

    __hash__ = None  # type: ignore[assignment]  # it can be changed

    def __reduce__(self) -> tuple[Any, ...]:
        return FloatArray, (self.buffer, self.shape)

    def __repr__(self) -> str:
        return f"FloatArray(shape={self.shape})"


def floats_of(data: bytes) -> array[float]:
    """Return the numbers in bytes, which are float32 in little-endian order."""
    numbers = array("f")
    numbers.frombytes(data)
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers


def _array(data: bytes, shape: tuple[int, ...]) -> Any:
    if importlib.util.find_spec("numpy") is None:
        return FloatArray(floats_of(data), shape)
    import numpy as np

    return np.frombuffer(bytearray(data), "<f4").astype(np.float32, copy=False).reshape(shape)


def pooling_result(
    kind: str, rows: Sequence[bytes], labels: Sequence[Sequence[str]], *, single: bool
) -> Any:
    """Return the result of a task of another kind than generate.

    Args:
        kind: "embed", "score" or "classify".
        rows: The numbers of each input, float32 in little-endian order.
        labels: The labels of each input, for "classify".
        single: Whether the task has a single input and not a list.

    Returns:
        For "embed", float32 numbers: `(d,)` for one text, `(n, d)` for a list. For "score", a
        float, or float32 numbers `(n,)`. For "classify", a `Classification`, or a list of them.
        Arrays are NumPy's if it is installed, else a `FloatArray`.

    Raises:
        PromptError: The rows have different lengths, which no model returns.
    """
    if kind == CLASSIFY:
        found = [_classification(row, names) for row, names in zip(rows, labels, strict=True)]
        return found[0] if single else found
    width = len(rows[0]) // 4
    if any(len(row) != len(rows[0]) for row in rows) or (kind == SCORE and width != 1):
        raise PromptError(f"the model server sent rows of a wrong length for '{kind}'", 502)
    if kind == SCORE:
        return floats_of(rows[0])[0] if single else _array(b"".join(rows), (len(rows),))
    return _array(b"".join(rows), (width,) if single else (len(rows), width))


def _classification(row: bytes, names: Sequence[str]) -> Classification:
    numbers = floats_of(row)
    if len(numbers) != len(names) or not names:
        raise PromptError(
            f"the model server sent {len(numbers)} probabilities for {len(names)} labels", 502
        )
    probabilities = dict(zip(names, numbers, strict=True))
    return Classification(max(probabilities, key=probabilities.__getitem__), probabilities)
