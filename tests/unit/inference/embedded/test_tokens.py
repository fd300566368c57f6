"""Tokens: any text splits and joins; question and topic of a prompt."""

from hypothesis import given
from hypothesis import strategies as st

from rhapsody.inference.embedded.chat import render_chat
from rhapsody.inference.embedded.tokens import (
    last_question,
    sentences_of,
    tokenize,
    topic_of,
)

ANY_TEXT = st.text(st.characters(exclude_categories=()))


@given(ANY_TEXT)
def test_tokens_join_to_the_text(text: str) -> None:
    assert "".join(tokenize(text)) == text


@given(ANY_TEXT)
def test_token_length_is_bounded(text: str) -> None:
    assert all(0 < len(token) <= 48 for token in tokenize(text * 20))


def test_words_numbers_and_marks_are_tokens() -> None:
    assert tokenize("It's 3.25 nm, not 4.") == ["It's", " 3.25", " nm", ",", " not", " 4", "."]


def test_template_mark_is_one_token() -> None:
    assert tokenize("<|user|>\nhi<|end|>") == ["<|user|>", "\n", "hi", "<|end|>"]


def test_sentences_end_with_their_mark_across_lines() -> None:
    assert sentences_of("One\ntwo. Three") == [[" One", " two", "."], [" Three", "."]]


def test_last_user_message_is_the_question() -> None:
    messages = [
        {"role": "user", "content": "first"},
        {"role": "assistant", "content": "yes"},
        {"role": "user", "content": "second"},
    ]
    question = last_question(tokenize(render_chat(messages)))
    assert question is not None
    assert "".join(question).strip() == "second"


def test_plain_text_has_no_question() -> None:
    assert last_question(tokenize("Once upon a time")) is None


def test_topic_consists_of_uncommon_words() -> None:
    assert topic_of(tokenize("What is the capital of France?")) == ["capital", "France"]
