"""An agent: a chat with a model that calls tools, until it responds with a text."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from rhapsody.errors import (
    ConfigurationError,
    PromptError,
    TaskCancelledError,
    TaskTimeoutError,
    TaskValidationError,
)
from rhapsody.inference.agents.tools import Tool, as_text
from rhapsody.inference.kinds import GENERATE

__all__ = ["AGENT_OPTIONS", "Agent", "Conversation", "first_messages"]

AGENT_OPTIONS = ("max_result_chars", "max_rounds", "on_tool_error", "tool_choice", "tools")
DEFAULT_ROUNDS = 8
DEFAULT_RESULT_CHARS = 20_000
"""About 5,000 tokens: a result must not fill the context of the model by itself."""
MAX_CALLS = 64
"""How many calls of one turn are made. A model that repeats itself may send thousands."""
TELL, FAIL = "tell", "fail"
AUTO, REQUIRED = "auto", "required"

Respond = Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]
"""Takes the fields of a prompt, and returns its result fields."""


class Conversation:
    """The messages of an AI task with tools, kept from one attempt to the next.

    Attributes:
        messages: All messages so far; the list stays the same.
        calls: The calls of tools in the order in which they ended, each with `id`, `name`,
            `arguments`, and the whole `result` or the `error`; the list stays the same.
        usage: The usage of the finished turns.
        turns: How many turns are finished: the model responded, and its calls have results.
    """

    def __init__(self) -> None:
        self.messages: list[dict[str, Any]] = []
        self.calls: list[dict[str, Any]] = []
        self.usage: dict[str, int] = {}
        self.turns = 0
        self._first: list[dict[str, Any]] | None = None
        self._finished = self._finished_calls = 0

    def begin(self, first: list[dict[str, Any]]) -> None:
        """Begin an attempt, after the finished turns of the attempts before.

        Args:
            first: The messages of the prompt. If the attempt before had other ones, a new
                conversation begins.
        """
        if first == self._first:
            del self.messages[self._finished :], self.calls[self._finished_calls :]
            return
        self._first, self.messages[:] = first, first
        self.usage.clear()
        self.calls.clear()
        self.turns, self._finished, self._finished_calls = 0, len(first), 0

    def finish_turn(self, usage: Mapping[str, int]) -> None:
        """Keep the messages so far.

        Args:
            usage: The usage of the turn.
        """
        for name, tokens in usage.items():
            self.usage[name] = self.usage.get(name, 0) + tokens
        self.turns += 1
        self._finished, self._finished_calls = len(self.messages), len(self.calls)

    def forget(self) -> None:
        """Have the next attempt start anew."""
        self._first = None


class Agent:
    """Runs the turns of a chat, and the tools that the model calls.

    Args:
        tools: The tools, at least one, with different names.
        max_rounds: How often the model may respond; its last response must call no tool.
        on_tool_error: "tell" to tell the model of a tool that failed or was cancelled. "fail" to
            fail or cancel the task.
        tool_choice: What the first response calls: "auto", as the model decides; "required", a
            tool; or the name of one. Later responses are as the model decides.
        max_result_chars: How many characters of a tool's result, or of its error, the model gets.

    Raises:
        ConfigurationError: An option is invalid.
    """

    def __init__(
        self,
        tools: Sequence[Tool],
        max_rounds: int = DEFAULT_ROUNDS,
        on_tool_error: str = TELL,
        max_result_chars: int = DEFAULT_RESULT_CHARS,
        tool_choice: str = AUTO,
    ) -> None:
        for name, value in (("max_rounds", max_rounds), ("max_result_chars", max_result_chars)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigurationError(
                    f"'{name}' must be a whole number of at least 1, got {value!r:.80}"
                )
        if on_tool_error not in (TELL, FAIL):
            raise ConfigurationError(
                f"'on_tool_error' must be 'tell' or 'fail', got {on_tool_error!r:.80}"
            )
        self._tools = {tool.name: tool for tool in tools}
        if len(self._tools) < len(tools):
            raise ConfigurationError("'tools' has two tools of one name; rename one")
        if tool_choice not in (AUTO, REQUIRED, *self._tools):
            raise ConfigurationError(
                f"'tool_choice' must be 'auto', 'required' or the name of a tool, got "
                f"{tool_choice!r:.80}"
            )
        self._choice: Any = tool_choice
        if tool_choice in self._tools:
            self._choice = {"type": "function", "function": {"name": tool_choice}}
        self._max_rounds = max_rounds
        self._fails = on_tool_error == FAIL
        self._max_result_chars = max_result_chars

    @classmethod
    def of(cls, make_tool: Callable[[Any], Tool], tools: Any, **options: Any) -> Agent:
        """Return an agent with tools that are not made yet.

        Args:
            make_tool: Makes a tool of an entry of `tools`.
            tools: A list of what the model may call.
            **options: Other arguments of the agent.

        Raises:
            ConfigurationError: An option is invalid.
            TypeError: An entry cannot be called by a model.
        """
        if not isinstance(tools, (list, tuple)) or not tools:
            raise ConfigurationError(f"'tools' must be a non-empty list, got {tools!r:.80}")
        return cls([make_tool(one) for one in tools], **options)

    @classmethod
    def of_task(cls, make_tool: Callable[[Any], Tool], fields: Mapping[str, Any]) -> Agent:
        """Return the agent of an AI task with tools; see `of`.

        Args:
            make_tool: Makes a tool of an entry of `tools`.
            fields: The fields of the task.
        """
        given = {name: fields[name] for name in AGENT_OPTIONS if fields.get(name) is not None}
        return cls.of(make_tool, **given)

    async def run(
        self, fields: Mapping[str, Any], respond: Respond, conversation: Conversation
    ) -> dict[str, Any]:
        """Run the chat, and return the result fields of the last turn, with the usage of all.

        Args:
            fields: The fields of the AI task.
            respond: Asks the model.
            conversation: Continued after its finished turns, if it has some of this prompt.

        Raises:
            TaskTimeoutError: The task's `timeout` is over.
            PromptError: The model called tools in all its rounds, or the server sent broken calls.
            TaskValidationError: The task cannot have tools.
            Exception: The model or, with `on_tool_error="fail"`, a tool failed.
        """
        conversation.begin(first_messages(fields))
        timeout = fields.get("timeout")
        schemas = [tool.schema for tool in self._tools.values()]
        asked = {**fields, "system_prompt": None, "timeout": None, "tools": schemas}
        running = asyncio.ensure_future(self._run(asked, respond, conversation))
        try:
            return await asyncio.wait_for(running, timeout)
        except asyncio.TimeoutError:
            if timeout is None or not running.cancelled():  # a tool or the model raised it
                raise
            raise TaskTimeoutError(str(fields.get("uid")), timeout) from None
        except PromptError as error:
            if error.code < 500:  # the same conversation would be refused again
                conversation.forget()
            raise

    async def _run(
        self, asked: Mapping[str, Any], respond: Respond, conversation: Conversation
    ) -> dict[str, Any]:
        messages = conversation.messages
        choice = self._choice if self._choice != AUTO and not conversation.turns else None
        for left in reversed(range(self._max_rounds - conversation.turns)):
            turn = {**asked, "prompt": list(messages), "tool_choice": choice}
            result, choice = await respond(turn), None
            message = _plain(result["message"], len(messages))
            messages.append(message)
            calls = message.get("tool_calls")
            if not calls:
                conversation.finish_turn(result["usage"])
                fields = {name: value for name, value in result.items() if name != "message"}
                return {**fields, "usage": dict(conversation.usage)}
            if left:  # otherwise the model would not see the results
                messages += await self._call_all(calls, conversation.calls)
                conversation.finish_turn(result["usage"])
        raise PromptError(
            f"the model called tools in all {self._max_rounds} rounds and gave no answer; raise "
            "max_rounds, or have the prompt ask for an answer",
            422,
            "ToolRoundsError",
            "max_rounds",
        )

    async def _call_all(
        self, calls: Sequence[Mapping[str, Any]], made: list[dict[str, Any]]
    ) -> list[dict[str, Any]]:
        """Make the calls of one turn at the same time. If one fails the task, cancel the others."""
        running = [asyncio.ensure_future(self._call(call, made)) for call in calls[:MAX_CALLS]]
        left_out = [
            _result_message(call, f"This call was not made: {MAX_CALLS} calls in one turn at most.")
            for call in calls[MAX_CALLS:]
        ]
        try:
            return [*await asyncio.gather(*running), *left_out]
        finally:
            for one in running:
                one.cancel()
            await asyncio.wait(running)

    async def _call(self, call: Mapping[str, Any], made: list[dict[str, Any]]) -> dict[str, Any]:
        """Call a tool, and return the message with its result or its error."""
        name, arguments = call["function"]["name"], call["function"]["arguments"]
        tool = self._tools.get(name)
        record = {"id": call.get("id"), "name": name, "arguments": arguments}
        try:
            if tool is None:
                raise ValueError(f"there is no such tool; there are: {', '.join(self._tools)}")
            result = await self._result(tool, arguments)
            content = as_text(result)
            made.append({**record, "result": result})
        except Exception as error:
            made.append({**record, "error": error})
            if self._fails:
                raise
            content = f"The tool '{name}' failed: {type(error).__name__}: {error}"
        return _result_message(call, self._shortened(content))

    async def _result(self, tool: Tool, arguments: str) -> Any:
        # In a task of its own: the call may be cancelled without the agent.
        running = asyncio.ensure_future(tool.call(arguments))
        try:
            await asyncio.wait([running])
        except asyncio.CancelledError:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            raise
        if running.cancelled() and not self._fails:
            raise TaskCancelledError(tool.name)
        return running.result()

    def _shortened(self, content: str) -> str:
        """Return a text, cut at the limit with a note that says so."""
        limit = self._max_result_chars
        if len(content) <= limit:
            return content
        return (
            f"{content[:limit]}\n[The result was cut here: {limit} of {len(content)} characters.]"
        )


def _result_message(call: Mapping[str, Any], content: str) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": call.get("id"), "content": content}


def first_messages(fields: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the chat that an AI task begins with.

    Args:
        fields: The fields of the task.

    Raises:
        TaskValidationError: The task cannot have tools.
    """
    prompt, system_prompt = fields["prompt"], fields.get("system_prompt")
    one_text = isinstance(prompt, str)
    if not (one_text or isinstance(prompt[0], Mapping)) or fields.get("n") not in (None, 1):
        raise TaskValidationError(
            fields.get("uid"), "a task with 'tools' must have a single prompt, and no 'n' above 1"
        )
    if fields.get("on_text") is not None or fields.get("kind") not in (None, GENERATE):
        raise TaskValidationError(
            fields.get("uid"), "a task with 'tools' must have neither 'on_text' nor another kind"
        )
    messages = [{"role": "user", "content": prompt}] if one_text else [dict(m) for m in prompt]
    if system_prompt is not None:
        messages.insert(0, {"role": "system", "content": system_prompt})
    return messages


def _plain(message: Mapping[str, Any], place: int) -> dict[str, Any]:
    """Return a message of the model with what the next turn needs.

    Args:
        message: The message.
        place: Its place in the chat.
    """
    plain = {"role": "assistant", "content": message.get("content")}
    calls = message.get("tool_calls")
    if calls:
        if not isinstance(calls, list) or not all(map(_is_call, calls)):
            raise PromptError(
                f"the model server sent tool calls that are not as in OpenAI's API: {calls!r:.200}",
                502,
            )
        plain["tool_calls"] = [
            _plain_call(call, f"call-{place}-{number}") for number, call in enumerate(calls)
        ]
    return plain


def _plain_call(call: Mapping[str, Any], new_id: str) -> dict[str, Any]:
    """Return a call as in OpenAI's API, which requires an id, and arguments that are a text."""
    function = call["function"]
    arguments = function.get("arguments")
    if not isinstance(arguments, str):
        arguments = json.dumps({} if arguments is None else arguments)
    return {
        "id": call.get("id") or new_id,
        "type": "function",
        "function": {**function, "arguments": arguments},
    }


def _is_call(call: Any) -> bool:
    function = call.get("function") if isinstance(call, Mapping) else None
    return isinstance(function, Mapping) and isinstance(function.get("name"), str)
