"""Bodies of OpenAI requests: the fields that are used, ignored or refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from rhapsody.inference.embedded.chat import render_chat
from rhapsody.inference.embedded.sampling import PARAMETERS, Sampling
from rhapsody.inference.embedded.structure.tool_calls import ToolCall, ToolUse
from rhapsody.inference.protocol.errors import RequestError

__all__ = ["OpenAIRequest", "check_model", "read_chat", "read_completion", "unknown_model"]

# They do not change the text.
_IGNORED = frozenset(
    {
        "metadata",
        "parallel_tool_calls",
        "prompt_cache_key",
        "prompt_cache_retention",
        "request_id",
        "return_token_ids",
        "safety_identifier",
        "service_tier",
        "store",
        "user",
    }
)
# They would change the text: only values without an effect are accepted.
_NEUTRAL: dict[str, tuple[object, ...]] = {
    "add_generation_prompt": (True,),
    "add_special_tokens": (True, False),
    "chat_template_kwargs": ({},),
    "continue_final_message": (False,),
    "functions": ([],),
    "modalities": (["text"],),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "top_logprobs": (0,),
}
_STREAM_OPTIONS = frozenset({"include_usage", "include_obfuscation"})


@dataclass(frozen=True)
class OpenAIRequest:
    """A validated request.

    Args:
        prompts: The prompts; more than one only on `/v1/completions`.
        sampling: The sampling parameters of each prompt.
        stream: Whether the response is streamed.
        include_usage: Whether a stream ends with the token usage.
        echo: Whether each completion starts with its prompt (`/v1/completions` only).
        order: Requests with lower numbers run first.
        calls: Calls of tools, which the model makes instead of writing a text.
    """

    prompts: list[str]
    sampling: Sampling
    stream: bool
    include_usage: bool
    echo: bool
    order: int = 0
    calls: list[ToolCall] = field(default_factory=list)


def read_chat(body: Mapping[str, object], model: str) -> OpenAIRequest:
    """Validate the body of `/v1/chat/completions`.

    Args:
        body: The body.
        model: The name that the model is served under.

    Returns:
        The request, its messages rendered as one prompt.

    Raises:
        RequestError: A field is missing, invalid, or not supported by the model.
    """
    rest = dict(body)
    check_model(rest.pop("model", None), model)
    messages = rest.pop("messages", None)
    completion = rest.pop("max_completion_tokens", None)
    if completion is not None:
        if rest.get("max_tokens") not in (None, completion):
            raise RequestError(
                "max_tokens and max_completion_tokens must not differ.",
                "max_completion_tokens",
            )
        rest["max_tokens"] = completion
    stream, include_usage = _streaming(rest)
    order = _order(rest)
    given = [rest.pop(name, None) for name in ("tools", "tool_choice", "parallel_tool_calls")]
    tools = ToolUse.parse(*given)
    sampling = _sampling(rest)
    prompts = [render_chat(messages)]
    calls: list[ToolCall] = []
    if tools is not None and isinstance(messages, list):
        calls = tools.calls(messages, sampling.seed)
    return OpenAIRequest(prompts, sampling, stream, include_usage, False, order, calls)


def read_completion(body: Mapping[str, object], model: str) -> OpenAIRequest:
    """Validate the body of `/v1/completions`.

    Args:
        body: The body.
        model: The name that the model is served under.

    Raises:
        RequestError: A field is missing, invalid, or not supported by the model.
    """
    rest = dict(body)
    check_model(rest.pop("model", None), model)
    prompt = rest.pop("prompt", None)
    prompts = [prompt] if isinstance(prompt, str) else prompt
    if not isinstance(prompts, list) or not prompts:
        raise RequestError(f"prompt must be a str or a list of str, got {prompt!r:.80}.", "prompt")
    if not all(isinstance(one, str) for one in prompts):
        raise RequestError(
            "prompt must be a str or a list of str; token ids are not supported by the embedded "
            "model.",
            "prompt",
        )
    echo = _flag(rest, "echo")
    stream, include_usage = _streaming(rest)
    order = _order(rest)
    return OpenAIRequest(prompts, _sampling(rest), stream, include_usage, echo, order)


def check_model(name: object, served: str) -> None:
    """Raise RequestError (404) if a request names another model than the served one."""
    if name is not None and name != served:
        raise unknown_model(name)


def unknown_model(name: object) -> RequestError:
    """Return the error for a model that is not served, with vLLM's text and status.

    Args:
        name: The requested model.
    """
    shown = name if isinstance(name, str) else repr(name)
    return RequestError(f"The model `{shown}` does not exist.", "model", code=404)


def _flag(rest: dict[str, object], name: str) -> bool:
    value = rest.pop(name, None)
    if value is not None and not isinstance(value, bool):
        raise RequestError(f"{name} must be true or false, got {value!r:.80}.", name)
    return bool(value)


def _order(rest: dict[str, object]) -> int:
    order = rest.pop("priority", None) or 0  # vLLM's name; lower is first
    if not isinstance(order, int):
        raise RequestError(f"priority must be an integer, got {order!r:.80}.", "priority")
    return order


def _streaming(rest: dict[str, object]) -> tuple[bool, bool]:
    stream = _flag(rest, "stream")
    options = rest.pop("stream_options", None)
    if options is None:
        return stream, False
    if not stream:
        raise RequestError("stream_options is allowed only with stream=true.", "stream_options")
    if not isinstance(options, dict):
        message = f"stream_options must be an object, got {options!r:.80}."
        raise RequestError(message, "stream_options")
    for name, value in options.items():
        if name not in _STREAM_OPTIONS and value:
            raise RequestError(
                f"stream_options.{name} is not supported by the embedded model.", "stream_options"
            )
    return stream, _flag(options, "include_usage")


def _sampling(rest: dict[str, object]) -> Sampling:
    """Parse the remaining fields: sampling parameters, and fields to ignore or refuse."""
    values = {}
    for name, value in rest.items():
        if name in _NEUTRAL:
            if value is not None and value not in _NEUTRAL[name]:
                message = f"{name}={value!r:.80} is not supported by the embedded model."
                raise RequestError(message, name)
        elif name in PARAMETERS:
            values[name] = value
        elif name not in _IGNORED and value is not None:
            raise RequestError(f"{name} is not supported by the embedded model.", name)
    return Sampling.parse(values)
