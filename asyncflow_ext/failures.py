"""What a component's future raises: its own failure, or that of something it depends on."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from typing import Any

from radical.asyncflow.errors import DependencyFailureError

from rhapsody.api.errors import message_of

LONGEST_REASON = 1000
"""Characters of a reason; whole ones would make the memory of a failed chain quadratic."""

__all__ = ["as_exception", "dependency_failure", "reported_error"]


def as_exception(error: BaseException) -> Exception:
    """Return an exception that a future can hold: `StopIteration` and exits are wrapped."""
    if isinstance(error, Exception) and not isinstance(error, StopIteration):
        return error
    wrapped = RuntimeError(_in_words(error))
    wrapped.__cause__ = error
    return wrapped


def reported_error(fields: Mapping[str, Any]) -> BaseException:
    """Return the failure that a backend reports: an exception, else what is on stderr."""
    error = fields.get("exception")
    if error is None:
        error = fields.get("stderr") or "failed with unknown error"
    return error if isinstance(error, BaseException) else RuntimeError(str(error))


def dependency_failure(
    dependent: str, dependencies: Iterable[asyncio.Future[Any]]
) -> DependencyFailureError | None:
    """Say that a component cannot run since something it depends on failed.

    The message has the whole chain down to the root cause, and so has `__cause__`.

    Args:
        dependent: The name of what cannot run.
        dependencies: Futures that are done, and not cancelled.

    Returns:
        None where none of them failed.
    """
    failed = [
        (_name(dependency), error)
        for dependency in dependencies
        if (error := dependency.exception()) is not None
    ]
    if not failed:
        return None
    name, error = failed[0]
    if isinstance(error, DependencyFailureError):
        reason = _shortened(str(error))
    else:
        reason = _in_words(error)
    return DependencyFailureError(
        f"Cannot execute '{dependent}' due to dependency failure: '{name}' failed: {reason}",
        failed_dependencies=[name for name, _ in failed],
        root_cause=error,
    )


def _in_words(error: BaseException) -> str:
    name, message = type(error).__name__, message_of(error)
    return name if message == name else f"{name}: {message}"


def _shortened(text: str) -> str:
    """Leave out the middle of a long chain, which `__cause__` has in full."""
    if len(text) <= LONGEST_REASON:
        return text
    return f"{text[: LONGEST_REASON // 2]} [...] {text[-LONGEST_REASON // 2 :]}"


def _name(dependency: Any) -> str:
    description = getattr(dependency, "task", None) or getattr(dependency, "block", None)
    return description["name"] if isinstance(description, dict) else repr(dependency)
