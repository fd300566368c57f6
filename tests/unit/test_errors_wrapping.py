import asyncio

import pytest

from rhapsody.errors import TaskExecutionError, as_exception, describe_error, message_of

UNHOLDABLE = [StopIteration(3), SystemExit("bye"), KeyboardInterrupt(), asyncio.CancelledError()]


class SilentError(Exception):
    """An exception whose `__str__` exits."""

    def __str__(self) -> str:
        raise SystemExit


@pytest.mark.parametrize("error", UNHOLDABLE, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize(
    ("task_uid", "wrapper"), [("task.1", TaskExecutionError), (None, RuntimeError)]
)
async def test_exception_unfit_for_future_is_wrapped(
    error: BaseException, task_uid: str | None, wrapper: type[Exception]
) -> None:
    wrapped = as_exception(error, task_uid)
    future = asyncio.get_running_loop().create_future()
    future.set_exception(wrapped)
    assert future.exception() is wrapped
    assert type(wrapped) is wrapper
    assert type(error).__name__ in str(wrapped)
    assert wrapped.__cause__ is error


def test_ordinary_exception_is_not_wrapped() -> None:
    error = ValueError("no")
    assert as_exception(error, "task.1") is error


@pytest.mark.parametrize(
    ("error", "message", "description"),
    [
        (ValueError("no"), "no", "ValueError: no"),
        (ValueError(), "ValueError", "ValueError"),
        (SilentError(), "SilentError", "SilentError"),
    ],
)
def test_description_has_type_and_message(error: Exception, message: str, description: str) -> None:
    assert message_of(error) == message
    assert describe_error(error) == description
