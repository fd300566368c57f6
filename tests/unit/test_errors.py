"""Errors explain the problem and can be pickled."""

import asyncio
import pickle
from pathlib import Path
from typing import Any

import cloudpickle
import pytest

from rhapsody import api
from rhapsody.api import errors
from rhapsody.errors import describe_error, message_of

EXAMPLES: list[errors.RhapsodyError] = [
    errors.RhapsodyError("what happened"),
    errors.BackendError("dask", "it was shut down while it was starting"),
    errors.BackendInUseError("dask", "Session s1"),
    errors.ConfigurationError("'tp_size' must be a whole number of at least 1, got 0"),
    errors.JournalError(
        "run.journal",
        "is in use by process 4711 on host node1; wait until that program has ended, or use "
        "another file",
    ),
    errors.MissingExtraError("DaskExecutionBackend", "distributed", "dask"),
    errors.OverloadedError(65536, 65536),
    errors.PartialFailureError(["yes", None], [None, ValueError("bad")]),
    errors.PromptError("too long", 400, "BadRequestError", "prompt"),
    errors.ReplicaError("the server died", "last line"),
    errors.ResourceError(
        None,
        "port",
        "host, port 8000: Address already in use; choose another port=, or 0 for any free port",
    ),
    errors.ResourceError(
        "t1", "gpu", "it asks for 4 ranks with 8 GPUs each; the nodes have 8 GPUs"
    ),
    errors.QueueTimeoutError("t1", 2.5),
    errors.EngineError(
        "'square' cannot be called here: the engine's event loop <...> is closed; create an "
        "engine in each asyncio.run()"
    ),
    errors.SessionError("session s1 is closed; make a new one"),
    errors.TaskCancelledError("t1"),
    errors.TaskExecutionError("t1", "ls: cannot access '/x': No such file or directory", 2),
    errors.TaskTimeoutError("t1", 2.5),
    errors.TaskValidationError(
        "t1", "'temperature' must be a number of at least 0, got -1", "temperature", -1
    ),
    errors.UnsupportedTaskError(
        "t1", "backend 'dask' cannot run a prompt task; it takes executable and function tasks"
    ),
    errors.WalltimeReached("the walltime is nearly over"),
    errors.WorkerDied(
        "t1",
        "the worker process that ran it, on node n1, was ended by SIGKILL. Usual causes: it used "
        "more memory than there is, or it crashed the interpreter",
    ),
]
WITHOUT_OWN_TEXT = (errors.PromptError, errors.ReplicaError)
DOCUMENTED = [e for e in EXAMPLES[1:] if not isinstance(e, WITHOUT_OWN_TEXT)]
PAGE = Path(__file__).parents[2] / "docs" / "reference" / "errors.md"

by_name = pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)


def fields(error: BaseException) -> dict[str, Any]:
    return {
        name: [repr(item) for item in value] if isinstance(value, (list, tuple)) else value
        for name, value in vars(error).items()
    }


def test_every_public_error_is_tested_here() -> None:
    assert {type(error).__name__ for error in EXAMPLES} == set(errors.__all__)


@pytest.mark.parametrize("error", DOCUMENTED, ids=lambda error: type(error).__name__)
def test_documentation_shows_the_message(error: errors.RhapsodyError) -> None:
    assert f"`{error}`" in PAGE.read_text()


def test_errors_are_reexported_by_api() -> None:
    for name in errors.__all__:
        assert getattr(api, name) is getattr(errors, name)


@by_name
@pytest.mark.parametrize("pickler", [pickle, cloudpickle])
def test_pickle_keeps_type_message_and_fields(error: errors.RhapsodyError, pickler: Any) -> None:
    copy = pickle.loads(pickler.dumps(error))
    assert type(copy) is type(error)
    assert str(copy) == str(error)
    assert fields(copy) == fields(error)


def test_pickle_keeps_notes() -> None:
    error = errors.BackendError("gpu", "gone")
    error.__dict__["__notes__"] = ["seen on node 3"]  # add_note needs Python 3.11
    assert pickle.loads(pickle.dumps(error)).__notes__ == ["seen on node 3"]


@by_name
def test_error_derives_from_rhapsody_error(error: errors.RhapsodyError) -> None:
    assert isinstance(error, errors.RhapsodyError)


@pytest.mark.parametrize(
    ("kind", "base"),
    [
        (errors.ConfigurationError, ValueError),
        (errors.MissingExtraError, ImportError),
        (errors.EngineError, RuntimeError),
        (errors.QueueTimeoutError, errors.TaskTimeoutError),
        (errors.SessionError, RuntimeError),
        (errors.TaskTimeoutError, TimeoutError),
        (errors.TaskValidationError, ValueError),
    ],
)
def test_error_derives_from_builtin_error(kind: type[Exception], base: type[Exception]) -> None:
    assert issubclass(kind, base)


def test_task_cancelled_error_differs_from_asyncio_cancelled_error() -> None:
    assert not issubclass(errors.TaskCancelledError, asyncio.CancelledError)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (errors.BackendInUseError("gpu", "Session s1"), ["'gpu'", "Session s1", "close"]),
        (
            errors.MissingExtraError("DaskExecutionBackend", "distributed", "dask"),
            ["DaskExecutionBackend", "distributed", 'pip install ".[dask]"'],
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
def test_message_contains_the_fields(error: Exception, words: list[str]) -> None:
    for word in words:
        assert word in str(error)


COLORED = "\x1b[31mred\x1b[0m \x1b]0;title\x07\x9b2J\rline 1\n\tline 2"
PLAIN = "red 2Jline 1\n\tline 2"


def test_messages_have_no_control_sequences() -> None:
    error = errors.TaskExecutionError("t1", COLORED, 2)
    assert str(error) == f"Task 't1' failed with exit code 2: {PLAIN}"
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
    assert message_of(ValueError(COLORED)) == PLAIN
    assert describe_error(ValueError(COLORED)) == f"ValueError: {PLAIN}"
