"""AI tasks validate prompts and sampling parameters."""

import asyncio
from typing import Any

import pydantic
import pytest

from rhapsody import AITask, ComputeTask
from rhapsody.api import TaskValidationError

CHAT = [{"role": "user", "content": "hello"}]


def work(a: int = 1, b: int = 2) -> int:
    return a + b


def test_only_ai_task_has_the_key_prompt() -> None:
    assert "prompt" in AITask("hello")
    assert "prompt" not in ComputeTask(function=work)
    assert "prompt" not in ComputeTask(executable="true")


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"prompt": []}, "prompt"),
        ({"prompt": 7}, "prompt"),
        ({"prompt": ["a", {"role": "user"}]}, "prompt"),
        ({"prompt": [{"content": "no role"}]}, "prompt"),
        ({"prompt": ("query", ["document"])}, "prompt"),
        ({"prompt": "text", "kind": "score"}, "prompt"),
        ({"prompt": [{"role": "user"}], "kind": "embed"}, "prompt"),
        ({"kind": "rank"}, "kind"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"top_p": 0}, "top_p"),
        ({"top_p": 1.5}, "top_p"),
        ({"top_k": -2}, "top_k"),
        ({"n": 0}, "n"),
        ({"seed": "x"}, "seed"),
        ({"stop": [""]}, "stop"),
        ({"stop": 7}, "stop"),
        ({"system_prompt": 7}, "system_prompt"),
        ({"model": 7}, "model"),
        ({"timeout": -1}, "timeout"),
        ({"on_text": "print"}, "on_text"),
        ({"on_text": asyncio.sleep}, "on_text"),
    ],
)
def test_invalid_field_is_refused(fields: dict[str, Any], field: str) -> None:
    with pytest.raises(TaskValidationError, match=f"'{field}' must be") as refused:
        AITask(**{"prompt": "hello", **fields})
    assert refused.value.field == field
    assert refused.value.value == fields[field]


@pytest.mark.parametrize("fields", [{"prompt": ["one", "two"]}, {"prompt": [CHAT, CHAT]}, {"n": 2}])
def test_on_text_needs_a_single_response(fields: dict[str, Any]) -> None:
    with pytest.raises(TaskValidationError, match="'on_text' needs one response") as refused:
        AITask(**{"prompt": "hello", "on_text": print, **fields})
    assert (refused.value.field, refused.value.value) == ("on_text", print)


@pytest.mark.parametrize(
    "prompt", ["one", ["one", "two"], ("one", "two"), CHAT, [CHAT, CHAT]], ids=repr
)
def test_prompt_may_be_text_texts_chat_or_chats(prompt: Any) -> None:
    assert AITask(prompt).prompt == prompt


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": 0},
        {"top_p": 1},
        {"top_k": -1},
        {"top_k": 0},
        {"stop": "END"},
        {"stop": ["END", "."]},
        {"min_p": 0.1},
        {"on_text": print, "n": 1},
        {"on_text": [].append, "prompt": CHAT},
    ],
    ids=repr,
)
def test_valid_sampling_parameter_is_kept(fields: dict[str, Any]) -> None:
    task = AITask(**{"prompt": "hello", **fields})
    assert {name: task[name] for name in fields} == fields


def test_stop_sequences_is_alias_of_stop() -> None:
    task = AITask("hello", stop_sequences=["END"])
    assert task.stop == task.stop_sequences == ["END"]


class Verdict(pydantic.BaseModel):
    good: bool


@pytest.mark.parametrize("wanted", [Verdict, {"type": "json_object"}])
def test_response_format_may_be_class_or_dict(wanted: Any) -> None:
    assert AITask("hi", response_format=wanted)["response_format"] == wanted


@pytest.mark.parametrize("wanted", [Verdict(good=True), str, "json", {"schema": {}}])
def test_invalid_response_format_is_refused(wanted: Any) -> None:
    with pytest.raises(TaskValidationError, match="'response_format' must be a pydantic model"):
        AITask("hi", response_format=wanted)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_tokens", "int64(3)"),
        ("seed", "int32(3)"),
        ("n", "uint8(1)"),
        ("top_k", "int64(-1)"),
        ("temperature", "float32(0.5)"),
        ("timeout", "int64(5)"),
        ("min_p", "float32(0.5)"),
        ("logprobs", "int64(2)"),
    ],
)
def test_numpy_scalar_is_stored_as_python_number(field: str, value: str) -> None:
    numpy = pytest.importorskip("numpy")
    scalar = eval(value, vars(numpy))
    stored = AITask("hello", **{field: scalar})[field]
    assert stored == scalar.item()
    assert type(stored) in (int, float)  # json accepts no other numbers


def test_empty_prompt_is_left_to_the_backend() -> None:
    assert AITask("").prompt == ""
    assert AITask(["a", ""]).prompt == ["a", ""]


@pytest.mark.parametrize(
    "prompt", [("q", "d"), ("q", ["d", "e"]), [("q", "d")], [["q", "d"], ["r", "e"]]]
)
def test_score_takes_pairs(prompt: Any) -> None:
    assert AITask(prompt, kind="score").prompt == prompt


@pytest.mark.parametrize(
    ("field", "value"), [("temperature", 0), ("system_prompt", "Be brief."), ("on_text", print)]
)
def test_other_kinds_take_no_fields_of_generate(field: str, value: Any) -> None:
    with pytest.raises(TaskValidationError, match=f"'{field}' has no meaning for the kind 'embed'"):
        AITask("text", kind="embed", **{field: value})


@pytest.mark.parametrize(
    ("field", "nearest"), [("campaign", "did you mean"), ("seeds", "did you mean 'seed'")]
)
def test_unknown_field_is_refused_with_the_nearest_name(field: str, nearest: str) -> None:
    with pytest.raises(TaskValidationError, match=f"unknown field '{field}'; {nearest}"):
        AITask("hi", **{field: 1})  # type: ignore[arg-type]  # as a user would


def double(n: int) -> int:
    return 2 * n


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tools": []}, "'tools' must be a non-empty list"),
        ({"tools": double}, "'tools' must be a non-empty list"),
        ({"tools": [double, double]}, "two tools of one name"),
        ({"tools": ["double"]}, "a tool must be a function"),
        ({"tools": [{"type": "function"}]}, "a tool must be a function"),
        ({"tools": [double], "max_rounds": 0}, "'max_rounds' must be a whole number"),
        ({"tools": [double], "on_tool_error": "ignore"}, "'on_tool_error' must be"),
        ({"max_rounds": 3}, "'max_rounds' needs 'tools'"),
        ({"tools": [double], "n": 2}, "no 'n' above 1"),
        ({"tools": [double], "on_text": print}, "neither 'on_text'"),
        ({"tools": [double], "kind": "embed"}, "'tools' has no meaning for the kind 'embed'"),
        ({"tools": [ComputeTask(executable="date")]}, "a function without arguments"),
        ({"tools": [ComputeTask(function=double, args=[1])]}, "a function without arguments"),
    ],
)
def test_invalid_tools_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(TaskValidationError, match=message):
        AITask("hi", **fields)


def test_several_prompts_with_tools_are_refused() -> None:
    with pytest.raises(TaskValidationError, match="must have a single prompt"):
        AITask(["a", "b"], tools=[double])


def test_tools_and_their_options_are_fields() -> None:
    task = AITask("hi", tools=[double], max_rounds=3, on_tool_error="fail")
    assert (task.tools, task.max_rounds, task.on_tool_error) == ([double], 3, "fail")
    assert AITask("hi").max_rounds is None
