"""Tasks are dicts with attribute access, equality by uid, copies and an end."""

import asyncio
import copy
import pickle
import re
from typing import Any

import pytest

from rhapsody import AITask, BaseTask, ComputeTask
from rhapsody.api import TaskValidationError


def work(a: int = 1, b: int = 2) -> int:
    return a + b


def test_field_reads_as_attribute_and_item() -> None:
    task = ComputeTask(executable="/bin/echo", arguments=["a"])
    assert task.executable == task["executable"] == "/bin/echo"


def test_field_set_as_attribute_reads_as_item() -> None:
    task = ComputeTask(function=work)
    task.colour = "red"
    assert task["colour"] == "red"


def test_missing_known_field_reads_as_none() -> None:
    task = ComputeTask(function=work)
    assert task.stdout is None
    assert task["exit_code"] is None
    assert task.backend is None


def test_missing_known_field_is_not_stored() -> None:
    assert "stdout" not in ComputeTask(function=work)


def test_unknown_field_raises_attribute_error_or_key_error() -> None:
    task = ComputeTask(function=work)
    with pytest.raises(AttributeError, match="ComputeTask has no field 'nonsense'"):
        _ = task.nonsense
    with pytest.raises(KeyError, match="nonsense"):
        _ = task["nonsense"]


@pytest.mark.parametrize("name", ["_private", "__array__", "_repr_png_", "__deepcopy__"])
def test_special_attribute_is_missing(name: str) -> None:
    assert not hasattr(ComputeTask(function=work), name)


def test_generated_uids_are_unique() -> None:
    uids = {ComputeTask(function=work).uid for _ in range(100)}
    assert len(uids) == 100


def test_tasks_are_equal_if_uids_are_equal() -> None:
    one, same = ComputeTask(function=work, uid="a"), ComputeTask(executable="true", uid="a")
    other = ComputeTask(function=work, uid="b")
    assert one == same
    assert one != other
    assert one != dict(one)
    assert len({one, same, other}) == 2


def test_hash_does_not_depend_on_results() -> None:
    task = ComputeTask(function=work)
    before = hash(task)
    task.update(state="DONE", return_value=[1])
    assert hash(task) == before


@pytest.mark.parametrize("task", [ComputeTask(executable="ls", uid="a"), AITask("hi", uid="a")])
@pytest.mark.parametrize(
    "duplicate", [copy.copy, copy.deepcopy, lambda task: pickle.loads(pickle.dumps(task))]
)
def test_copy_keeps_type_and_fields(task: BaseTask, duplicate: Any) -> None:
    again = duplicate(task)
    assert type(again) is type(task)
    assert dict(again) == dict(task)


async def test_copy_of_submitted_task_is_unsubmitted() -> None:
    task = ComputeTask(function=work)
    task.bind_future(asyncio.get_running_loop().create_future())
    with pytest.raises(RuntimeError, match="not submitted"):
        await pickle.loads(pickle.dumps(task))
    with pytest.raises(RuntimeError, match="not submitted"):
        await copy.copy(task)


async def test_await_before_submission_is_refused() -> None:
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
def test_repr_is_one_short_line(task: BaseTask, text: str) -> None:
    assert repr(task) == text


def test_repr_of_long_task_is_one_short_line() -> None:
    task = AITask("word\n" * 1000, uid="t")
    task.update(state="DONE", response="x" * 10_000, exception=ValueError("y" * 10_000))
    assert "\n" not in repr(task)
    assert len(repr(task)) < 400


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
def test_misspelled_field_is_refused_with_suggestion(
    kind: type[BaseTask], wrong: str, meant: str
) -> None:
    what: dict[str, Any] = {"prompt": "hi"} if kind is AITask else {"executable": "echo"}
    with pytest.raises(TaskValidationError, match=f"'{wrong}'; did you mean '{meant}'"):
        kind(**{**what, wrong: 1})


@pytest.mark.parametrize("field", ["temperature", "max_tokens", "model", "system_prompt"])
def test_field_of_a_prompt_is_refused_for_a_function(field: str) -> None:
    with pytest.raises(TaskValidationError, match=f"unknown field '{field}'; it is a field of AI"):
        BaseTask.from_dict({"function": work, field: 1})
    assert BaseTask.from_dict({"function": work, field: None}).get(field) is None


def test_custom_field_is_kept() -> None:
    assert ComputeTask(function=work, campaign="spring").campaign == "spring"


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ({"prompt": "hi"}, AITask),
        ({"executable": "ls", "prompt": None}, ComputeTask),
        ({"function": work, "prompt": None, "executable": None}, ComputeTask),
    ],
)
def test_from_dict_selects_the_kind(fields: dict[str, Any], kind: type[BaseTask]) -> None:
    assert type(BaseTask.from_dict(fields)) is kind


def test_from_dict_refuses_dict_of_no_kind() -> None:
    with pytest.raises(TaskValidationError, match=re.escape("got only ['colour']")):
        BaseTask.from_dict({"colour": "red"})


@pytest.mark.parametrize(
    "task",
    [AITask("hi", "m", temperature=0.5, stop=["x"]), ComputeTask("ls", arguments=["-l"], own=1)],
    ids=lambda task: type(task).__name__,
)
def test_from_dict_restores_a_task(task: BaseTask) -> None:
    task.update(state="DONE", stdout="a")
    assert dict(BaseTask.from_dict(dict(task))) == dict(task)


def test_validate_refuses_changed_field() -> None:
    task = AITask("hi")
    task.validate()
    task.temperature = -3
    with pytest.raises(TaskValidationError, match="'temperature' must be"):
        task.validate()


def test_task_is_done_in_terminal_states() -> None:
    task = ComputeTask(function=work)
    states = []
    for state in (None, "PENDING", "RUNNING", "DONE", "FAILED", "CANCELED"):
        task.state = state
        states.append(bool(task.done))
    assert states == [False, False, False, True, True, True]


def test_field_of_other_kind_is_refused() -> None:
    with pytest.raises(
        TaskValidationError, match="unknown field 'prompt'; it is a field of AITask"
    ):
        ComputeTask(function=len, prompt="hello")
    with pytest.raises(
        TaskValidationError, match="unknown field 'function'; it is a field of ComputeTask"
    ):
        AITask("hello", function=len)


@pytest.mark.parametrize(
    ("kind", "field", "hint"),
    [
        (ComputeTask, "env", "set it in task_backend_specific_kwargs"),
        (ComputeTask, "working_dir", "set 'cwd' in task_backend_specific_kwargs"),
        (ComputeTask, "cores", "set it in resources, such as resources={'cpus': 2}"),
        (ComputeTask, "gpus", "set it in resources, such as resources={'cpus': 2}"),
        (ComputeTask, "max_length", "did you mean 'max_tokens' of AITask?"),
        (ComputeTask, "retry", "did you mean 'retries'?"),
        (AITask, "max_retries", "did you mean 'retries'?"),
        (
            ComputeTask,
            "depends_on",
            "tasks of a session are independent; in a workflow, pass the future of one task to "
            "another",
        ),
        (ComputeTask, "process_template", "set it in task_backend_specific_kwargs"),
        (AITask, "cwd", "it is an option of functions and executables"),
        (AITask, "gpus", "it is an option of functions and executables"),
        (AITask, "max_length", "did you mean 'max_tokens'?"),
        (AITask, "guided_json", "did you mean 'response_format'?"),
    ],
)
def test_field_that_no_task_reads_is_refused(kind: type[BaseTask], field: str, hint: str) -> None:
    what: dict[str, Any] = {"prompt": "hi"} if kind is AITask else {"function": work}
    with pytest.raises(TaskValidationError) as refused:
        kind(**what, **{field: 1})
    assert str(refused.value) == f"Task: unknown field '{field}'; {hint}"
    assert (refused.value.field, refused.value.value) == (field, 1)
