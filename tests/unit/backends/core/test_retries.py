"""Retries: how often, after which pauses, and what an attempt leaves behind."""

from rhapsody import ComputeTask
from rhapsody.backends.core.retries import RetryPolicy, clear_result
from rhapsody.backends.protocol import Attempt


def test_pauses_double() -> None:
    policy = RetryPolicy(retries=5, backoff=0.5)
    assert [policy.pause(failed) for failed in range(4)] == [0.5, 1.0, 2.0, 4.0]


def test_pause_after_many_attempts_is_finite() -> None:
    assert RetryPolicy(5000, 1.0).pause(4000) == 2.0**30


def test_last_attempt_is_the_one_after_all_retries() -> None:
    policy = RetryPolicy(retries=2)
    assert [policy.is_last(failed) for failed in range(3)] == [False, False, True]
    assert RetryPolicy().is_last(0)


def test_attempts_are_numbered_from_one() -> None:
    assert RetryPolicy(1).attempt("t", 0) == Attempt("t", 1, is_last=False)
    assert RetryPolicy(1).attempt("t", 1) == Attempt("t", 2, is_last=True)
    assert RetryPolicy().attempt("t", 0) is None


def test_clear_result_leaves_the_fields_of_the_task() -> None:
    task = ComputeTask("ls", own=1)
    before = dict(task)
    task.update(state="FAILED", exit_code=2, stderr="no", exception=OSError())
    clear_result(task)
    assert dict(task) == before
