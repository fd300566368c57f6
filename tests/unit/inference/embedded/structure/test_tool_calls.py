"""Which tools the embedded model calls."""

import json
from typing import Any

import pytest

from rhapsody.inference.embedded.structure.tool_calls import ToolUse, known_text, message_of
from rhapsody.inference.protocol.errors import RequestError

SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}}


def tool(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": SCHEMA}}


def names(question: str, choice: Any = None, parallel: Any = None, role: str = "user") -> list[str]:
    use = ToolUse.parse([tool("look_up"), tool("simulate")], choice, parallel)
    assert use is not None
    return [call.name for call in use.calls([{"role": role, "content": question}], 0)]


@pytest.mark.parametrize(
    ("question", "choice", "called"),
    [
        ("look up 3 and simulate 4", None, ["look_up", "simulate"]),
        ("Look-up 3", "auto", ["look_up"]),
        ("simulated", None, []),
        ("hello", "required", ["look_up"]),
        ("simulate", "required", ["simulate"]),
        ("simulate", "none", []),
        ("simulate", {"type": "function", "function": {"name": "look_up"}}, ["look_up"]),
    ],
)
def test_named_tools_are_called(question: str, choice: Any, called: list[str]) -> None:
    assert names(question, choice) == called


def test_one_call_without_parallel_calls() -> None:
    assert names("look up 3 and simulate 4", parallel=False) == ["look_up"]


def test_no_call_after_the_result_of_a_tool() -> None:
    assert names("simulate", role="tool") == []


def test_arguments_come_from_the_question() -> None:
    use = ToolUse.parse([tool("simulate")], None, None)
    assert use is not None
    content = [{"type": "text", "text": "simulate 42"}]
    [call] = use.calls([{"role": "user", "content": content}], None)
    assert json.loads(call.arguments) == {"n": 42}
    assert "simulate" in (known_text([call]) or "")
    [sent] = message_of([call])["tool_calls"]
    assert sent["function"] == {"name": "simulate", "arguments": call.arguments}


@pytest.mark.parametrize(
    ("tools", "choice", "param"),
    [
        ("x", None, "tools"),
        ([{"type": "function"}], None, "tools"),
        (None, "required", "tool_choice"),
        ([tool("a")], "b", "tool_choice"),
        ([tool("a")], {"function": {"name": "b"}}, "tool_choice"),
    ],
)
def test_invalid_tools_are_refused(tools: Any, choice: Any, param: str) -> None:
    with pytest.raises(RequestError) as refused:
        ToolUse.parse(tools, choice, None)
    assert refused.value.param == param


def test_no_tools_are_none() -> None:
    assert ToolUse.parse(None, "auto", True) is None
    assert ToolUse.parse([], "none", None) is None
    assert known_text([]) is None
