"""The exceptions of components: failures reported by backends, and failed dependencies."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from typing import Any

from radical.asyncflow.errors import DependencyFailureError

from asyncflow_ext.component import description_of
from rhapsody.errors import describe_error

LONGEST_REASON = 1000
"""Longest reason in characters; whole reasons would make the memory of a failed chain quadratic."""

__all__ = ["dependency_failure", "reported_error"]


def reported_error(fields: Mapping[str, Any]) -> BaseException:
    """Return the error that a backend reported: its exception, or else its standard error."""
    error = fields.get("exception")
    if error is None:
        error = fields.get("stderr") or "failed with unknown error"
    return error if isinstance(error, BaseException) else RuntimeError(str(error))


def dependency_failure(
    dependent: str, dependencies: Iterable[asyncio.Future[Any]]
) -> DependencyFailureError | None:
    """Return the error of a component whose dependencies failed.

    The message names the whole chain down to the root cause, and `__cause__` holds it.

    Args:
        dependent: The name of the component.
        dependencies: Futures that are done and not cancelled.

    Returns:
        None if no dependency failed.
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
        reason = describe_error(error)
    return DependencyFailureError(
        f"Cannot execute '{dependent}' due to dependency failure: '{name}' failed: {reason}",
        failed_dependencies=[name for name, _ in failed],
        root_cause=error,
    )


def _shortened(text: str) -> str:
    """Remove the middle of a long text; `__cause__` holds the whole chain."""
    if len(text) <= LONGEST_REASON:
        return text
    return f"{text[: LONGEST_REASON // 2]} [...] {text[-LONGEST_REASON // 2 :]}"


def _name(dependency: asyncio.Future[Any]) -> str:
    description = description_of(dependency)
    return repr(dependency) if description is None else description["name"]
