"""The chat template: renders a list of messages as one text for the model."""

from __future__ import annotations

import json

from rhapsody.inference.images import FORMATS, image_bytes, image_size
from rhapsody.inference.protocol.errors import RequestError

ROLES = ("system", "developer", "user", "assistant", "tool")
END = "<|end|>"
USER = "<|user|>"
ASSISTANT = "<|assistant|>"
TOOL = "<|tool|>"
IMAGE = "<|image|>"
"""Stands before and after the description of an image."""


def render_chat(messages: object) -> str:
    """Render a chat as one text, which ends where the model's reply begins.

    Args:
        messages: A list of `{"role": ..., "content": ...}`. The role is system, developer, user,
            assistant or tool; the content is a str or a list of parts, each a text or an image in a
            `data:` URL. A message of the assistant may have `tool_calls` instead.

    Raises:
        RequestError: A message is malformed; the error names it.
    """
    if not isinstance(messages, list) or not messages:
        raise RequestError(
            f"messages must be a non-empty list of messages, got {messages!r:.80}.", "messages"
        )
    parts = []
    for index, message in enumerate(messages):
        where = f"messages[{index}]"
        if not isinstance(message, dict):
            raise RequestError(
                f"{where} must be an object with role and content, got {message!r:.80}.", where
            )
        role = message.get("role")
        if role not in ROLES:
            raise RequestError(
                f"{where}.role must be one of {', '.join(ROLES)}, got {role!r:.80}.",
                f"{where}.role",
            )
        for name in ("function_call", "audio"):
            if message.get(name):
                raise RequestError(
                    f"{where}.{name} is not supported by the embedded model.", f"{where}.{name}"
                )
        content, calls = message.get("content"), message.get("tool_calls")
        if calls and (role != "assistant" or not isinstance(calls, list)):
            raise RequestError(
                f"{where}.tool_calls must be a list in a message of the assistant, got "
                f"{calls!r:.80}.",
                f"{where}.tool_calls",
            )
        text = "" if calls and content is None else _content(content, f"{where}.content")
        if calls:
            text += json.dumps([call.get("function") for call in calls if isinstance(call, dict)])
        parts.append(f"<|{role}|>\n{text}{END}\n")
    return "".join(parts) + f"{ASSISTANT}\n"


def render_prompt(prompt: str) -> str:
    """Render a prompt as a chat of one user message.

    Args:
        prompt: The user message.

    Raises:
        RequestError: The prompt is empty.
    """
    if not prompt:
        raise RequestError("The prompt must not be empty.", "prompt")
    return render_chat([{"role": "user", "content": prompt}])


def _content(content: object, where: str) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise RequestError(f"{where} must be a str or a list of parts, got {content!r:.80}.", where)
    return "\n".join(_part(part, f"{where}[{index}]") for index, part in enumerate(content))


def _part(part: object, where: str) -> str:
    kind = part.get("type") if isinstance(part, dict) else None
    value = part.get(kind) if isinstance(part, dict) and kind in ("text", "image_url") else None
    if kind == "image_url":
        url = value.get("url") if isinstance(value, dict) else value
        if isinstance(url, str):
            return _image(url, where)
    elif isinstance(value, str):
        return value
    raise RequestError(
        f'{where} must be {{"type": "text", "text": ...}} or {{"type": "image_url", "image_url": '
        f'{{"url": ...}}}}, got {part!r:.80}; the embedded model reads texts and images only.',
        where,
    )


def _image(url: str, where: str) -> str:
    """Describe an image. Nothing is fetched: its URL must hold its data."""
    try:
        found = image_size(image_bytes(url))
    except ValueError as error:
        raise RequestError(f"{where}.image_url: {error}, got {url[:60]!r}.", where) from None
    if found is None:
        raise RequestError(f"{where}.image_url is not an image; it must be {FORMATS}.", where)
    text = f"{found.format.upper()} of {found.width} x {found.height} pixels"
    return f"{IMAGE}{text}{IMAGE}"
