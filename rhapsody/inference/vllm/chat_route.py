"""Prompts of the batch route that vLLM's own chat route completes: tools, and media in messages."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rhapsody.inference.protocol.batch import Event, done_event, token_usage
from rhapsody.inference.protocol.errors import RequestError

__all__ = ["MediaPolicy", "chat_event", "chat_sampling", "media_parts"]


def media_parts(messages: Any) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the place of each part of chat messages that is no text, and the part.

    vLLM also takes URLs of parts without a type, and of any part with a `uuid`.

    Args:
        messages: The messages, which are not checked yet.
    """
    for position, message in enumerate(messages if isinstance(messages, list) else ()):
        content = message.get("content") if isinstance(message, Mapping) else None
        for index, part in enumerate(content if isinstance(content, list) else ()):
            if not isinstance(part, Mapping):
                continue
            kind = part.get("type")
            is_media = isinstance(kind, str) and kind not in ("text", "refusal")
            if is_media or any(map(_is_url_field, part)):
                yield f"messages[{position}].content[{index}]", part


class MediaPolicy:
    """Which media a server's model takes.

    Args:
        config: vLLM's configuration of the model.
    """

    def __init__(self, config: Any) -> None:
        self._reads_text_only = getattr(config, "is_multimodal_model", None) is False
        # A version without the option fetches any URL; with it, only from the allowed domains.
        self._fetches_any_url = not hasattr(config, "allowed_media_domains")

    def check(self, where: str, part: Mapping[str, Any]) -> None:
        """Check a part of a message.

        Args:
            where: Its place, for the error.
            part: The part.

        Raises:
            RequestError: The model reads text only, or the server would fetch any URL.
        """
        if self._reads_text_only:
            raise RequestError(
                f"{where} is of type {part.get('type')!r:.80}, but the model reads text only; "
                "serve a model that takes images.",
                "messages",
            )
        if not self._fetches_any_url:
            return
        for name in filter(_is_url_field, part):
            value = part[name]
            url = value.get("url") if isinstance(value, Mapping) else value
            if not isinstance(url, str) or url.lstrip().lower().startswith("data:"):
                continue
            raise RequestError(
                f"{where} has the URL {url!r:.80}; this version of vLLM cannot limit from where "
                "it fetches media, so the media themselves must be sent.",
                "messages",
            )


def _is_url_field(name: str) -> bool:
    return name.endswith("_url")


def chat_sampling(sampling: Any) -> dict[str, Any]:
    """Return sampling parameters as the chat route takes them.

    Args:
        sampling: The parameters of a prompt. A number of `logprobs` becomes `top_logprobs`.
    """
    given = {name: value for name, value in (sampling or {}).items() if value is not None}
    likeliest = given.get("logprobs")
    if likeliest is not None and not isinstance(likeliest, bool):
        given["logprobs"], given["top_logprobs"] = True, likeliest
    return given


def chat_event(prompt_id: str, answer: Mapping[str, Any], *, has_tools: bool = True) -> Event:
    """Return the last event of a chat, given the response of vLLM's route.

    Args:
        prompt_id: The prompt's id.
        answer: The response.
        has_tools: Whether the event needs the message, which may call tools.
    """
    found = answer.get("usage") or {}
    usage = token_usage(found.get("prompt_tokens") or 0, found.get("completion_tokens") or 0)
    choices = sorted(answer["choices"], key=lambda choice: choice.get("index") or 0)
    texts = [choice["message"].get("content") or "" for choice in choices]
    reasons = [choice.get("finish_reason") or "stop" for choice in choices]
    event = done_event(prompt_id, texts, reasons, usage)
    if has_tools:
        message = choices[0]["message"]
        kept = {key: value for key, value in message.items() if value not in (None, [])}
        return {**event, "message": kept}
    logprobs = [(choice.get("logprobs") or {}).get("content") for choice in choices]
    return {**event, "logprobs": logprobs} if all(logprobs) else event
