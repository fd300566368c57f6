"""The chat template: renders a list of messages as one text for the model."""

from __future__ import annotations

import json

from rhapsody.inference.protocol.errors import RequestError

ROLES = ("system", "developer", "user", "assistant", "tool")
END = "<|end|>"
USER = "<|user|>"
ASSISTANT = "<|assistant|>"
TOOL = "<|tool|>"


def render_chat(messages: object) -> str:
    """Render a chat as one text, which ends where the model's reply begins.

    Args:
        messages: A list of `{"role": ..., "content": ...}`. The role is system, developer, user,
            assistant or tool; the content is a str or a list of `{"type": "text", "text": ...}`. A
            message of the assistant may have `tool_calls` instead.

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
        raise RequestError(
            f"{where} must be a str or a list of text parts, got {content!r:.80}.", where
        )
    texts = []
    for index, part in enumerate(content):
        kind = part.get("type") if isinstance(part, dict) else None
        text = part.get("text") if isinstance(part, dict) else None
        if kind != "text" or not isinstance(text, str):
            raise RequestError(
                f'{where}[{index}] must be {{"type": "text", "text": ...}}, got {part!r:.80}; '
                "the embedded model reads text only.",
                f"{where}[{index}]",
            )
        texts.append(text)
    return "\n".join(texts)
