"""The turns of an agent, with a scripted model."""

import asyncio
import json
from typing import Any

import pytest

from rhapsody.errors import (
    ConfigurationError,
    PromptError,
    TaskTimeoutError,
    TaskValidationError,
)
from rhapsody.inference.agents.agent import Agent, Conversation
from rhapsody.inference.agents.tools import Tool

FIELDS = {"uid": "ask", "prompt": "hi", "system_prompt": "Be brief.", "temperature": 0}


class Model:
    """Responds with calls of tools, one list for each turn, and then with a text."""

    def __init__(self, *turns: list[tuple[str, dict[str, Any]]]) -> None:
        self._turns = list(turns)
        self.asked: list[dict[str, Any]] = []

    async def __call__(self, fields: dict[str, Any]) -> dict[str, Any]:
        self.asked.append(fields)
        message: dict[str, Any] = {"role": "assistant", "content": "done", "refusal": None}
        if self._turns:
            functions = [
                {"name": name, "arguments": json.dumps(given)} for name, given in self._turns.pop(0)
            ]
            calls = [{"id": f["name"], "type": "function", "function": f} for f in functions]
            message = {"role": "assistant", "content": None, "tool_calls": calls}
        usage = {"prompt_tokens": 2, "total_tokens": 2}
        return {"response": message["content"], "usage": usage, "message": message}


async def run(on: Agent, model: Any, **fields: Any) -> tuple[dict[str, Any], list[Any]]:
    conversation = Conversation()
    return await on.run({**FIELDS, **fields}, model, conversation), conversation.messages


def agent(tools: Any, **options: Any) -> Agent:
    return Agent.of(Tool, tools, **options)


async def double(n: int) -> int:
    return 2 * n


async def failing() -> None:
    raise OSError("disk")


async def test_calls_above_the_limit_of_a_turn_are_not_made() -> None:
    made: list[int] = []

    async def note(n: int) -> int:
        made.append(n)
        return n

    _, messages = await run(agent([note]), Model([("note", {"n": n}) for n in range(70)]))
    assert made == list(range(64))
    results = [message["content"] for message in messages if message["role"] == "tool"]
    assert len(results) == 70
    assert set(results[64:]) == {"This call was not made: 64 calls in one turn at most."}


async def test_results_go_back_until_the_model_answers() -> None:
    model = Model([("double", {"n": 2}), ("double", {"n": 3})], [("double", {"n": 4})])
    result, messages = await run(agent([double]), model)
    assert result == {"response": "done", "usage": {"prompt_tokens": 6, "total_tokens": 6}}
    assert [message["role"] for message in messages] == [
        *("system", "user"),
        *("assistant", "tool", "tool"),
        *("assistant", "tool", "assistant"),
    ]
    assert [m["content"] for m in messages if m["role"] == "tool"] == ["4", "6", "8"]
    assert model.asked[0]["prompt"] == messages[:2]
    assert model.asked[1]["prompt"] == messages[:5]
    assert model.asked[0]["system_prompt"] is None
    assert model.asked[0]["temperature"] == 0
    assert [tool["function"]["name"] for tool in model.asked[0]["tools"]] == ["double"]
    assert "refusal" not in messages[-1]


@pytest.mark.parametrize("given", [{"n": 2}, '{"n": 2}'])
async def test_calls_without_id_and_with_an_object_of_arguments_are_made(given: Any) -> None:
    function = {"name": "double", "arguments": given}
    message = {"role": "assistant", "content": None, "tool_calls": [{"function": function}] * 2}

    class Sloppy(Model):
        async def __call__(self, fields: dict[str, Any]) -> dict[str, Any]:
            first = not self.asked
            return {**await super().__call__(fields), **({"message": message} if first else {})}

    _, messages = await run(agent([double]), Sloppy())
    calls = messages[2]["tool_calls"]
    assert [call["function"]["arguments"] for call in calls] == ['{"n": 2}'] * 2
    assert [call["id"] for call in calls] == ["call-2-0", "call-2-1"]
    results = [(m["tool_call_id"], m["content"]) for m in messages if m["role"] == "tool"]
    assert results == [("call-2-0", "4"), ("call-2-1", "4")]


async def test_calls_of_one_turn_run_at_the_same_time() -> None:
    both = asyncio.Barrier(2) if hasattr(asyncio, "Barrier") else None
    if both is None:
        pytest.skip("Python 3.11 and later")

    async def meet() -> str:
        await both.wait()
        return "met"

    _, messages = await run(agent([meet]), Model([("meet", {}), ("meet", {})]))
    assert [m["content"] for m in messages if m["role"] == "tool"] == ["met", "met"]


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (("failing", {}), "The tool 'failing' failed: OSError: disk"),
        (("double", {"n": "x"}), "The tool 'double' failed: ValueError: n: Input should be"),
        (("none", {}), "The tool 'none' failed: ValueError: there is no such tool; there are: "),
    ],
)
async def test_error_of_a_tool_is_told(call: tuple[str, dict[str, Any]], told: str) -> None:
    result, messages = await run(agent([double, failing]), Model([call]))
    assert messages[3]["content"].startswith(told)
    assert result["response"] == "done"


async def write(length: int) -> list[str]:
    return ["x" * length]


async def failing_at_length() -> None:
    raise OSError("y" * 100)


async def test_long_result_is_cut_in_the_conversation_and_whole_in_the_calls() -> None:
    model = Model([("write", {"length": 100}), ("write", {"length": 6}), ("failing_at_length", {})])
    conversation = Conversation()
    on = agent([write, failing_at_length], max_result_chars=10)
    await on.run(FIELDS, model, conversation)
    cut, short, failed = [m["content"] for m in conversation.messages if m["role"] == "tool"]
    assert cut == '["xxxxxxxx\n[The result was cut here: 10 of 104 characters.]'
    assert short == '["xxxxxx"]'
    assert failed.startswith("The tool '\n[The result was cut here: 10 of ")
    whole = {call["arguments"]: call for call in conversation.calls}
    assert whole['{"length": 100}'] == {
        "id": "write",
        "name": "write",
        "arguments": '{"length": 100}',
        "result": ["x" * 100],
    }
    assert str(whole["{}"]["error"]) == "y" * 100


async def test_default_limit_of_a_result() -> None:
    _, messages = await run(agent([write]), Model([("write", {"length": 30_000})]))
    assert messages[3]["content"].endswith("[The result was cut here: 20000 of 30004 characters.]")


async def cancelled_elsewhere() -> None:
    task = asyncio.ensure_future(asyncio.sleep(60))
    task.cancel()
    await task


async def test_model_is_told_of_a_call_that_was_cancelled() -> None:
    _, messages = await run(agent([cancelled_elsewhere]), Model([("cancelled_elsewhere", {})]))
    assert messages[3]["content"] == (
        "The tool 'cancelled_elsewhere' failed: TaskCancelledError: Task 'cancelled_elsewhere' was "
        "cancelled"
    )


async def test_cancelled_call_can_cancel_the_task() -> None:
    on = agent([cancelled_elsewhere], on_tool_error="fail")
    with pytest.raises(asyncio.CancelledError):
        await run(on, Model([("cancelled_elsewhere", {})]))


async def test_cancelled_agent_waits_for_the_end_of_its_call() -> None:
    started, ended = asyncio.Event(), asyncio.Event()

    async def slow_to_end() -> None:
        try:
            started.set()
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            ended.set()

    running = asyncio.create_task(run(agent([slow_to_end]), Model([("slow_to_end", {})])))
    await started.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert ended.is_set()


async def test_error_of_a_tool_can_fail_the_task_and_cancels_the_others() -> None:
    cancelled = asyncio.Event()

    async def endless() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    on = agent([failing, endless], on_tool_error="fail")
    with pytest.raises(OSError, match="disk"):
        await run(on, Model([("endless", {}), ("failing", {})]))
    assert cancelled.is_set()


@pytest.mark.parametrize(
    "calls",
    ["text", {"a": 1}, [None], [{}], [{"function": None}], [{"function": {"name": ["x"]}}]],
)
async def test_broken_call_fails_the_task(calls: Any) -> None:
    async def respond(_: Any) -> dict[str, Any]:
        return {"usage": {}, "message": {"role": "assistant", "tool_calls": calls}}

    with pytest.raises(PromptError, match="tool calls that are not as in OpenAI's API") as failed:
        await run(agent([double]), respond)
    assert failed.value.code == 502


@pytest.mark.parametrize(
    ("choice", "sent"),
    [
        ("auto", None),
        ("required", "required"),
        ("double", {"type": "function", "function": {"name": "double"}}),
    ],
)
async def test_choice_of_a_tool_holds_for_the_first_response(choice: str, sent: Any) -> None:
    model = Model([("double", {"n": 1})])
    await run(agent([double], tool_choice=choice), model)
    assert [asked["tool_choice"] for asked in model.asked] == [sent, None]


async def test_too_many_rounds_fail() -> None:
    with pytest.raises(PromptError, match="in all 2 rounds") as failed:
        await run(agent([double], max_rounds=2), Model(*[[("double", {"n": 1})]] * 3))
    assert failed.value.param == "max_rounds"


async def test_calls_whose_results_the_model_would_not_see_are_not_made() -> None:
    made: list[int] = []

    async def pay(n: int) -> None:
        made.append(n)

    with pytest.raises(PromptError, match="in all 2 rounds"):
        await run(agent([pay], max_rounds=2), Model([("pay", {"n": 1})], [("pay", {"n": 2})]))
    assert made == [1]


async def test_timeout_holds_for_the_conversation() -> None:
    async def endless() -> None:
        await asyncio.Event().wait()

    with pytest.raises(TaskTimeoutError, match=r"0\.05 s"):
        await run(agent([endless]), Model([("endless", {})]), timeout=0.05)


async def test_timeout_of_a_tool_is_not_one_of_the_task() -> None:
    async def connect() -> None:
        raise asyncio.TimeoutError("no connection")

    on = agent([connect], on_tool_error="fail")
    with pytest.raises(asyncio.TimeoutError, match="no connection"):
        await run(on, Model([("connect", {})]), timeout=60)


class Failing(Model):
    """Raises an error instead of one response."""

    def __init__(self, number: int, error: Exception, *turns: list[tuple[str, Any]]) -> None:
        super().__init__(*turns)
        self._number, self._error = number, error

    async def __call__(self, fields: dict[str, Any]) -> dict[str, Any]:
        if len(self.asked) == self._number:
            self._number = -1
            raise self._error
        return await super().__call__(fields)


TWO_TURNS = ([("double", {"n": 2})], [("double", {"n": 3})])


async def test_next_attempt_keeps_the_finished_turns() -> None:
    model, conversation = Failing(2, OSError("lost"), *TWO_TURNS), Conversation()
    made: list[int] = []

    async def double(n: int) -> int:
        made.append(n)
        return 2 * n

    with pytest.raises(OSError, match="lost"):
        await agent([double]).run(FIELDS, model, conversation)
    result = await agent([double]).run(FIELDS, model, conversation)
    assert made == [2, 3]
    assert [len(fields["prompt"]) for fields in model.asked] == [2, 4, 6]
    assert result == {"response": "done", "usage": {"prompt_tokens": 6, "total_tokens": 6}}
    assert len(conversation.messages) == 7
    assert [call["result"] for call in conversation.calls] == [4, 6]


async def test_next_attempt_repeats_the_turn_that_failed() -> None:
    tries = iter([OSError("busy"), None])

    async def double(n: int) -> int:
        if n == 3 and (error := next(tries)) is not None:
            raise error
        return 2 * n

    model, conversation = Model(*TWO_TURNS, TWO_TURNS[1]), Conversation()
    on = agent([double], on_tool_error="fail")
    with pytest.raises(OSError, match="busy"):
        await on.run(FIELDS, model, conversation)
    assert [message["role"] for message in conversation.messages[2:]] == [
        *("assistant", "tool", "assistant"),
    ]
    result = await on.run(FIELDS, model, conversation)
    assert [len(fields["prompt"]) for fields in model.asked] == [2, 4, 4, 6]
    assert result["usage"] == {"prompt_tokens": 6, "total_tokens": 6}
    assert [m["content"] for m in conversation.messages if m["role"] == "tool"] == ["4", "6"]
    assert [call["result"] for call in conversation.calls] == [4, 6]


async def test_rounds_count_over_all_attempts() -> None:
    model = Failing(2, OSError("lost"), *TWO_TURNS, TWO_TURNS[0])
    on, conversation = agent([double], max_rounds=3), Conversation()
    with pytest.raises(OSError, match="lost"):
        await on.run(FIELDS, model, conversation)
    with pytest.raises(PromptError, match="in all 3 rounds"):
        await on.run(FIELDS, model, conversation)


@pytest.mark.parametrize(
    ("error", "prompt"),
    [(OSError("lost"), "another"), (PromptError("too long", 400), "hi")],
    ids=["another prompt", "refused conversation"],
)
async def test_next_attempt_starts_anew(error: Exception, prompt: str) -> None:
    model, conversation = Failing(1, error, TWO_TURNS[0]), Conversation()
    with pytest.raises(type(error)):
        await agent([double]).run(FIELDS, model, conversation)
    result = await agent([double]).run({**FIELDS, "prompt": prompt}, model, conversation)
    assert [len(fields["prompt"]) for fields in model.asked] == [2, 2]
    assert conversation.messages[1]["content"] == prompt
    assert result["usage"]["total_tokens"] == 2


async def test_chat_is_the_beginning_of_the_conversation() -> None:
    chat = [{"role": "user", "content": "hi"}]
    _, messages = await run(agent([double]), Model(), prompt=chat, system_prompt=None)
    assert messages[0] == chat[0]
    assert len(chat) == 1


@pytest.mark.parametrize(
    "fields", [{"prompt": ["a", "b"]}, {"n": 2}, {"on_text": print}, {"kind": "embed"}]
)
async def test_prompt_that_cannot_have_tools_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(TaskValidationError, match="a task with 'tools' must have"):
        await run(agent([double]), Model(), **fields)


@pytest.mark.parametrize(
    "options",
    [
        {"tools": []},
        {"tools": double},
        {"tools": [double, double]},
        {"tools": [double], "tool_choice": "triple"},
        {"tools": [double], "tool_choice": {"type": "function"}},
        {"tools": [double], "max_rounds": 0},
        {"tools": [double], "max_rounds": True},
        {"tools": [double], "max_result_chars": 0},
        {"tools": [double], "max_result_chars": "10"},
        {"tools": [double], "on_tool_error": "ignore"},
    ],
)
def test_invalid_option_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        Agent.of(Tool, **options)
