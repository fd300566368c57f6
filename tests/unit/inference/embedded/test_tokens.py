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
def test_the_tokens_of_any_text_joined_are_the_text(text):
    assert "".join(tokenize(text)) == text


@given(ANY_TEXT)
def test_no_token_is_longer_than_a_bound(text):
    assert all(0 < len(token) <= 48 for token in tokenize(text * 20))


def test_words_numbers_and_marks_are_tokens():
    assert tokenize("It's 3.25 nm, not 4.") == ["It's", " 3.25", " nm", ",", " not", " 4", "."]


def test_a_mark_of_the_chat_template_is_one_token():
    assert tokenize("<|user|>\nhi<|end|>") == ["<|user|>", "\n", "hi", "<|end|>"]


def test_sentences_end_with_their_mark_and_line_breaks_do_not_matter():
    assert sentences_of("One\ntwo. Three") == [[" One", " two", "."], [" Three", "."]]


def test_the_last_user_message_is_the_question():
    messages = [
        {"role": "user", "content": "first"},
        {"role": "assistant", "content": "yes"},
        {"role": "user", "content": "second"},
    ]
    question = last_question(tokenize(render_chat(messages)))
    assert "".join(question).strip() == "second"


def test_a_text_to_continue_has_no_question():
    assert last_question(tokenize("Once upon a time")) is None


def test_the_topic_is_made_of_the_last_telling_words():
    assert topic_of(tokenize("What is the capital of France?")) == ["capital", "France"]
