"""One input as work of the scheduler: its checks and its numbers."""

from typing import Any

import pytest

from rhapsody.inference.embedded.pooling.vectors import embed, floats_of
from rhapsody.inference.embedded.pooling.work import PoolingWork
from rhapsody.inference.protocol.errors import RequestError

LABELS = ("one", "two")


def work(kind: Any, text: Any, document: Any = None, limit: int = 50) -> PoolingWork:
    return PoolingWork(kind, text, document, LABELS, limit)


def test_work_is_done_after_one_step() -> None:
    done = work("embed", "Heat is energy.")
    assert (done.finish_reason, done.length) == (None, 4)
    assert done.advance() == ""
    assert done.finish_reason == "stop"
    assert floats_of(done.data) == pytest.approx(embed("Heat is energy."), abs=1e-6)


def test_score_is_a_cosine_and_classes_have_labels() -> None:
    score, classes = work("score", "heat", "heat"), work("classify", "two and two")
    score.advance()
    classes.advance()
    assert floats_of(score.data) == pytest.approx([1])
    assert len(floats_of(classes.data)) == 2
    assert classes.labels == LABELS
    assert score.labels == ()


@pytest.mark.parametrize(
    ("arguments", "param"),
    [
        (("rank", "a"), "kind"),
        ((["embed"], "a"), "kind"),
        (("embed", ""), "prompt"),
        (("embed", None), "prompt"),
        (("embed", ["a"]), "prompt"),
        (("embed", "a", "b"), "document"),
        (("score", "a"), "document"),
        (("score", "a", ""), "document"),
        (("embed", "word " * 51), "prompt"),
        (("score", "word " * 26, "word " * 26), "prompt"),
    ],
)
def test_invalid_input_is_refused(arguments: Any, param: str) -> None:
    with pytest.raises(RequestError) as refused:
        work(*arguments)
    assert refused.value.param == param
