"""Health checks of a model server."""

from __future__ import annotations

import asyncio
import enum
import errno

import aiohttp

__all__ = ["Health", "check_health"]


FULL_QUEUE = (errno.EAGAIN, errno.ENOTCONN)
"""A Unix socket whose queue is full gives EAGAIN, from which asyncio makes ENOTCONN."""


class Health(enum.Enum):
    """What a health check has found out."""

    GOOD = "good"
    BAD = "bad"
    """The server refuses connections, or says that its engine is dead or hangs."""
    UNKNOWN = "unknown"
    """The server did not respond in time: it is busy, or hangs."""


async def check_health(session: aiohttp.ClientSession, seconds: float) -> Health:
    """Ask a server for its health.

    Args:
        session: The session for requests to the server.
        seconds: Longest time for the response.
    """
    timeout = aiohttp.ClientTimeout(total=seconds)
    try:
        async with session.get("/health", timeout=timeout) as response:
            return Health.GOOD if response.status == 200 else Health.BAD
    except asyncio.TimeoutError:
        return Health.UNKNOWN
    except (aiohttp.ClientError, OSError) as error:
        return Health.UNKNOWN if _errno_of(error) in FULL_QUEUE else Health.BAD


def _errno_of(error: Exception) -> int | None:
    cause = getattr(error, "os_error", error)  # aiohttp's error of a failed connection
    return cause.errno if isinstance(cause, OSError) else None
