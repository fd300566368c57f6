from typing import Any

import pytest

from rhapsody.backends import NoopExecutionBackend, TaskStates
from rhapsody.backends.protocol import (
    ALL_KINDS,
    COMPUTE_KINDS,
    Backend,
    accepted_kinds,
    task_kind,
    task_name,
)


@pytest.mark.parametrize(
    ("task", "kind"),
    [
        ({"function": len, "executable": None, "prompt": None}, "function"),
        ({"function": None, "executable": "/bin/date"}, "executable"),
        ({"function": None, "executable": None, "prompt": "Why?"}, "prompt"),
        ({"function": len, "prompt": "Why?"}, "function"),
        ({"executable": "/bin/date", "prompt": "Why?"}, "executable"),
        ({"function": None, "executable": ""}, None),
        ({}, None),
    ],
)
def test_kind_is_first_key_with_value(task: dict[str, Any], kind: str | None) -> None:
    assert task_kind(task) == kind


@pytest.mark.parametrize(
    ("task", "name"),
    [
        ({"function": len}, "len"),
        ({"function": len, "_tel_executable": "simulate"}, "simulate"),
        ({"function": object.__new__(type("Callable", (), {}))}, "Callable"),
        ({"executable": "/bin/date"}, "/bin/date"),
        ({"prompt": "Why?"}, "prompt"),
        ({}, ""),
    ],
)
def test_name_comes_from_function_or_executable(task: dict[str, Any], name: str) -> None:
    assert task_name(task, task_kind(task)) == name


def test_terminal_states_do_not_include_active_states() -> None:
    assert TaskStates.terminal_states == {"DONE", "FAILED", "CANCELED"}


def test_base_backend_implements_the_protocol() -> None:
    assert isinstance(NoopExecutionBackend(), Backend)


@pytest.mark.parametrize(
    ("backend", "kinds"), [(NoopExecutionBackend(), ALL_KINDS), (object(), COMPUTE_KINDS)]
)
def test_accepted_kinds_default_to_functions_and_executables(
    backend: object, kinds: frozenset[str]
) -> None:
    assert accepted_kinds(backend) == kinds
