"""Compute tasks validate functions, executables and their arguments."""

from pathlib import Path
from typing import Any

import pytest

from rhapsody import ComputeTask
from rhapsody.api import TaskValidationError


def work(a: int = 1, b: int = 2) -> int:
    return a + b


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
        ({"function": "work"}, "function", "work"),
        ({"task_backend_specific_kwargs": 3}, "task_backend_specific_kwargs", 3),
    ],
)
def test_invalid_field_of_function_is_refused(
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
        ({"capture_stdio": "yes"}, "capture_stdio"),
    ],
)
def test_invalid_field_of_executable_is_refused(fields: dict[str, Any], field: str) -> None:
    with pytest.raises(TaskValidationError, match=f"'{field}' must be"):
        ComputeTask(**{"executable": "echo", **fields})


@pytest.mark.parametrize(
    ("fields", "field", "message"),
    [
        (
            {"function": work, "arguments": ["a"]},
            "arguments",
            "'arguments' does not apply to a function; use 'args' and 'kwargs'",
        ),
        (
            {"executable": "ls", "args": (1,)},
            "args",
            "'args' does not apply to an executable; use 'arguments'",
        ),
        (
            {"executable": "ls", "kwargs": {"a": 1}},
            "kwargs",
            "'kwargs' does not apply to an executable; use 'arguments'",
        ),
    ],
)
def test_field_of_other_kind_of_compute_task_is_refused(
    fields: dict[str, Any], field: str, message: str
) -> None:
    with pytest.raises(TaskValidationError) as refused:
        ComputeTask(uid="t", **fields)
    assert str(refused.value) == f"Task 't': {message}"
    assert (refused.value.field, refused.value.value) == (field, fields[field])


@pytest.mark.parametrize(
    ("fields", "given"),
    [({}, "neither was given"), ({"function": work, "executable": "ls"}, "both were given")],
)
def test_exactly_one_of_function_and_executable_is_required(
    fields: dict[str, Any], given: str
) -> None:
    with pytest.raises(TaskValidationError, match=f"'executable' or 'function'; {given}"):
        ComputeTask(**fields)


def test_executable_may_be_a_path() -> None:
    path = Path("/bin/echo")
    assert ComputeTask(path, arguments=[path]).executable == path


@pytest.mark.parametrize("field", ["cwd", "env", "shell"])
def test_backend_option_as_field_is_refused(field: str) -> None:
    options: dict[str, Any] = {field: "/"}
    with pytest.raises(TaskValidationError, match="set it in task_backend_specific_kwargs"):
        ComputeTask(executable="pwd", **options)


@pytest.mark.parametrize("arguments", [(), (3,), (3, [4])])
def test_function_as_executable_is_refused_with_hint(
    arguments: tuple[Any, ...],
) -> None:
    with pytest.raises(TaskValidationError, match=r"ComputeTask\(function=work, args=\[\.\.\.\]\)"):
        ComputeTask(work, *arguments)  # type: ignore[arg-type]


def test_kwargs_are_made_when_they_are_asked_for() -> None:
    task = ComputeTask(function=work)
    assert "kwargs" not in task
    task["kwargs"]["a"] = 5
    assert task.kwargs == task["kwargs"] == {"a": 5}
    assert ComputeTask(executable="true")["kwargs"] is None
