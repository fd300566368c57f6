import pytest

from rhapsody.inference.embedded import RequestError
from rhapsody.inference.embedded.chat import render_chat, render_prompt


def test_a_conversation_is_rendered_up_to_where_the_answer_begins():
    text = render_chat(
        [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]
    )
    assert text == "<|system|>\nBe brief.<|end|>\n<|user|>\nWhy?<|end|>\n<|assistant|>\n"


def test_text_parts_are_joined():
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    assert "one\ntwo" in render_chat([{"role": "user", "content": parts}])


def test_a_lone_prompt_is_one_user_message():
    assert render_prompt("Why?") == render_chat([{"role": "user", "content": "Why?"}])


@pytest.mark.parametrize("role", ["system", "developer", "user", "assistant", "tool"])
def test_every_role_is_taken(role):
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
        ([{"role": "assistant", "content": "x", "tool_calls": [1]}], "messages[0].tool_calls"),
    ],
)
def test_what_is_wrong_with_messages_is_named(messages, param):
    with pytest.raises(RequestError) as caught:
        render_chat(messages)
    assert caught.value.param == param
    assert param in str(caught.value)


def test_an_empty_prompt_is_refused():
    with pytest.raises(RequestError, match="empty"):
        render_prompt("")
