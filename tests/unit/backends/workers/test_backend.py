"""What backends with workers have in common, without workers."""

import functools
from typing import Any

import pytest

from rhapsody.backends.core.attachment import Attachment, ignore
from rhapsody.backends.core.work import Work
from rhapsody.backends.workers.backend import check_retries, mode_of
from rhapsody.backends.workers.worker_state import CONCURRENT, EXCLUSIVE
from rhapsody.errors import UnsupportedTaskError


def work(**task: Any) -> Work:
    return Work({"uid": "task", **task}, Attachment(ignore), "")


async def async_function(number: int) -> int:
    return number


class AsyncCallable:
    async def __call__(self) -> None: ...

    def method(self) -> None: ...


@pytest.mark.parametrize(
    ("task", "mode"),
    [
        ({"executable": "true"}, EXCLUSIVE),
        ({"function": len}, EXCLUSIVE),
        ({"function": lambda: async_function(1)}, EXCLUSIVE),
        ({"function": AsyncCallable}, EXCLUSIVE),
        ({"function": AsyncCallable().method}, EXCLUSIVE),
        ({"function": functools.partial(print, 1)}, EXCLUSIVE),
        ({"function": async_function}, CONCURRENT),
        ({"function": functools.partial(async_function, 1)}, CONCURRENT),
        ({"function": AsyncCallable()}, CONCURRENT),
    ],
    ids=[
        "executable",
        "built-in",
        "returns a coroutine",
        "class",
        "method",
        "partial",
        "async",
        "async partial",
        "async callable",
    ],
)
def test_only_async_functions_run_concurrently(task: dict[str, Any], mode: str) -> None:
    assert mode_of(work(**task)) == mode


@pytest.mark.parametrize("retries", [-1, "often", 1.5])
def test_retries_must_be_a_whole_number(retries: Any) -> None:
    with pytest.raises(UnsupportedTaskError, match="'retries' must be a whole number"):
        check_retries(work(function=len, task_backend_specific_kwargs={"retries": retries}))
