"""The errors of Rhapsody: one tree, every node with fields, all of them picklable.

A message is built from the fields and says what was wrong, what was expected and what to do.
`__reduce__` rebuilds an error from its constructor arguments, so it survives the way back from a
worker process with its fields intact.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

__all__ = [
    "BackendError",
    "BackendInUseError",
    "ConfigurationError",
    "MissingExtraError",
    "OverloadedError",
    "PartialFailureError",
    "PromptError",
    "ReplicaError",
    "ResourceError",
    "RhapsodyError",
    "SessionError",
    "TaskCancelledError",
    "TaskExecutionError",
    "TaskTimeoutError",
    "TaskValidationError",
    "UnsupportedTaskError",
    "WorkerDied",
]


def message_of(error: BaseException) -> str:
    """Return an error's text, or its type's name where it has none or its `__str__` fails."""
    try:
        return str(error) or type(error).__name__
    except BaseException:  # even one that exits, which would end the service loop
        return type(error).__name__


class RhapsodyError(Exception):
    """Base of every error that Rhapsody raises on purpose."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message
        self._arguments: tuple[Any, ...] = (message,)

    def __reduce__(self) -> tuple[Any, ...]:
        """Rebuild from the constructor's arguments, keeping notes and other attributes."""
        return type(self), self._arguments, dict(self.__dict__)


class BackendError(RhapsodyError):
    """A backend itself failed: it could not start, or its runtime went away.

    Args:
        backend_name: Name of the backend.
        message: What happened.
    """

    def __init__(self, backend_name: str, message: str) -> None:
        super().__init__(f"Backend '{backend_name}': {message}")
        self.backend_name = backend_name
        self._arguments = (backend_name, message)


class BackendInUseError(BackendError):
    """A backend was offered to a second owner while the first still lives.

    Args:
        backend_name: Name of the backend.
        owner: The session or engine that holds it, in words.
    """

    def __init__(self, backend_name: str, owner: str) -> None:
        super().__init__(
            backend_name,
            f"it is attached to {owner}, which is still open; close that one first, "
            "or make a second backend with a name of its own",
        )
        self.owner = owner
        self._arguments = (backend_name, owner)


class ConfigurationError(RhapsodyError, ValueError):
    """A parameter or a configuration file asks for something that cannot be."""


class MissingExtraError(RhapsodyError, ImportError):
    """An optional package is not installed.

    Args:
        feature: What needs it, for example a class name.
        package: The package that could not be imported.
        extra: The extra of Rhapsody that installs it.
    """

    def __init__(self, feature: str, package: str, extra: str) -> None:
        super().__init__(
            f"{feature} needs the package '{package}', which is not installed; "
            f'install it with: pip install "rhapsody[{extra}]"'
        )
        self.feature = feature
        self.package = package
        self.extra = extra
        self._arguments = (feature, package, extra)


class SessionError(RhapsodyError, RuntimeError):
    """A session was used in a way that it cannot be, such as after it was closed."""


class ResourceError(RhapsodyError):
    """A task or a backend asks for resources that are not there.

    Args:
        task_uid: The task, or None where a backend asks.
        resource_type: What was asked for: "gpu", "node", "memory", "port".
        message: What was asked for and what there is.
    """

    def __init__(self, task_uid: str | None, resource_type: str, message: str) -> None:
        whose = f"Task '{task_uid}': " if task_uid else ""
        super().__init__(f"{whose}{resource_type} not available: {message}")
        self.task_uid = task_uid
        self.resource_type = resource_type
        self._arguments = (task_uid, resource_type, message)


class TaskValidationError(RhapsodyError, ValueError):
    """A task was described wrongly; nothing was submitted.

    Args:
        task_uid: The task, where it has a uid already.
        message: What was wrong and what was expected.
        field: The field at fault.
        value: Its value.
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
        task_uid: The task.
        message: What happened.
        exit_code: Exit status of an executable; -N where signal N ended it.
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
        task_uid: The task.
        timeout: The limit, in seconds.
    """

    def __init__(self, task_uid: str, timeout: float) -> None:
        super().__init__(task_uid, f"it did not finish within its timeout of {timeout:g} s")
        self.timeout = timeout
        self._arguments = (task_uid, timeout)


class TaskCancelledError(RhapsodyError):
    """An awaited task had been cancelled.

    Not an `asyncio.CancelledError`, which would say that the awaiting code itself is cancelled.

    Args:
        task_uid: The task.
    """

    def __init__(self, task_uid: str) -> None:
        super().__init__(f"Task '{task_uid}' was cancelled")
        self.task_uid = task_uid
        self._arguments = (task_uid,)


class OverloadedError(RhapsodyError):
    """More prompts are waiting than `max_pending` allows.

    Args:
        pending: Prompts queued and in flight.
        limit: The bound, in prompts.
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
    """The model server refused one prompt or failed on it.

    Args:
        message: The server's own words.
        code: The HTTP status that fits, such as 400.
        kind: The server's name for the error, such as "BadRequestError".
        param: The parameter at fault, where the server names one.
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
    """A model server died, could not start, or none is left.

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
        results: One entry per prompt, in order: the response, or None where it failed.
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
