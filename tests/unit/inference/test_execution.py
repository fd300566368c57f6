"""The execution of one AI task, with a scripted service."""

from typing import Any

import pydantic
import pytest

from rhapsody.errors import PartialFailureError, PromptError
from rhapsody.inference.execution import run_prompt
from rhapsody.inference.kinds import ChatTurn, PoolingInput, floats_of
from rhapsody.inference.prompts import Completion

USAGE = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}
CHAT = [{"role": "user", "content": "Hello"}]


class Service:
    """Completes a prompt with itself, and refuses "bad"."""

    window = 4

    def __init__(self) -> None:
        self.prompts: list[Any] = []

    async def complete(self, prompt: Any, *_: Any, **__: Any) -> Completion:
        self.prompts.append(prompt)
        if prompt == "bad" or getattr(prompt, "text", None) == "bad":
            raise PromptError("it is bad", 400)
        if isinstance(prompt, PoolingInput):
            return Completion([], [], USAGE, data=bytes(8))
        message = {"role": "assistant", "content": "a message"}
        is_turn = isinstance(prompt, ChatTurn)
        return Completion([str(prompt)], ["stop"], USAGE, message=message if is_turn else None)

    def get_statistics(self) -> dict[str, Any]:
        return {}


async def test_one_prompt_has_one_response() -> None:
    fields = await run_prompt(Service(), {"prompt": "Hello", "max_tokens": 4})
    assert (fields["response"], fields["finish_reason"]) == ("Hello", "stop")
    assert fields["response"] is fields["return_value"] is fields["stdout"]


async def test_list_has_a_response_for_each_and_the_usage_of_all() -> None:
    fields = await run_prompt(Service(), {"prompt": ["a", "b"]})
    assert fields["response"] == ["a", "b"]
    assert fields["usage"]["total_tokens"] == 6


async def test_failures_in_a_list_are_raised_together() -> None:
    with pytest.raises(PartialFailureError) as caught:
        await run_prompt(Service(), {"prompt": ["a", "bad"]})
    assert caught.value.results == ["a", None]


async def test_chat_with_tools_has_a_message() -> None:
    tools = [{"type": "function", "function": {"name": "f"}}]
    service = Service()
    fields = await run_prompt(service, {"prompt": CHAT, "tools": tools, "tool_choice": "auto"})
    assert fields["message"]["content"] == "a message"
    assert service.prompts[0].options == {"tools": tools, "tool_choice": "auto"}


async def test_text_to_embed_has_numbers() -> None:
    fields = await run_prompt(Service(), {"prompt": "Hello", "kind": "embed"})
    assert list(fields["response"]) == list(floats_of(bytes(8)))
    with pytest.raises(PromptError, match="it is bad"):
        await run_prompt(Service(), {"prompt": "bad", "kind": "embed"})


async def test_response_is_parsed_by_its_format() -> None:
    class Answer(pydantic.BaseModel):
        a: int

    fields = await run_prompt(Service(), {"prompt": '{"a": 1}', "response_format": Answer})
    assert fields["parsed"] == Answer(a=1)
