from typing import Any

import pytest

from rhapsody.backends.core.attachment import Attachment, ignore
from rhapsody.backends.core.work import Work, failure_fields, refuse_unknown
from rhapsody.errors import TaskExecutionError, UnsupportedTaskError


def work(**task: Any) -> Work:
    return Work({"uid": "task.1", "function": len, **task}, Attachment(ignore), "/work")


def test_attributes_come_from_the_task() -> None:
    one = work(task_backend_specific_kwargs={"cwd": "/tmp"})
    assert (one.uid, one.kind, one.work_dir, one.state) == (
        "task.1",
        "function",
        "/work",
        "PENDING",
    )
    assert one.options == {"cwd": "/tmp"}
    assert one.started is None


def test_mark_running_sets_state_and_time() -> None:
    one = work()
    one.history.count_submitted(1)
    one.mark_running()
    assert one.state == "RUNNING"
    assert one.started is not None
    assert one.started >= one.submitted
    assert one.history.counts == {"RUNNING": 1}


def test_mark_ended_records_the_end() -> None:
    one = work()
    one.history.count_submitted(1)
    one.mark_ended("FAILED", ValueError("no"))
    assert one.state == "FAILED"
    assert one.history.records()[0].reason == "ValueError: no"


@pytest.mark.parametrize(
    ("fields", "timeout"),
    [
        ({}, None),
        ({"timeout": 2}, 2.0),
        ({"task_backend_specific_kwargs": {"timeout": 1.5}}, 1.5),
        ({"timeout": 2, "task_backend_specific_kwargs": {"timeout": 1.5}}, 1.5),
    ],
)
def test_timeout_is_read_from_options_first(fields: dict[str, Any], timeout: float | None) -> None:
    assert work(**fields).timeout == timeout


@pytest.mark.parametrize("timeout", [0, -1, True, "2", float("nan"), 10**400])
def test_invalid_timeout_is_refused(timeout: Any) -> None:
    with pytest.raises(UnsupportedTaskError, match="must be a positive number of seconds, got"):
        work(timeout=timeout).timeout  # noqa: B018


def test_failure_fields_have_exception_and_stderr() -> None:
    error = ValueError("no")
    assert failure_fields(work(), error) == {"exception": error, "stderr": "no"}


def test_failure_fields_wrap_exception_unfit_for_future() -> None:
    fields = failure_fields(work(), SystemExit(2))
    assert isinstance(fields["exception"], TaskExecutionError)
    assert "it raised SystemExit: 2" in fields["stderr"]


def test_refuse_unknown_names_unknown_and_known_options() -> None:
    one = work(task_backend_specific_kwargs={"cwd": "/tmp", "rnaks": 2})
    with pytest.raises(
        UnsupportedTaskError,
        match=r"'mine' has no option 'rnaks'; did you mean 'ranks'\? It knows cwd, ranks",
    ):
        refuse_unknown(one, {"cwd", "ranks"}, "mine")


def test_refuse_unknown_without_a_near_option_names_the_known_ones() -> None:
    one = work(task_backend_specific_kwargs={"max_length": 2})
    with pytest.raises(UnsupportedTaskError, match="has no option 'max_length'; it knows cwd"):
        refuse_unknown(one, {"cwd"}, "mine")


def test_refuse_unknown_accepts_known_options() -> None:
    refuse_unknown(work(task_backend_specific_kwargs={"cwd": "/tmp"}), {"cwd"}, "mine")
