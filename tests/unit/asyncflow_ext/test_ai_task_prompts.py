"""The prompts that the function of an ai_task may return."""

import asyncio
from typing import Any

import pytest

from asyncflow_ext import WorkflowEngine
from rhapsody import AITask
from rhapsody.api import TaskValidationError
from tests.support.engines import Echo

pytestmark = pytest.mark.asyncflow


@pytest.mark.parametrize(
    ("prompt", "response"),
    [
        ("one", "<one>"),
        (["one", "two"], ["<one>", "<two>"]),
        ([{"role": "user", "content": "hi"}], "<hi>"),
    ],
)
async def test_prompt_is_text_list_of_texts_or_chat(flow: Any, prompt: Any, response: Any) -> None:
    @flow.ai_task
    async def ask() -> Any:
        return prompt

    assert await ask() == response


async def test_returned_ai_task_has_its_own_options(flow: Any, ai: Echo) -> None:
    @flow.ai_task(temperature=1.0, max_tokens=9)
    async def ask() -> AITask:
        return AITask("hi", temperature=0.5, seed=7)

    assert await ask() == "<hi>"
    (asked,) = ai.asked
    assert (asked["temperature"], asked["max_tokens"], asked["seed"]) == (0.5, 9, 7)


async def test_returned_ai_task_receives_results(flow: Any) -> None:
    mine = AITask("hi")

    @flow.ai_task(max_tokens=9)
    async def ask() -> AITask:
        return mine

    await ask()
    assert (mine.state, mine.response) == ("DONE", "<hi>")
    assert "max_tokens" not in mine


@pytest.mark.parametrize("prompt", [[], 7, [{"content": "no role"}]], ids=repr)
async def test_invalid_prompt_fails_task_by_name(flow: Any, prompt: Any) -> None:
    @flow.ai_task
    async def summarise() -> Any:
        return prompt

    with pytest.raises(TaskValidationError, match="Task 'summarise': 'prompt' must be"):
        await summarise()


async def test_function_returning_none_fails_task(flow: Any) -> None:
    @flow.ai_task
    async def forgetful() -> None:
        pass

    with pytest.raises(TaskValidationError, match="'forgetful': its function returned None"):
        await forgetful()


async def test_prompt_with_the_text_of_a_pending_future_is_refused(ai: Echo) -> None:
    gate = asyncio.Event()
    async with WorkflowEngine.create(ai) as flow:

        @flow.block
        async def topic() -> str:
            await gate.wait()
            return "heat"

        @flow.ai_task
        async def ask(topic: Any) -> str:
            return f"What is {topic}?"

        pending = topic()
        text = f"<Component {pending.uid} topic pending>"
        assert str(pending) == text
        with pytest.raises(TaskValidationError, match=f"the text '{text[:-1]}'.*or pass it to"):
            await ask(f"{pending}")
        with pytest.raises(TaskValidationError, match=f"the text '{text[:-1]}'"):
            await ask("heat", task_description={"system_prompt": f"It is {pending}."})
        gate.set()
        assert await ask(pending) == "<What is heat?>"
    assert [asked["prompt"] for asked in ai.asked] == ["What is heat?"]
