"""The errors of Rhapsody: one tree of exceptions, each with fields, all of them picklable.

A message is built from the fields and says what was wrong, what was expected and what to do.
`__reduce__` rebuilds an error from its constructor's arguments, so an error from a worker process
arrives with its fields intact.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

__all__ = [
    "BackendError",
    "BackendInUseError",
    "ConfigurationError",
    "EngineError",
    "JournalError",
    "MissingExtraError",
    "OverloadedError",
    "PartialFailureError",
    "PromptError",
    "QueueTimeoutError",
    "ReplicaError",
    "ResourceError",
    "RhapsodyError",
    "SessionError",
    "TaskCancelledError",
    "TaskExecutionError",
    "TaskTimeoutError",
    "TaskValidationError",
    "UnsupportedTaskError",
    "WalltimeReached",
    "WorkerDied",
]


CONTROL = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]"  # a control sequence (ECMA-48), such as a color
    r"|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)"  # a command to the terminal, such as to set its title
    r"|[\x00-\x08\x0b-\x1f\x7f-\x9f]"  # all other control characters but tabs and line breaks
)


def printable(text: str) -> str:
    """Return a text without control sequences, which would act on the terminal that shows it."""
    return text if text.isprintable() else CONTROL.sub("", text)


def message_of(error: BaseException) -> str:
    """Return an error's text, or the name of its type if the text is empty or `__str__` fails.

    Control sequences are removed: errors are shown in terminals.
    """
    try:
        return printable(str(error)) or type(error).__name__
    except BaseException:  # also SystemExit, which would end the service loop
        return type(error).__name__


PLAIN = frozenset({bool, bytes, float, int, str, type(None)})


def has_own_text(error: BaseException) -> bool:
    """Return whether the text of an error, or of a cause, is made by code of the user.

    Such code may be slow.
    """
    left, seen = [error], set()
    while left:
        error = left.pop()
        if not _has_plain_text(error):
            return True
        seen.add(id(error))
        causes = (error.__cause__, error.__context__)
        left += [cause for cause in causes if cause is not None and id(cause) not in seen]
    return False


def own_args(error: BaseException) -> tuple[Any, ...]:
    """Return the `args` that an error was made with, also if its class has its own `args`."""
    args: tuple[Any, ...] = BaseException.__dict__["args"].__get__(error)
    return args


def _has_plain_text(error: BaseException) -> bool:
    kind = type(error)
    if kind.__module__ == "builtins" or kind.__str__ is BaseException.__str__:
        return all(type(value) in PLAIN for value in own_args(error))
    return kind.__module__.partition(".")[0] == __name__.partition(".")[0]


def describe_error(error: BaseException) -> str:
    """Return the name of an error's type and its message, if it has one."""
    name, message = type(error).__name__, message_of(error)
    return name if message == name else f"{name}: {message}"


def as_exception(error: BaseException, task_uid: str | None = None) -> Exception:
    """Return an exception that a future can hold and an owner can raise.

    A `StopIteration` hangs a future; `SystemExit`, `KeyboardInterrupt` and `CancelledError` would
    end the owner's loop. These are wrapped, with the original as the cause.

    Args:
        error: Any exception.
        task_uid: The task that raised it: the wrapper is a `TaskExecutionError`. None: the wrapper
            is a `RuntimeError`.
    """
    if isinstance(error, Exception) and not isinstance(error, StopIteration):
        return error
    reason = describe_error(error)
    wrapper = (
        RuntimeError(reason)
        if task_uid is None
        else TaskExecutionError(task_uid, f"it raised {reason}")
    )
    wrapper.__cause__ = error
    return wrapper


class RhapsodyError(Exception):
    """Base of every error that Rhapsody raises on purpose.

    Its message has no control sequences, even if it quotes the output of a program.
    """

    def __init__(self, message: str) -> None:
        message = printable(message)
        super().__init__(message)
        self.message = message
        self._arguments: tuple[Any, ...] = (message,)

    def __reduce__(self) -> tuple[Any, ...]:
        """Rebuild from the constructor's arguments, keeping notes and other attributes."""
        return type(self), self._arguments, dict(self.__dict__)


class BackendError(RhapsodyError):
    """A backend failed: it could not start, or its runtime ended.

    Args:
        backend_name: Name of the backend.
        message: What happened.
    """

    def __init__(self, backend_name: str, message: str) -> None:
        super().__init__(f"Backend '{backend_name}': {message}")
        self.backend_name = backend_name
        self._arguments = (backend_name, message)


class BackendInUseError(BackendError):
    """A backend was given to a second owner while its first owner is still open.

    Args:
        backend_name: Name of the backend.
        owner: Type and name of the current owner, such as "Session s1".
    """

    def __init__(self, backend_name: str, owner: str) -> None:
        super().__init__(
            backend_name,
            f"it is attached to {owner}, which is still open; close its owner first, "
            "or make a second backend with another name",
        )
        self.owner = owner
        self._arguments = (backend_name, owner)


class ConfigurationError(RhapsodyError, ValueError):
    """A parameter or a key of a configuration file has an invalid value."""


class JournalError(RhapsodyError):
    """A journal cannot be opened, read or written.

    Args:
        path: The file of the journal.
        message: What happened, and what to do.
    """

    def __init__(self, path: str, message: str) -> None:
        super().__init__(f"Journal '{path}' {message}")
        self.path = path
        self._arguments = (path, message)


class MissingExtraError(RhapsodyError, ImportError):
    """An optional package is not installed.

    Args:
        feature: What needs the package, for example the name of a class.
        package: The package that could not be imported.
        extra: The extra of Rhapsody that installs it.
    """

    def __init__(self, feature: str, package: str, extra: str) -> None:
        super().__init__(
            f"{feature} needs the package '{package}', which is not installed; "
            f'install it from a checkout of Rhapsody with: pip install ".[{extra}]"'
        )
        self.feature = feature
        self.package = package
        self.extra = extra
        self._arguments = (feature, package, extra)


class EngineError(RhapsodyError, RuntimeError):
    """A workflow engine was used in an invalid way, for example on another event loop."""


class SessionError(RhapsodyError, RuntimeError):
    """A session was used in an invalid way, for example after it was closed."""


class ResourceError(RhapsodyError):
    """A task or a backend needs resources that do not exist or are in use.

    Args:
        task_uid: The uid of the task; None: a backend needs them.
        resource_type: The kind of resource: "gpu", "node", "memory", "port".
        message: How much is needed and how much there is.
    """

    def __init__(self, task_uid: str | None, resource_type: str, message: str) -> None:
        whose = f"Task '{task_uid}': " if task_uid else ""
        super().__init__(f"{whose}{resource_type} not available: {message}")
        self.task_uid = task_uid
        self.resource_type = resource_type
        self._arguments = (task_uid, resource_type, message)


class TaskValidationError(RhapsodyError, ValueError):
    """A task is invalid; nothing was submitted.

    Args:
        task_uid: The uid of the task, if it has one already.
        message: What was wrong and what was expected.
        field: The name of the invalid field.
        value: The value of that field.
    """

    def __init__(
        self, task_uid: str | None, message: str, field: str | None = None, value: Any = None
    ) -> None:
        whose = f"Task '{task_uid}'" if task_uid else "Task"
        super().__init__(f"{whose}: {message}")
        self.task_uid = task_uid
        self.field = field
        self.value = value
        self._arguments = (task_uid, message, field, value)


class TaskExecutionError(RhapsodyError):
    """A task ran and failed.

    Args:
        task_uid: The uid of the task.
        message: What happened.
        exit_code: Exit status of an executable; -N: signal N ended it.
    """

    def __init__(self, task_uid: str, message: str, exit_code: int | None = None) -> None:
        status = "" if exit_code is None else f" with exit code {exit_code}"
        super().__init__(f"Task '{task_uid}' failed{status}: {message}")
        self.task_uid = task_uid
        self.exit_code = exit_code
        self._arguments = (task_uid, message, exit_code)


class UnsupportedTaskError(TaskExecutionError, NotImplementedError):
    """A backend was given a kind of task, or an option, that it cannot run."""


class WorkerDied(TaskExecutionError):
    """The process that ran a task ended before the task did."""


class TaskTimeoutError(TaskExecutionError, TimeoutError):
    """A task took longer than its own `timeout`.

    Args:
        task_uid: The uid of the task.
        timeout: The limit, in seconds.
    """

    def __init__(self, task_uid: str, timeout: float) -> None:
        super().__init__(task_uid, f"it did not finish within its timeout of {timeout:g} s")
        self.timeout = timeout
        self._arguments = (task_uid, timeout)


class QueueTimeoutError(TaskTimeoutError):
    """A task waited longer for its start than its own `queue_timeout`.

    Args:
        task_uid: The uid of the task.
        timeout: The limit, in seconds.
    """

    def __init__(self, task_uid: str, timeout: float) -> None:
        message = f"it did not start within its queue_timeout of {timeout:g} s"
        TaskExecutionError.__init__(self, task_uid, message)
        self.timeout = timeout
        self._arguments = (task_uid, timeout)


class TaskCancelledError(RhapsodyError):
    """An awaited task was cancelled.

    This is not an `asyncio.CancelledError`, which would mean that the awaiting code is cancelled.

    Args:
        task_uid: The uid of the task.
    """

    def __init__(self, task_uid: str) -> None:
        super().__init__(f"Task '{task_uid}' was cancelled")
        self.task_uid = task_uid
        self._arguments = (task_uid,)


class WalltimeReached(RhapsodyError):
    """A run ended before all its tasks were run, because its batch job ends.

    Args:
        reason: Why it ended now.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(
            f"the run ended before this task was run, because {reason}; start the program again to "
            "run what is missing"
        )
        self.reason = reason
        self._arguments = (reason,)


class OverloadedError(RhapsodyError):
    """More prompts are waiting than `max_pending` allows.

    Args:
        pending: Number of prompts that are queued or in flight.
        limit: The value of `max_pending`.
    """

    def __init__(self, pending: int, limit: int) -> None:
        super().__init__(
            f"{pending} prompts are pending and the limit is {limit}; "
            "try again later, or raise max_pending"
        )
        self.pending = pending
        self.limit = limit
        self._arguments = (pending, limit)


class PromptError(RhapsodyError):
    """The model server rejected a prompt or failed to process it.

    Args:
        message: The server's message.
        code: The HTTP status, such as 400.
        kind: The server's name for the error, such as "BadRequestError".
        param: The invalid parameter, if the server names it.
    """

    def __init__(
        self, message: str, code: int = 500, kind: str = "ServerError", param: str | None = None
    ) -> None:
        super().__init__(message)
        self.code = code
        self.kind = kind
        self.param = param
        self._arguments = (message, code, kind, param)


class ReplicaError(RhapsodyError):
    """A model server died or could not start, or no server is left.

    Args:
        message: What happened.
        log_tail: The last lines of the server's log.
    """

    def __init__(self, message: str, log_tail: str = "") -> None:
        tail = f"\n--- the server's last lines ---\n{log_tail}" if log_tail else ""
        super().__init__(f"{message}{tail}")
        self.reason = message
        self.log_tail = log_tail
        self._arguments = (message, log_tail)


class PartialFailureError(RhapsodyError):
    """Some prompts of a list failed.

    Args:
        results: One entry per prompt, in order: the response, or None if the prompt failed.
        errors: One entry per prompt, in order: None, or the exception.
    """

    def __init__(self, results: Sequence[Any], errors: Sequence[BaseException | None]) -> None:
        failed = [(i, error) for i, error in enumerate(errors) if error is not None]
        first, reason = failed[0]
        super().__init__(
            f"{len(failed)} of {len(errors)} prompts failed; the first is prompt {first}: {reason}"
        )
        self.results = list(results)
        self.errors = list(errors)
        self._arguments = (self.results, self.errors)
