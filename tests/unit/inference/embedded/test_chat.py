"""The chat template: rendered messages, and the errors of malformed ones."""

from typing import Any

import pytest

from rhapsody.inference.embedded import RequestError
from rhapsody.inference.embedded.chat import render_chat, render_prompt
from tests.support.images import chat_about, png, url_of


def test_chat_ends_where_the_reply_begins() -> None:
    text = render_chat(
        [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]
    )
    assert text == "<|system|>\nBe brief.<|end|>\n<|user|>\nWhy?<|end|>\n<|assistant|>\n"


def test_text_parts_are_joined_by_newlines() -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    assert "one\ntwo" in render_chat([{"role": "user", "content": parts}])


def test_prompt_is_rendered_as_one_user_message() -> None:
    assert render_prompt("Why?") == render_chat([{"role": "user", "content": "Why?"}])


@pytest.mark.parametrize("role", ["system", "developer", "user", "assistant", "tool"])
def test_every_role_is_accepted(role: str) -> None:
    assert f"<|{role}|>" in render_chat([{"role": role, "content": "x"}])


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        (None, "messages"),
        ([], "messages"),
        ("hello", "messages"),
        (["hello"], "messages[0]"),
        ([{"role": "user", "content": "x"}, {"content": "y"}], "messages[1].role"),
        ([{"role": "king", "content": "x"}], "messages[0].role"),
        ([{"role": ["user"], "content": "x"}], "messages[0].role"),
        ([{"role": "user"}], "messages[0].content"),
        ([{"role": "user", "content": 3}], "messages[0].content"),
        ([{"role": "user", "content": ["x"]}], "messages[0].content[0]"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], "messages[0].content[0]"),
        ([{"role": "user", "content": "x", "tool_calls": [1]}], "messages[0].tool_calls"),
        ([{"role": "assistant", "content": "x", "tool_calls": 1}], "messages[0].tool_calls"),
    ],
)
def test_malformed_messages_are_named(messages: Any, param: str) -> None:
    with pytest.raises(RequestError) as caught:
        render_chat(messages)
    assert caught.value.param == param
    assert param in str(caught.value)


def test_empty_prompt_is_refused() -> None:
    with pytest.raises(RequestError, match="empty"):
        render_prompt("")


def test_image_is_rendered_as_its_format_and_size() -> None:
    text = render_chat(chat_about(url_of(png(40, 30)), url_of(png(2, 1))))
    assert "Describe it\n<|image|>PNG of 40 x 30 pixels<|image|>\n<|image|>PNG of 2 x 1" in text
    as_text = [{"role": "user", "content": [{"type": "image_url", "image_url": url_of(png(1, 1))}]}]
    assert "PNG of 1 x 1 pixels" in render_chat(as_text)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("https://example.org/a.png", "must be a data: URL"),
        ("data:image/png;base64,a*", "are not base64"),
        (url_of(b"no image"), "is not an image; it must be PNG"),
    ],
)
def test_image_that_cannot_be_read_is_refused(url: str, message: str) -> None:
    with pytest.raises(RequestError, match=message) as caught:
        render_chat(chat_about(url))
    assert caught.value.param == "messages[0].content[1]"
