"""The chat template: from a list of messages to the one text that the model reads."""

from __future__ import annotations

from rhapsody.inference.embedded.errors import RequestError

ROLES = ("system", "developer", "user", "assistant", "tool")
END = "<|end|>"
USER = "<|user|>"
ASSISTANT = "<|assistant|>"


def render_chat(messages: object) -> str:
    """Write a conversation as the text that ends where the model's answer begins.

    Args:
        messages: A list of `{"role": ..., "content": ...}` with a role of system, developer, user,
            assistant or tool, and a str or a list of `{"type": "text", "text": ...}` as content.

    Returns:
        The conversation as one text.

    Raises:
        RequestError: The messages are not of that form; the error names the message at fault.
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
        for name in ("tool_calls", "function_call", "audio"):
            if message.get(name):
                raise RequestError(
                    f"{where}.{name} is not supported by the embedded model.", f"{where}.{name}"
                )
        text = _content(message.get("content"), f"{where}.content")
        parts.append(f"<|{role}|>\n{text}{END}\n")
    return "".join(parts) + f"{ASSISTANT}\n"


def render_prompt(prompt: str) -> str:
    """Write a lone prompt as a conversation of one user message.

    Args:
        prompt: The prompt.

    Returns:
        What `render_chat` gives for one user message with that content.

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
