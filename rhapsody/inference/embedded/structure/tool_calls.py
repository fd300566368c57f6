"""Tool calls of the embedded model: which tools it calls, and with which arguments.

It calls a tool if the last message is a user's and has the tool's name in it.
"""

from __future__ import annotations

import json
import random
import re
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rhapsody.inference.embedded.structure.schema import JsonWriter
from rhapsody.inference.embedded.tokens import tokenize, topic_of
from rhapsody.inference.protocol.errors import RequestError

__all__ = ["CALLED", "ToolCall", "ToolUse", "known_text", "message_of"]

CALLED = "tool_calls"
"""The finish reason of a response that calls tools."""


@dataclass(frozen=True)
class ToolCall:
    """One call of a tool.

    Attributes:
        name: The tool's name.
        arguments: Its arguments as JSON.
    """

    name: str
    arguments: str


@dataclass(frozen=True)
class ToolUse:
    """The tools of a request, and which of them the model is asked to call.

    Attributes:
        tools: The schemas of the tools' parameters, by their names.
        choice: "none", "auto", "required", or the name of a tool.
        parallel: Whether it may call several.
    """

    tools: Mapping[str, Mapping[str, Any]]
    choice: str
    parallel: bool

    @classmethod
    def parse(cls, tools: object, choice: object, parallel: object) -> ToolUse | None:
        """Return the tools of a request's body; None without tools.

        Args:
            tools: OpenAI's `tools`.
            choice: OpenAI's `tool_choice`.
            parallel: OpenAI's `parallel_tool_calls`.

        Raises:
            RequestError: One of them is invalid.
        """
        if tools in (None, []):
            if choice not in (None, "none", "auto"):
                raise RequestError("tool_choice needs tools.", "tool_choice")
            return None
        if not isinstance(tools, list):
            raise RequestError(f"tools must be a list, got {tools!r:.80}.", "tools")
        schemas: dict[str, Mapping[str, Any]] = {}
        for index, tool in enumerate(tools):
            function = tool.get("function") if isinstance(tool, Mapping) else None
            name = function.get("name") if isinstance(function, Mapping) else None
            if not isinstance(function, Mapping) or not isinstance(name, str):
                raise RequestError(
                    f'tools[{index}] must be {{"type": "function", "function": {{"name": ...}}}}, '
                    f"got {tool!r:.80}.",
                    "tools",
                )
            schemas[name] = function.get("parameters") or {"type": "object"}
        return cls(schemas, _chosen(choice, schemas), parallel is not False)

    def calls(self, messages: Sequence[Mapping[str, Any]], seed: int | None) -> list[ToolCall]:
        """Return the calls that the model makes instead of a text.

        Args:
            messages: The chat.
            seed: Seed of the arguments.

        Raises:
            RequestError: The schema of a tool cannot be used.
        """
        question = _text_of(messages[-1]) if messages[-1].get("role") == "user" else ""
        found = {name: match for name in self.tools if (match := _named(name, question))}
        if self.choice in self.tools:
            names = [self.choice]
        elif self.choice == "none":
            names = []
        else:
            names = list(found)
            if self.choice == "required" and not names:
                names = [next(iter(self.tools))]
        rng = random.Random(f"{seed}/{question}")
        words = topic_of(tokenize(question))
        # The arguments of a tool are taken from what follows its name.
        ends = sorted([match.start() for match in found.values()] + [len(question)])
        calls = []
        for name in names if self.parallel else names[:1]:
            part = question
            if name in found:
                begin = found[name].end()
                part = question[begin : next(end for end in ends if end >= begin)]
            writer = JsonWriter(self.tools[name], part, words, rng)
            calls.append(ToolCall(name, json.dumps(writer.write())))
        return calls


def _chosen(choice: object, schemas: Mapping[str, Any]) -> str:
    if choice is None:
        return "auto"
    if choice in ("none", "auto", "required"):
        return str(choice)
    function = choice.get("function") if isinstance(choice, Mapping) else None
    name = function.get("name") if isinstance(function, Mapping) else None
    if name not in schemas:
        raise RequestError(
            "tool_choice must be 'none', 'auto', 'required' or a function of tools, got "
            f"{choice!r:.80}.",
            "tool_choice",
        )
    return str(name)


def _named(name: str, question: str) -> re.Match[str] | None:
    words = re.escape(name).replace("_", r"[_\s-]")
    return re.search(rf"(?<!\w){words}(?!\w)", question, re.IGNORECASE)


def _text_of(message: Mapping[str, Any]) -> str:
    content = message.get("content")
    if isinstance(content, list):
        return " ".join(str(part.get("text", "")) for part in content if isinstance(part, Mapping))
    return content if isinstance(content, str) else ""


def known_text(calls: Sequence[ToolCall]) -> str | None:
    """Return the text that the model writes to make calls; None without calls."""
    return json.dumps([[call.name, call.arguments] for call in calls]) if calls else None


def message_of(calls: Sequence[ToolCall]) -> dict[str, Any]:
    """Return OpenAI's message that makes calls."""
    called = [
        {
            "index": index,
            "id": f"call_{uuid.uuid4().hex[:24]}",
            "type": "function",
            "function": {"name": call.name, "arguments": call.arguments},
        }
        for index, call in enumerate(calls)
    ]
    return {"role": "assistant", "content": None, "tool_calls": called}
