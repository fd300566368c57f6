"""Which URLs in a request a model server would fetch."""

import json
from typing import Any

import pytest

from rhapsody.inference.http.media import remote_media


def chat(part: dict[str, Any]) -> bytes:
    return json.dumps({"messages": [{"role": "user", "content": [part]}]}).encode()


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": "http://10.0.0.1/a.png"}},
        {"type": "audio_url", "audio_url": {"url": "HTTPS://host/a.wav"}},
        {"type": "video_url", "video_url": "file:///etc/passwd"},
        {"type": "input_image", "image_url": "//host/a.png"},
    ],
)
def test_url_of_media_is_found(part: dict[str, Any]) -> None:
    assert remote_media(chat(part)) is not None


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
        {"type": "text", "text": "see http://host/a.png"},
        {"type": "image_url", "image_url": None},
    ],
)
def test_other_content_is_no_url(part: dict[str, Any]) -> None:
    assert remote_media(chat(part)) is None


def test_escaped_name_is_found() -> None:
    assert remote_media(rb'{"image\u005furl": "http://host/a.png"}') == "http://host/a.png"


@pytest.mark.parametrize("data", [b"", b"--boundary", b"\xff", b"[" * 100_000])
def test_other_bodies_have_none(data: bytes) -> None:
    assert remote_media(data) is None
