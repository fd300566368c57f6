"""Media in requests: URLs that a model server would fetch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

__all__ = ["remote_media"]


def remote_media(data: bytes) -> str | None:
    """Return the first URL in a request's body from which a server would fetch media.

    Those are the values of fields such as `image_url`, `audio_url` and `video_url`, except `data:`
    URLs, which hold the media themselves.

    Args:
        data: The body. A body that is not JSON has no such field.
    """
    try:
        left = [json.loads(data)]
    except (ValueError, RecursionError):
        return None
    while left:
        value = left.pop()
        if isinstance(value, Mapping):
            for name, part in value.items():
                if name.endswith("_url") and (url := _remote_url(part)) is not None:
                    return url
            left.extend(value.values())
        elif isinstance(value, list):
            left.extend(value)
    return None


def _remote_url(part: Any) -> str | None:
    url = part.get("url") if isinstance(part, Mapping) else part
    if not isinstance(url, str) or url.lstrip().lower().startswith("data:"):
        return None
    return url
