"""Errors say what was wrong and what to do, and survive the way between processes."""

import asyncio
import pickle
from typing import Any

import cloudpickle
import pytest

from rhapsody import api
from rhapsody.api import errors

EXAMPLES: list[errors.RhapsodyError] = [
    errors.RhapsodyError("what happened"),
    errors.BackendError("gpu", "the runtime went away"),
    errors.BackendInUseError("gpu", "Session s1"),
    errors.ConfigurationError("tp_size must be 1"),
    errors.MissingExtraError("DaskExecutionBackend", "distributed", "dask"),
    errors.OverloadedError(70000, 65536),
    errors.PartialFailureError(["yes", None], [None, ValueError("bad")]),
    errors.PromptError("too long", 400, "BadRequestError", "prompt"),
    errors.ReplicaError("the server died", "last line"),
    errors.ResourceError("task.1", "gpu", "8 asked for, 2 there"),
    errors.SessionError("the session is closed"),
    errors.TaskCancelledError("task.1"),
    errors.TaskExecutionError("task.1", "no such file", 127),
    errors.TaskTimeoutError("task.1", 2.5),
    errors.TaskValidationError("task.1", "'top_p' must be less", "top_p", 7),
    errors.UnsupportedTaskError("task.1", "no prompts here"),
    errors.WorkerDied("task.1", "killed", -9),
]

by_name = pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)


def fields(error: BaseException) -> dict[str, Any]:
    return {
        name: [repr(item) for item in value] if isinstance(value, (list, tuple)) else value
        for name, value in vars(error).items()
    }


def test_every_public_error_has_an_example_here() -> None:
    assert {type(error).__name__ for error in EXAMPLES} == set(errors.__all__)


def test_every_error_can_be_imported_from_the_api() -> None:
    for name in errors.__all__:
        assert getattr(api, name) is getattr(errors, name)


@by_name
@pytest.mark.parametrize("pickler", [pickle, cloudpickle])
def test_an_error_keeps_its_type_message_and_fields_when_pickled(
    error: errors.RhapsodyError, pickler: Any
) -> None:
    copy = pickle.loads(pickler.dumps(error))
    assert type(copy) is type(error)
    assert str(copy) == str(error)
    assert fields(copy) == fields(error)


def test_an_error_keeps_a_note_when_pickled() -> None:
    error = errors.BackendError("gpu", "gone")
    error.__notes__ = ["seen on node 3"]
    assert pickle.loads(pickle.dumps(error)).__notes__ == ["seen on node 3"]


@by_name
def test_every_error_is_a_rhapsody_error(error: errors.RhapsodyError) -> None:
    assert isinstance(error, errors.RhapsodyError)


@pytest.mark.parametrize(
    ("kind", "base"),
    [
        (errors.ConfigurationError, ValueError),
        (errors.MissingExtraError, ImportError),
        (errors.SessionError, RuntimeError),
        (errors.TaskTimeoutError, TimeoutError),
        (errors.TaskValidationError, ValueError),
    ],
)
def test_an_error_is_also_the_built_in_one_that_it_amounts_to(
    kind: type[Exception], base: type[Exception]
) -> None:
    assert issubclass(kind, base)


def test_a_cancelled_task_does_not_look_like_the_cancelling_of_its_caller() -> None:
    assert not issubclass(errors.TaskCancelledError, asyncio.CancelledError)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (errors.BackendInUseError("gpu", "Session s1"), ["'gpu'", "Session s1", "close"]),
        (
            errors.MissingExtraError("DaskExecutionBackend", "distributed", "dask"),
            ["DaskExecutionBackend", "distributed", 'pip install "rhapsody[dask]"'],
        ),
        (errors.OverloadedError(7, 5), ["7", "5", "max_pending"]),
        (errors.TaskExecutionError("t", "no such file", 127), ["'t'", "127", "no such file"]),
        (errors.TaskTimeoutError("t", 2.5), ["'t'", "2.5 s"]),
        (errors.ReplicaError("it died", "out of memory"), ["it died", "out of memory"]),
        (errors.ResourceError(None, "port", "8000 is taken"), ["port", "8000"]),
        (errors.PartialFailureError(["a", None], [None, OSError("b")]), ["1 of 2", "prompt 1"]),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_a_message_names_what_it_is_about(error: Exception, words: list[str]) -> None:
    for word in words:
        assert word in str(error)
