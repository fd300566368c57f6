"""Kinds of AI tasks: their inputs, and results in one buffer."""

import pickle
import sys
from array import array
from typing import Any

import pytest

from rhapsody.errors import PromptError
from rhapsody.inference.kinds import (
    FloatArray,
    PoolingInput,
    is_prompt,
    pooling_inputs,
    pooling_result,
)


def row(*numbers: float) -> bytes:
    data = array("f", numbers)
    if sys.byteorder == "big":
        data.byteswap()
    return data.tobytes()


@pytest.fixture
def no_numpy(monkeypatch: pytest.MonkeyPatch) -> None:
    found = "rhapsody.inference.kinds.importlib.util.find_spec"
    monkeypatch.setattr(found, lambda name: None)


@pytest.mark.parametrize(
    ("kind", "prompt", "valid"),
    [
        ("generate", "hi", True),
        ("generate", [[{"role": "user", "content": "hi"}]], True),
        ("generate", ("query", ["document"]), False),
        ("embed", ["a", "b"], True),
        ("embed", [], False),
        ("classify", [{"role": "user"}], False),
        ("score", "hi", False),
        ("score", ("query", []), False),
        ("score", [("query", "document", "more")], False),
    ],
)
def test_prompt_fits_its_kind(kind: str, prompt: Any, valid: bool) -> None:
    assert is_prompt(kind, prompt) is valid


def test_inputs_of_scores() -> None:
    one, two = PoolingInput("score", "q", "d"), PoolingInput("score", "q", "e")
    assert pooling_inputs("score", ("q", "d")) == ([one], True)
    assert pooling_inputs("score", ("q", ["d", "e"])) == ([one, two], False)
    assert pooling_inputs("score", [("q", "d"), ("q", "e")]) == ([one, two], False)


def test_single_text_is_one_row_and_list_has_rows() -> None:
    assert pooling_inputs("embed", "a") == ([PoolingInput("embed", "a")], True)
    assert pooling_result("embed", [row(1, 2)], [()], single=True).shape == (2,)
    rows = pooling_result("embed", [row(1, 2), row(3, 4), row(5, 6)], [()] * 3, single=False)
    assert rows.shape == (3, 2)
    assert rows.tolist() == [[1, 2], [3, 4], [5, 6]]


def test_numpy_array_owns_one_writable_buffer() -> None:
    np = pytest.importorskip("numpy")
    rows = pooling_result("embed", [row(1, 2), row(3, 4)], [()] * 2, single=False)
    assert isinstance(rows, np.ndarray)
    assert rows.dtype == np.float32
    assert rows.flags.c_contiguous
    assert rows.flags.writeable


def test_scores_and_classes() -> None:
    assert pooling_result("score", [row(0.5)], [()], single=True) == 0.5
    assert pooling_result("score", [row(0.5), row(0.25)], [()] * 2, single=False).tolist() == [
        0.5,
        0.25,
    ]
    found = pooling_result("classify", [row(0.25, 0.75)], [("a", "b")], single=True)
    assert found.label == "b"
    assert found.probabilities == {"a": 0.25, "b": 0.75}


@pytest.mark.parametrize(
    ("kind", "rows", "labels"),
    [
        ("embed", [row(1, 2), row(1)], [(), ()]),
        ("score", [row(1, 2)], [()]),
        ("classify", [row(1, 2)], [("a",)]),
    ],
)
def test_rows_of_wrong_length_are_refused(kind: str, rows: list[bytes], labels: Any) -> None:
    with pytest.raises(PromptError, match="the model server sent"):
        pooling_result(kind, rows, labels, single=False)


@pytest.mark.usefixtures("no_numpy")
def test_without_numpy_result_is_a_float_array() -> None:
    rows = pooling_result("embed", [row(1, 2), row(3, 4)], [()] * 2, single=False)
    assert isinstance(rows, FloatArray)
    assert (rows.shape, len(rows), rows.tolist()) == ((2, 2), 2, [[1, 2], [3, 4]])
    assert list(rows[1]) == [3, 4]
    assert [list(one) for one in rows[:1]] == [[1, 2]]
    scores = pooling_result("score", [row(1), row(3)], [()] * 2, single=False)
    assert (scores[-1], scores.tolist()) == (3, [1, 3])
    assert pickle.loads(pickle.dumps(rows)) == rows != scores


@pytest.mark.usefixtures("no_numpy")
def test_numpy_shares_the_buffer_of_a_float_array() -> None:
    np = pytest.importorskip("numpy")
    rows = pooling_result("embed", [row(1, 2), row(3, 4)], [()] * 2, single=False)
    shared = np.asarray(rows)
    assert shared.dtype == np.float32
    assert shared.shape == (2, 2)
    rows.buffer[0] = 7
    assert shared[0, 0] == 7
