"""Failures that Dask sends: as they are, shortened, or pickled by this package."""

import pickle
import traceback

import pytest

from tests.support.functions import LockedError

pytestmark = pytest.mark.dask


def sendable(uid: str, error: BaseException) -> Exception:
    from rhapsody.backends.dask.failures import dump_failure

    exception: Exception = pickle.loads(dump_failure(uid, error))
    return exception


def descend(depth: int) -> None:
    if not depth:
        raise ValueError("at the bottom")
    descend(depth - 1)


def test_exception_is_sent_as_it_is() -> None:
    sent = sendable("task.1", ValueError("no"))
    assert type(sent) is ValueError
    assert str(sent) == "no"


def test_exception_that_is_sent_refers_to_no_values_of_the_call() -> None:
    with pytest.raises(AttributeError) as raised:
        [].no_such_attribute  # type: ignore[attr-defined]  # noqa: B018
    assert raised.value.obj == []
    assert sendable("task.1", raised.value).obj is None  # type: ignore[attr-defined]


def test_long_traceback_keeps_its_ends() -> None:
    with pytest.raises(ValueError, match="at the bottom") as raised:
        descend(400)
    sent = sendable("task.1", raised.value)
    frames = traceback.extract_tb(sent.__traceback__)
    assert len(frames) == 16 + 48
    assert frames[-1].line == 'raise ValueError("at the bottom")'


def test_long_chain_of_causes_is_cut() -> None:
    error = ValueError("0")
    for number in range(1, 50):
        following = ValueError(str(number))
        following.__cause__ = error
        error = following
    sent, length = sendable("task.1", error), 1
    while (cause := sent.__cause__) is not None:
        assert isinstance(cause, Exception)
        sent, length = cause, length + 1
    assert length == 1 + 10


def test_exception_that_cannot_be_pickled_is_described() -> None:
    from rhapsody.backends.dask.failures import FailedFunction

    sent = sendable("task.1", LockedError())
    assert isinstance(sent, FailedFunction)
    assert "LockedError" in str(sent)
    assert sent.outcome


def test_failed_executable_has_the_text_of_its_exception() -> None:
    from rhapsody.backends.dask.failures import FailedExecutable

    failed = FailedExecutable({"exception": ValueError("exit code 2"), "stdout": "1" * 1000})
    assert str(failed) == "exit code 2"
    assert repr(failed) == "FailedExecutable('exit code 2')"
