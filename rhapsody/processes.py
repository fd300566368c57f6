"""Child processes: their environment, and groups that end as a whole."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Mapping
from typing import Any

__all__ = [
    "GROUP",
    "SECRET_VARIABLES",
    "SOCKET_DIRECTORY_BYTES",
    "child_environment",
    "end_group",
    "group_exists",
    "has_secrets",
]

SECRET_VARIABLES = frozenset({"RHAPSODY_API_KEY", "RHAPSODY_REPLICA_KEY"})
"""Never handed on to what users run."""

SOCKET_DIRECTORY_BYTES = 90
"""A longer path leaves no room for a socket's name: its whole path has 108 bytes (macOS: 104)."""

# A process group of its own makes a child's children reachable by one signal. Python 3.10 has no
# `process_group`; a session of its own does the same there.
GROUP: dict[str, Any] = (
    {"process_group": 0} if sys.version_info >= (3, 11) else {"start_new_session": True}
)
"""Arguments of a subprocess call that put the child into a process group of its own."""


def child_environment(changes: Mapping[str, str | None] | None = None) -> dict[str, str]:
    """Return this process's environment with changes, without Rhapsody's secrets.

    Args:
        changes: Variables to set; one set to None is removed.
    """
    environment = {k: v for k, v in os.environ.items() if k not in SECRET_VARIABLES}
    for key, value in (changes or {}).items():
        if value is None:
            environment.pop(key, None)
        else:
            environment[key] = str(value)
    return environment


def has_secrets() -> bool:
    """Say whether this process's environment has anything that is not handed on."""
    return any(name in os.environ for name in SECRET_VARIABLES)


def end_group(pid: int, sig: int) -> None:
    """Send a signal to the process group that a child leads, if it still exists."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, sig)


def group_exists(pid: int) -> bool:
    """Say whether any process is left in the group that a child led."""
    try:
        os.killpg(pid, 0)
    except OSError:
        return False
    return True
