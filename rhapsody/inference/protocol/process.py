"""The agreement between the program and its model servers: variables, key header, parent pipe."""

from __future__ import annotations

import os

from rhapsody.inference.protocol.errors import RequestError
from rhapsody.processes import REPLICA_KEY_VARIABLE

__all__ = [
    "HANG_VARIABLE",
    "KEY_HEADER",
    "KEY_VARIABLE",
    "MAX_BODY_BYTES",
    "PARENT_VARIABLE",
    "missing_key",
    "open_parent_pipe",
]

KEY_VARIABLE = REPLICA_KEY_VARIABLE
"""Holds the secret that every request to the server must carry."""
KEY_HEADER = "X-Rhapsody-Key"
"""The header of that secret."""
PARENT_VARIABLE = "RHAPSODY_PARENT_FD"
"""Holds the number of the read end of a pipe whose write end only the parent has."""
HANG_VARIABLE = "RHAPSODY_HANG_SECONDS"
"""Holds the time after which an engine that does not react counts as dead."""
MAX_BODY_BYTES = 64 * 1024 * 1024
"""A batch of 1,024 prompts as long as the embedded model's default context is about 10 MiB."""


def missing_key() -> RequestError:
    """Return the error of a request without the right key."""
    return RequestError(f"A valid {KEY_HEADER} header is required.", KEY_HEADER, code=401)


def open_parent_pipe() -> int | None:
    """Take the pipe to the parent out of the environment.

    Reading from the pipe gives end-of-file as soon as the parent is gone.

    Returns:
        The descriptor of its read end, which child processes do not inherit; None if the server
        was started without one.

    Raises:
        ValueError: The variable does not name an open descriptor.
    """
    text = os.environ.pop(PARENT_VARIABLE, None)
    if text is None:
        return None
    try:
        pipe = int(text)
        os.set_inheritable(pipe, False)
    except (ValueError, OSError) as error:
        raise ValueError(
            f"{PARENT_VARIABLE} must be the number of the open read end of a pipe, "
            f"got {text!r}: {error}"
        ) from error
    return pipe
