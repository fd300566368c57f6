"""Prompts for vLLM's own chat route: media in messages, parameters, and the last event."""

from types import SimpleNamespace
from typing import Any

import pytest

from rhapsody.inference.protocol.errors import RequestError
from rhapsody.inference.vllm.chat_route import MediaPolicy, chat_event, chat_sampling, media_parts
from tests.support.images import chat_about, png, url_of

IMAGE = {"type": "image_url", "image_url": {"url": url_of(png(4, 3))}}
REMOTE = {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}
TEXT = {"type": "text", "text": "Hello"}


def test_parts_that_are_no_text_are_found() -> None:
    messages = [{"role": "system", "content": "Be brief."}, *chat_about(url_of(png(4, 3)))]
    assert list(media_parts(messages)) == [("messages[1].content[1]", IMAGE)]


@pytest.mark.parametrize(
    "messages",
    [
        None,
        [],
        "text",
        ["text"],
        [{"role": "user", "content": "text"}],
        [{"role": "user", "content": [TEXT, "text", {"type": ["image_url"]}, 3]}],
    ],
)
def test_messages_without_media(messages: Any) -> None:
    assert not list(media_parts(messages))


def test_model_that_reads_text_only_refuses_media() -> None:
    policy = MediaPolicy(SimpleNamespace(is_multimodal_model=False, allowed_media_domains=None))
    with pytest.raises(RequestError) as caught:
        policy.check("messages[0].content[1]", IMAGE)
    assert str(caught.value) == (
        "messages[0].content[1] is of type 'image_url', but the model reads text only; serve a "
        "model that takes images."
    )
    assert (caught.value.code, caught.value.param) == (400, "messages")


def test_version_that_fetches_any_url_gets_none() -> None:
    policy = MediaPolicy(SimpleNamespace(is_multimodal_model=True))
    policy.check("messages[0].content[1]", IMAGE)
    with pytest.raises(RequestError, match="cannot limit from where it fetches media"):
        policy.check("messages[0].content[1]", REMOTE)


@pytest.mark.parametrize(
    "part",
    [
        REMOTE,
        {"image_url": "http://169.254.169.254/"},  # vLLM takes parts without a type
        {"type": "text", "text": "Hello", "uuid": "a", "image_url": "http://169.254.169.254/"},
        {"type": "image_url", **IMAGE, "audio_url": {"url": "http://169.254.169.254/"}},
    ],
)
def test_every_url_of_every_part_is_checked(part: Any) -> None:
    policy = MediaPolicy(SimpleNamespace(is_multimodal_model=True))
    [first, second] = media_parts([{"role": "user", "content": [IMAGE, TEXT, part]}])
    policy.check(*first)
    assert second == ("messages[0].content[2]", part)
    with pytest.raises(RequestError, match="cannot limit from where it fetches media"):
        policy.check(*second)


def test_version_that_limits_domains_decides_itself() -> None:
    policy = MediaPolicy(SimpleNamespace(is_multimodal_model=True, allowed_media_domains=["a"]))
    policy.check("messages[0].content[1]", REMOTE)


def test_sampling_parameters_of_the_chat_route() -> None:
    assert chat_sampling(None) == {}
    assert chat_sampling({"top_k": 3, "seed": None}) == {"top_k": 3}
    assert chat_sampling({"logprobs": 2}) == {"logprobs": True, "top_logprobs": 2}
    assert chat_sampling({"logprobs": True}) == {"logprobs": True}


def answer(*texts: str, **choice: Any) -> dict[str, Any]:
    choices = [
        {"index": index, "message": {"content": text}, "finish_reason": "length", **choice}
        for index, text in enumerate(texts)
    ]
    return {"choices": choices[::-1], "usage": {"prompt_tokens": 2, "completion_tokens": 3}}


def test_event_has_the_texts_in_order() -> None:
    event = chat_event("p", answer("a", "b"), has_tools=False)
    assert (event["texts"], event["finish_reasons"]) == (["a", "b"], ["length", "length"])
    assert event["usage"]["total_tokens"] == 5
    assert "message" not in event
    assert "logprobs" not in event


def test_event_has_log_probabilities_if_all_choices_do() -> None:
    found = [{"token": "a", "logprob": -1.0}]
    event = chat_event("p", answer("a", logprobs={"content": found}), has_tools=False)
    assert event["logprobs"] == [found]


def test_event_of_a_chat_with_tools_has_the_message() -> None:
    event = chat_event("p", answer("a"))
    assert event["message"] == {"content": "a"}
