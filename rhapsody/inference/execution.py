"""The execution of one AI task: its prompts through a service, and its result fields."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from rhapsody.errors import PartialFailureError, PromptError
from rhapsody.inference.gather import gather_outcomes
from rhapsody.inference.kinds import GENERATE, ChatTurn, pooling_inputs, pooling_result
from rhapsody.inference.prompts import Completion, Prompt
from rhapsody.inference.structured import parsed_response, with_schema
from rhapsody.sampling import SAMPLING_FIELDS

__all__ = [
    "ParsedCompletion",
    "PromptService",
    "all_or_raise",
    "complete_all",
    "is_one_prompt",
    "kind_of",
    "parsed_outcome",
    "run_prompt",
]

ParsedCompletion = tuple[Completion, Any]
"""A completion, and the object parsed from it by `response_format`, if any."""


class PromptService(Protocol):
    """Completes prompts, on the service loop."""

    @property
    def window(self) -> int:
        """How many prompts of one request may be in progress at a time."""

    async def complete(
        self,
        prompt: Prompt,
        system_prompt: str | None = None,
        sampling: Mapping[str, Any] | None = None,
        on_sent: Callable[[Any], None] | None = None,
        on_text: Callable[[str], Any] | None = None,
        priority: int = 0,
        adapter: str | None = None,
    ) -> Completion:
        """Complete one prompt.

        Args:
            prompt: A text, chat messages, or an input of another kind.
            system_prompt: The system message before it.
            sampling: The sampling parameters.
            on_sent: Called with the server each time the prompt is sent to one.
            on_text: Called with each piece of the response as it arrives.
            priority: Prompts of higher priority are sent first.
            adapter: The LoRA adapter to respond with; None: the model itself.

        Raises:
            PromptError: The server refused the prompt.
            ReplicaError: No server could complete it.
        """

    def get_statistics(self) -> dict[str, Any]:
        """Return counts of prompts, and the state of the servers under `replicas`."""


async def run_prompt(
    service: PromptService,
    task: Mapping[str, Any],
    on_sent: Callable[[Any], None] | None = None,
    on_text: Callable[[str], Any] | None = None,
) -> dict[str, Any]:
    """Complete the prompts of a task.

    Args:
        service: What completes them.
        task: The fields of an AI task.
        on_sent: Called with the server each time a prompt is sent to one.
        on_text: Called with each piece of the response, for a task with one prompt.

    Returns:
        The result fields, such as `response` and `usage`.

    Raises:
        PartialFailureError: Some prompts of a list failed.
        PromptError: A server refused the prompt.
        ReplicaError: No server could complete it.
    """
    if kind_of(task) != GENERATE:
        return await _pool(service, task, on_sent)
    if task.get("tools"):
        return await _take_turn(service, task, on_sent)
    prompt, system_prompt = task["prompt"], task.get("system_prompt")
    priority = task.get("priority") or 0
    sampling = {k: task[k] for k in SAMPLING_FIELDS & task.keys() if task[k] is not None}
    response_format = sampling.get("response_format")
    if not is_one_prompt(prompt):
        outcomes = await complete_all(
            service, prompt, system_prompt, sampling, on_sent, priority, task.get("adapter")
        )
        each = [parsed_outcome(outcome, response_format) for outcome in outcomes]
        return _result_fields(each, single=False)
    completion = await service.complete(
        prompt,
        system_prompt,
        with_schema(sampling),
        on_sent,
        on_text,
        priority,
        task.get("adapter"),
    )
    return _result_fields([(completion, parsed_response(completion, response_format))], single=True)


async def _take_turn(
    service: PromptService, task: Mapping[str, Any], sent: Callable[[Any], None] | None
) -> dict[str, Any]:
    """Respond to a chat with tools. The result fields include the `message` of the model."""
    sampling = {k: task[k] for k in SAMPLING_FIELDS & task.keys() if task[k] is not None}
    options = {**with_schema(sampling), "tools": task["tools"]}
    if task.get("tool_choice") is not None:
        options["tool_choice"] = task["tool_choice"]
    turn = ChatTurn(task["prompt"], options)
    completion = await service.complete(
        turn, None, None, sent, None, task.get("priority") or 0, task.get("adapter")
    )
    message = completion.message or {"role": "assistant", "content": completion.texts[0]}
    called = bool(message.get("tool_calls"))
    wanted = None if called else sampling.get("response_format")
    parsed = completion, parsed_response(completion, wanted)
    return {**_result_fields([parsed], single=True), "message": dict(message)}


async def _pool(
    service: PromptService, task: Mapping[str, Any], sent: Callable[[Any], None] | None
) -> dict[str, Any]:
    """Embed, score or classify the inputs of a task."""
    kind = kind_of(task)
    inputs, single = pooling_inputs(kind, task["prompt"])
    priority = task.get("priority") or 0
    outcomes = await complete_all(service, inputs, None, {}, sent, priority, task.get("adapter"))
    if single and isinstance(outcomes[0], BaseException):
        raise outcomes[0]
    errors = [one if isinstance(one, BaseException) else None for one in outcomes]
    done = [one for one in outcomes if not isinstance(one, BaseException)]
    if any(errors):
        each = [
            None
            if isinstance(one, BaseException)
            else pooling_result(kind, [one.data], [one.labels], single=True)
            for one in outcomes
        ]
        raise PartialFailureError(each, errors)
    rows, labels = [one.data for one in done], [one.labels for one in done]
    response = pooling_result(kind, rows, labels, single=single)
    same = {"response": response, "stdout": response, "return_value": response}
    return {**same, "usage": _total_usage(done), **_versions(done, single=single)}


async def complete_all(
    service: PromptService,
    prompts: Sequence[Any],
    system_prompt: str | None,
    sampling: Mapping[str, Any],
    on_sent: Callable[[Any], None] | None = None,
    priority: int = 0,
    adapter: str | None = None,
) -> list[Completion | BaseException]:
    """Complete prompts that share their parameters.

    Args:
        service: What completes them.
        prompts: Texts, chats or inputs of another kind.
        system_prompt: The system message before each.
        sampling: The sampling parameters.
        on_sent: Called with the server each time a prompt is sent to one.
        priority: Prompts of higher priority are sent first.
        adapter: The LoRA adapter to respond with.

    Returns:
        The completion or the error of each prompt, in order.
    """
    sampling = with_schema(sampling)
    return await gather_outcomes(
        (
            service.complete(prompt, system_prompt, sampling, on_sent, None, priority, adapter)
            for prompt in prompts
        ),
        at_once=service.window,
    )


def is_one_prompt(prompt: Any) -> bool:
    """Return whether a prompt to generate from is a single text or chat, and not a list."""
    return isinstance(prompt, str) or isinstance(prompt[0], Mapping)


def kind_of(task: Mapping[str, Any]) -> str:
    """Return the kind of an AI task."""
    return task.get("kind") or GENERATE


def parsed_outcome(
    outcome: Completion | BaseException, response_format: Any
) -> ParsedCompletion | BaseException:
    """Return a completion with the object parsed from it; errors are returned as they are."""
    if isinstance(outcome, BaseException):
        return outcome
    try:
        return outcome, parsed_response(outcome, response_format)
    except PromptError as error:
        return error


def all_or_raise(outcomes: Sequence[ParsedCompletion | BaseException]) -> list[ParsedCompletion]:
    """Return the outcomes if all prompts succeeded, else raise a PartialFailureError."""
    errors = [o if isinstance(o, BaseException) else None for o in outcomes]
    if any(errors):
        results = [None if isinstance(o, BaseException) else o[0].response for o in outcomes]
        raise PartialFailureError(results, errors)
    return [o for o in outcomes if not isinstance(o, BaseException)]


def _result_fields(
    outcomes: Sequence[ParsedCompletion | BaseException], *, single: bool
) -> dict[str, Any]:
    """Return the result fields of a task with a single prompt or a list of prompts."""
    parsed = all_or_raise(outcomes)
    completions = [completion for completion, _ in parsed]

    def shaped(values: list[Any]) -> Any:
        return values[0] if single else values

    response = shaped([completion.response for completion in completions])
    fields = {
        "response": response,
        "stdout": response,
        "return_value": response,
        "usage": _total_usage(completions),
        "finish_reason": shaped([completion.finish_reason for completion in completions]),
    }
    fields.update(_versions(completions, single=single))
    if any(value is not None for _, value in parsed):
        fields["parsed"] = shaped([value for _, value in parsed])
    if any(completion.logprobs is not None for completion in completions):
        fields["response_logprobs"] = shaped([c.response_logprobs for c in completions])
    return fields


def _versions(completions: Sequence[Completion], *, single: bool) -> dict[str, Any]:
    """Return the versions of the weights that responded, as result fields."""
    versions = [completion.model_version for completion in completions]
    if not any(versions):
        return {}
    return {"model_version": versions[0] if single else versions}


def _total_usage(completions: Sequence[Completion]) -> dict[str, int]:
    kinds = ("prompt_tokens", "completion_tokens", "total_tokens")
    return {kind: sum(c.usage.get(kind, 0) for c in completions) for kind in kinds}
