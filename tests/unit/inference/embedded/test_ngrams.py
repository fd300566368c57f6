"""N-grams: followers of a context, and sentences about a word."""

import pytest

from rhapsody.inference.embedded.ngrams import Ngrams

TEXT = "Water is warm. Water is cold. Ice is cold. Steam rises."


def options(ngrams: Ngrams, *context: str) -> set[str | int]:
    found = ngrams.following(context)
    assert found is not None
    return set(found.options)


def test_followers_come_from_the_text() -> None:
    ngrams = Ngrams(TEXT)
    assert options(ngrams, " Water") == {" is"}
    assert options(ngrams, " is") == {" warm", " cold"}


def test_longer_context_outweighs_shorter_one() -> None:
    found = Ngrams(TEXT).following((" Ice", " is"))
    assert found is not None
    assert found.options[0] == " cold"


def test_unknown_beginning_of_a_context_is_ignored() -> None:
    assert options(Ngrams(TEXT), " Nothing", " Steam") == {" rises"}


def test_unknown_context_has_no_followers() -> None:
    assert Ngrams(TEXT).following((" Nothing",)) is None


def test_sentences_about_a_word_come_first() -> None:
    ngrams = Ngrams(TEXT)
    found = ngrams.sentences_about(["ice"], salt=0)
    assert found is not None
    assert [ngrams.sentences[int(number)][0] for number in found.options] == [" Ice"]


def test_rare_word_outweighs_frequent_one() -> None:
    ngrams = Ngrams(TEXT)
    found = ngrams.sentences_about(["waters", "steam"], salt=0)
    assert found is not None
    assert ngrams.sentences[int(found.options[0])][0] == " Steam"
    assert len(found.options) == 3


def test_unknown_words_have_no_sentences() -> None:
    assert Ngrams(TEXT).sentences_about(["quark"], salt=0) is None


def test_other_sentences_depend_on_the_turn_only() -> None:
    ngrams = Ngrams(TEXT)
    first = ngrams.other_sentences(5)
    assert list(first.options) == list(ngrams.other_sentences(5).options)
    assert set(first.options) <= set(range(len(ngrams.sentences)))


def test_text_without_sentences_is_refused() -> None:
    with pytest.raises(ValueError, match="no sentence"):
        Ngrams(" \n ")
