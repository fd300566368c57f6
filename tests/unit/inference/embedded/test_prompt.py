"""A prompt as the model reads it: length, opening, topic, room for a completion."""

import pytest

from rhapsody.inference.embedded.chat import render_chat, render_prompt
from rhapsody.inference.embedded.ngrams import Ngrams
from rhapsody.inference.embedded.prompt import Prompt
from rhapsody.inference.embedded.sampling import Sampling
from rhapsody.inference.protocol.errors import RequestError
from tests.support.images import chat_about, png, url_of

NGRAMS = Ngrams("Water is warm. Ice is cold.")


def read(text: str, max_model_len: int = 64, **sampling: object) -> Prompt:
    return Prompt.read(text, Sampling.parse(sampling), NGRAMS, max_model_len)


def test_plain_text_is_continued_from_its_last_tokens() -> None:
    prompt = read("Once upon Water is")
    assert prompt.length == 4
    assert prompt.context[-2:] == (" Water", " is")
    assert prompt.opening == ()
    assert not prompt.spaced


def test_chat_starts_a_new_sentence_about_its_topic() -> None:
    prompt = read(render_prompt("What is ice?"))
    assert prompt.context == ()
    assert prompt.spaced
    assert prompt.opening[-2:] == (" ice", ":")
    assert prompt.topic == {" ice"}
    assert prompt.starts is not None


def test_topic_comes_from_the_last_user_message() -> None:
    messages = [
        {"role": "user", "content": "Tell me about water."},
        {"role": "assistant", "content": "Yes."},
        {"role": "user", "content": "And ice?"},
    ]
    assert read(render_chat(messages)).topic == {" ice"}


def test_trailing_space_of_a_text_replaces_the_first_space() -> None:
    assert read("Once ").spaced


def test_default_max_tokens_is_the_remaining_context() -> None:
    assert read("a b c", max_model_len=10).max_tokens == 7
    assert read("a b c", max_model_len=1000).max_tokens == 64
    assert read("a b c", max_model_len=1000, max_tokens=9).max_tokens == 9


@pytest.mark.parametrize(
    ("text", "max_tokens", "param"),
    [("a b c d", None, "prompt"), ("a b", 3, "max_tokens")],
    ids=["prompt", "completion"],
)
def test_prompt_beyond_the_context_is_refused(
    text: str, max_tokens: int | None, param: str
) -> None:
    with pytest.raises(RequestError, match="maximum context length is 4 tokens") as raised:
        read(text, max_model_len=4, max_tokens=max_tokens)
    assert raised.value.param == param


def test_overlong_prompt_is_counted_up_to_the_limit_only() -> None:
    with pytest.raises(RequestError, match="more than 4 in the prompt"):
        read("word " * 10_000, max_model_len=4)


def test_empty_prompt_is_refused() -> None:
    with pytest.raises(RequestError, match="must not be empty"):
        read("")


def test_salt_depends_on_the_text_only() -> None:
    assert read("same").salt == read("same", temperature=0).salt != read("other").salt


def test_response_to_images_begins_with_their_sizes() -> None:
    one, two = url_of(png(40, 30)), url_of(png(2, 1))
    opening = "".join(read(render_chat(chat_about(one, text="Ice?")), 256).opening)
    assert opening.startswith(" The image is PNG of 40 x 30 pixels.")
    assert opening.endswith(" Ice:")
    opening = "".join(read(render_chat(chat_about(one, two, text="Ice?")), 256).opening)
    assert opening.startswith(" The images are PNG of 40 x 30 pixels; PNG of 2 x 1 pixels.")


def test_mark_of_an_image_in_a_text_is_harmless() -> None:
    read(render_prompt("a <|image|> b"), 256)
