"""Bodies of OpenAI requests: what is used, what is passed over, what is refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from rhapsody.inference.embedded.chat import render_chat
from rhapsody.inference.embedded.errors import RequestError
from rhapsody.inference.embedded.sampling import PARAMETERS, Sampling

# They say who asks, where to keep it and how urgent it is: the text would be the same.
_HARMLESS = frozenset(
    {
        "metadata",
        "parallel_tool_calls",
        "priority",
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
# They would change the result: only the values that ask for nothing are accepted.
_NOTHING: dict[str, tuple[object, ...]] = {
    "add_generation_prompt": (True,),
    "add_special_tokens": (True, False),
    "chat_template_kwargs": ({},),
    "continue_final_message": (False,),
    "functions": ([],),
    "modalities": (["text"],),
    "response_format": ({"type": "text"},),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "top_logprobs": (0,),
}
_STREAM_OPTIONS = frozenset({"include_usage", "include_obfuscation"})


@dataclass(frozen=True)
class OpenAIRequest:
    """A checked request.

    Args:
        prompts: What the model is to read, one or (completions only) several.
        sampling: How it is to answer each.
        stream: Whether the answer comes in pieces.
        include_usage: Whether a stream ends with the usage.
        echo: Whether the answer repeats the prompt (completions only).
    """

    prompts: list[str]
    sampling: Sampling
    stream: bool
    include_usage: bool
    echo: bool


def read_chat(body: Mapping[str, object], model: str) -> OpenAIRequest:
    """Check the body of `/v1/chat/completions`.

    Args:
        body: The body.
        model: The name that the model is served under.

    Returns:
        The request, its conversation rendered as one prompt.

    Raises:
        RequestError: A field is missing, wrong, or asks for what the model cannot do.
    """
    rest = dict(body)
    _check_model(rest.pop("model", None), model)
    messages = rest.pop("messages", None)
    completion = rest.pop("max_completion_tokens", None)
    if completion is not None:
        if rest.get("max_tokens") not in (None, completion):
            raise RequestError(
                "max_tokens and max_completion_tokens say different things.",
                "max_completion_tokens",
            )
        rest["max_tokens"] = completion
    stream, include_usage = _streaming(rest)
    sampling = _sampling(rest)
    return OpenAIRequest([render_chat(messages)], sampling, stream, include_usage, echo=False)


def read_completion(body: Mapping[str, object], model: str) -> OpenAIRequest:
    """Check the body of `/v1/completions`.

    Args:
        body: The body.
        model: The name that the model is served under.

    Returns:
        The request.

    Raises:
        RequestError: A field is missing, wrong, or asks for what the model cannot do.
    """
    rest = dict(body)
    _check_model(rest.pop("model", None), model)
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
    return OpenAIRequest(prompts, _sampling(rest), stream, include_usage, echo)


def _check_model(name: object, served: str) -> None:
    if name is not None and name != served:
        raise unknown_model(name)


def unknown_model(name: object) -> RequestError:
    """The error for a model that is not served here.

    Args:
        name: What was asked for.

    Returns:
        The error, with the words and the status that vLLM gives it.
    """
    shown = name if isinstance(name, str) else repr(name)
    return RequestError(f"The model `{shown}` does not exist.", "model", code=404)


def _flag(rest: dict[str, object], name: str) -> bool:
    value = rest.pop(name, None)
    if value is not None and not isinstance(value, bool):
        raise RequestError(f"{name} must be true or false, got {value!r:.80}.", name)
    return bool(value)


def _streaming(rest: dict[str, object]) -> tuple[bool, bool]:
    stream = _flag(rest, "stream")
    options = rest.pop("stream_options", None)
    if options is None:
        return stream, False
    if not stream:
        raise RequestError("stream_options needs stream=true.", "stream_options")
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
    """What is left of a body: sampling parameters, and fields to pass over or refuse."""
    values = {}
    for name, value in rest.items():
        if name in _NOTHING:
            if value is not None and value not in _NOTHING[name]:
                message = f"{name}={value!r:.80} is not supported by the embedded model."
                raise RequestError(message, name)
        elif name in PARAMETERS:
            values[name] = value
        elif name not in _HARMLESS and value is not None:
            raise RequestError(f"{name} is not supported by the embedded model.", name)
    return Sampling.parse(values)
