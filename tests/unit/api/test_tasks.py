"""Tasks read as mappings and by attribute, and refuse what is wrong by field and value."""

import asyncio
import copy
import pickle
import re
from pathlib import Path
from typing import Any

import pydantic
import pytest

from rhapsody import AITask, BaseTask, ComputeTask
from rhapsody.api import TaskValidationError

CHAT = [{"role": "user", "content": "hello"}]


def work(a: int = 1, b: int = 2) -> int:
    return a + b


def test_a_field_reads_as_an_attribute_and_as_an_item() -> None:
    task = ComputeTask(executable="/bin/echo", arguments=["a"])
    assert task.executable == task["executable"] == "/bin/echo"


def test_a_field_set_as_an_attribute_reads_as_an_item() -> None:
    task = ComputeTask(function=work)
    task.colour = "red"
    assert task["colour"] == "red"


def test_a_known_field_that_was_not_given_reads_as_none() -> None:
    task = ComputeTask(function=work)
    assert task.stdout is None
    assert task["exit_code"] is None
    assert task.backend is None


def test_a_known_field_that_was_not_given_is_not_in_the_task() -> None:
    assert "stdout" not in ComputeTask(function=work)


def test_an_unknown_field_is_an_attribute_error_or_a_key_error() -> None:
    task = ComputeTask(function=work)
    with pytest.raises(AttributeError, match="ComputeTask has no field 'nonsense'"):
        _ = task.nonsense
    with pytest.raises(KeyError, match="nonsense"):
        _ = task["nonsense"]


@pytest.mark.parametrize("name", ["_private", "__array__", "_repr_html_", "__deepcopy__"])
def test_what_libraries_probe_for_is_not_there(name: str) -> None:
    assert not hasattr(ComputeTask(function=work), name)


def test_an_ai_task_has_a_prompt_and_a_compute_task_has_none_at_all() -> None:
    assert "prompt" in AITask("hello")
    assert "prompt" not in ComputeTask(function=work)
    assert "prompt" not in ComputeTask(executable="true")


def test_uids_are_made_and_differ() -> None:
    uids = {ComputeTask(function=work).uid for _ in range(100)}
    assert len(uids) == 100


def test_a_task_is_equal_to_another_of_its_uid_only() -> None:
    one, same = ComputeTask(function=work, uid="a"), ComputeTask(executable="true", uid="a")
    other = ComputeTask(function=work, uid="b")
    assert one == same
    assert one != other
    assert one != dict(one)
    assert len({one, same, other}) == 2


def test_a_hash_does_not_change_with_the_results() -> None:
    task = ComputeTask(function=work)
    before = hash(task)
    task.update(state="DONE", return_value=[1])
    assert hash(task) == before


@pytest.mark.parametrize("task", [ComputeTask(executable="ls", uid="a"), AITask("hi", uid="a")])
@pytest.mark.parametrize(
    "duplicate", [copy.copy, copy.deepcopy, lambda task: pickle.loads(pickle.dumps(task))]
)
def test_a_copy_has_the_type_and_the_fields(task: BaseTask, duplicate: Any) -> None:
    again = duplicate(task)
    assert type(again) is type(task)
    assert dict(again) == dict(task)


async def test_a_copy_of_a_submitted_task_is_not_submitted() -> None:
    task = ComputeTask(function=work)
    task.bind_future(asyncio.get_running_loop().create_future())
    with pytest.raises(RuntimeError, match="not submitted"):
        await pickle.loads(pickle.dumps(task))
    with pytest.raises(RuntimeError, match="not submitted"):
        await copy.copy(task)


async def test_a_task_cannot_be_awaited_before_it_is_submitted() -> None:
    with pytest.raises(RuntimeError, match=r"task mine was not submitted.*submit_tasks"):
        await ComputeTask(function=work, uid="mine")


@pytest.mark.parametrize(
    ("task", "text"),
    [
        (ComputeTask(function=work, uid="t"), "ComputeTask(t, function=work)"),
        (
            ComputeTask("/bin/echo", arguments=["a", 1], uid="t"),
            "ComputeTask(t, executable='/bin/echo a 1')",
        ),
        (AITask("hi", "gpt", uid="t", backend="b"), "AITask(t, prompt='hi', model=gpt, backend=b)"),
    ],
)
def test_a_task_prints_in_one_short_line(task: BaseTask, text: str) -> None:
    assert repr(task) == text


def test_a_long_task_still_prints_in_one_short_line() -> None:
    task = AITask("word\n" * 1000, uid="t")
    task.update(state="DONE", response="x" * 10_000, exception=ValueError("y" * 10_000))
    assert "\n" not in repr(task)
    assert len(repr(task)) < 400


@pytest.mark.parametrize(
    ("fields", "field", "value"),
    [
        ({"uid": ""}, "uid", ""),
        ({"uid": "a/b"}, "uid", "a/b"),
        ({"uid": 7}, "uid", 7),
        ({"backend": 7}, "backend", 7),
        ({"timeout": 0}, "timeout", 0),
        ({"timeout": "5"}, "timeout", "5"),
        ({"timeout": float("nan")}, "timeout", None),
        ({"timeout": True}, "timeout", True),
        ({"args": "abc"}, "args", "abc"),
        ({"kwargs": [1]}, "kwargs", [1]),
        ({"arguments": ["a"]}, "arguments", ["a"]),
        ({"function": "work"}, "function", "work"),
        ({"task_backend_specific_kwargs": 3}, "task_backend_specific_kwargs", 3),
    ],
)
def test_a_wrong_field_of_a_function_task_is_refused_by_name_and_value(
    fields: dict[str, Any], field: str, value: Any
) -> None:
    with pytest.raises(TaskValidationError, match=f"'{field}' must be") as refused:
        ComputeTask(**{"function": work, **fields})
    assert refused.value.field == field
    assert value is None or refused.value.value == value
    assert value is None or repr(value) in str(refused.value)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"executable": ""}, "executable"),
        ({"executable": 7}, "executable"),
        ({"arguments": "a b"}, "arguments"),
        ({"arguments": [None]}, "arguments"),
        ({"args": (1,)}, "args"),
        ({"kwargs": {"a": 1}}, "kwargs"),
        ({"capture_stdio": "yes"}, "capture_stdio"),
    ],
)
def test_a_wrong_field_of_an_executable_is_refused_by_name(
    fields: dict[str, Any], field: str
) -> None:
    with pytest.raises(TaskValidationError, match=f"'{field}' must be"):
        ComputeTask(**{"executable": "echo", **fields})


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"prompt": ""}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": ["a", ""]}, "prompt"),
        ({"prompt": 7}, "prompt"),
        ({"prompt": ["a", {"role": "user"}]}, "prompt"),
        ({"prompt": [{"content": "no role"}]}, "prompt"),
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
        ({"on_text": print, "prompt": ["one", "two"]}, "on_text"),
        ({"on_text": print, "prompt": [CHAT, CHAT]}, "on_text"),
        ({"on_text": print, "n": 2}, "on_text"),
    ],
)
def test_a_wrong_field_of_an_ai_task_is_refused_by_name_and_value(
    fields: dict[str, Any], field: str
) -> None:
    with pytest.raises(TaskValidationError, match=f"'{field}' must be") as refused:
        AITask(**{"prompt": "hello", **fields})
    assert refused.value.field == field
    assert refused.value.value == fields[field]


@pytest.mark.parametrize(
    "prompt", ["one", ["one", "two"], ("one", "two"), CHAT, [CHAT, CHAT]], ids=repr
)
def test_a_prompt_is_a_text_texts_a_chat_or_chats(prompt: Any) -> None:
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
def test_a_sampling_parameter_within_its_range_is_kept(fields: dict[str, Any]) -> None:
    task = AITask(**{"prompt": "hello", **fields})
    assert {name: task[name] for name in fields} == fields


def test_stop_sequences_is_another_name_for_stop() -> None:
    task = AITask("hello", stop_sequences=["END"])
    assert task.stop == task.stop_sequences == ["END"]


@pytest.mark.parametrize(
    ("kind", "wrong", "meant"),
    [
        (AITask, "temprature", "temperature"),
        (AITask, "system_promt", "system_prompt"),
        (AITask, "max_token", "max_tokens"),
        (ComputeTask, "argument", "arguments"),
        (ComputeTask, "time_out", "timeout"),
    ],
)
def test_a_slip_of_the_pen_is_refused_with_what_was_meant(
    kind: type[BaseTask], wrong: str, meant: str
) -> None:
    what = {"prompt": "hi"} if kind is AITask else {"executable": "echo"}
    with pytest.raises(TaskValidationError, match=f"'{wrong}' .* did you mean '{meant}'"):
        kind(**{**what, wrong: 1})  # type: ignore[arg-type]


def test_a_field_of_ones_own_is_kept() -> None:
    assert ComputeTask(function=work, priority="high").priority == "high"


@pytest.mark.parametrize(
    ("fields", "given"),
    [({}, "neither was given"), ({"function": work, "executable": "ls"}, "both were given")],
)
def test_a_compute_task_is_a_function_or_an_executable(fields: dict[str, Any], given: str) -> None:
    with pytest.raises(TaskValidationError, match=f"'executable' or 'function'; {given}"):
        ComputeTask(**fields)


def test_a_path_is_an_executable() -> None:
    path = Path("/bin/echo")
    assert ComputeTask(path, arguments=[path]).executable == path


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ({"prompt": "hi"}, AITask),
        ({"executable": "ls", "prompt": None}, ComputeTask),
        ({"function": work, "prompt": None, "executable": None}, ComputeTask),
    ],
)
def test_a_dict_becomes_the_kind_of_task_that_it_describes(
    fields: dict[str, Any], kind: type[BaseTask]
) -> None:
    assert type(BaseTask.from_dict(fields)) is kind


def test_a_dict_that_describes_no_task_is_refused_with_what_it_has() -> None:
    with pytest.raises(TaskValidationError, match=re.escape("it has only ['colour']")):
        BaseTask.from_dict({"colour": "red"})


@pytest.mark.parametrize(
    "task",
    [AITask("hi", "m", temperature=0.5, stop=["x"]), ComputeTask("ls", arguments=["-l"], own=1)],
    ids=lambda task: type(task).__name__,
)
def test_a_task_made_from_its_own_dict_is_the_same(task: BaseTask) -> None:
    task.update(state="DONE", stdout="a")
    assert dict(BaseTask.from_dict(dict(task))) == dict(task)


def test_validate_refuses_what_was_changed_for_the_worse() -> None:
    task = AITask("hi")
    task.validate()
    task.temperature = -3
    with pytest.raises(TaskValidationError, match="'temperature' must be"):
        task.validate()


def test_a_task_is_done_once_its_state_is_terminal() -> None:
    task = ComputeTask(function=work)
    states = []
    for state in (None, "PENDING", "RUNNING", "DONE", "FAILED", "CANCELED"):
        task.state = state
        states.append(task.done)
    assert states == [False, False, False, True, True, True]


@pytest.mark.parametrize("field", ["cwd", "env", "shell"])
def test_an_option_of_the_backend_is_not_taken_for_a_field(field: str) -> None:
    with pytest.raises(TaskValidationError, match="task_backend_specific_kwargs"):
        ComputeTask(executable="pwd", **{field: "/"})


def test_a_task_is_of_one_kind() -> None:
    with pytest.raises(TaskValidationError, match="a prompt is for an AITask"):
        ComputeTask(function=len, prompt="hello")
    with pytest.raises(TaskValidationError, match="it is for a ComputeTask"):
        AITask("hello", function=len)


class Verdict(pydantic.BaseModel):
    good: bool


@pytest.mark.parametrize("wanted", [Verdict, {"type": "json_object"}])
def test_a_response_format_is_a_class_or_a_dict(wanted: Any) -> None:
    assert AITask("hi", response_format=wanted)["response_format"] == wanted


@pytest.mark.parametrize("wanted", [Verdict(good=True), str, "json", {"schema": {}}])
def test_another_response_format_is_refused(wanted: Any) -> None:
    with pytest.raises(TaskValidationError, match="'response_format' must be a pydantic model"):
        AITask("hi", response_format=wanted)
