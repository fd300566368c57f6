"""A request to an endpoint, with its time limits, and the lines of a streamed response."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import aiohttp

from rhapsody.inference.endpoints.messages import MAX_LINE_BYTES, Broken

__all__ = ["CONNECT_SECONDS", "MAX_RESPONSE_BYTES", "EndpointFailed", "Request", "read_lines"]

CONNECT_SECONDS = 10.0
LIST_SECONDS = 30.0
"""Longest time to list the models."""
MAX_RESPONSE_BYTES = 256 * 1024 * 1024


class EndpointFailed(Exception):
    """The endpoint did not answer the request, or not as the OpenAI API says."""


class Request:
    """A request, as a context that turns connection errors into EndpointFailed.

    Args:
        session: The session of the endpoint.
        proxy: URL of a proxy.
        url: Where it is sent.
        data: The body, as JSON; None: a GET request.
        seconds: Longest time for the response; for a stream, between two pieces.
        stream: Whether the response is a stream.
    """

    def __init__(
        self,
        session: aiohttp.ClientSession,
        proxy: str | None,
        url: str,
        data: bytes | None,
        seconds: float,
        stream: bool,
    ) -> None:
        if data is None:
            seconds = min(LIST_SECONDS, seconds)
        self._seconds = seconds
        self._late = "nothing for" if stream else "no response within"
        # A redirect would send the key to another server.
        options: dict[str, Any] = {"allow_redirects": False, "proxy": proxy}
        options["timeout"] = aiohttp.ClientTimeout(
            total=None if stream else seconds, sock_connect=CONNECT_SECONDS, sock_read=seconds
        )
        if data is None:
            self._context = session.get(url, **options)
        else:
            headers = {"Content-Type": "application/json"}
            self._context = session.post(url, data=data, headers=headers, **options)

    async def __aenter__(self) -> aiohttp.ClientResponse:
        try:
            return await self._context.__aenter__()
        except (aiohttp.ClientError, asyncio.TimeoutError, OSError, ValueError) as error:
            raise self._failure(error) from error

    async def __aexit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        await self._context.__aexit__(kind, error, traceback)
        if isinstance(error, (aiohttp.ClientError, asyncio.TimeoutError, OSError)):
            raise self._failure(error) from error

    def _failure(self, error: BaseException) -> EndpointFailed:
        if isinstance(
            error, getattr(aiohttp, "ConnectionTimeoutError", ())
        ):  # aiohttp < 3.10: none
            return EndpointFailed(f"no connection within {CONNECT_SECONDS:g} s")
        if isinstance(error, asyncio.TimeoutError):
            return EndpointFailed(f"it sent {self._late} {self._seconds:g} s")
        if isinstance(error, aiohttp.ClientConnectorError):
            return EndpointFailed(f"it cannot be reached: {error}")
        return EndpointFailed(f"the connection broke: {str(error) or type(error).__name__}")


async def read_lines(content: aiohttp.StreamReader, seconds: float) -> AsyncIterator[bytes]:
    """Yield the lines of a streamed response.

    Args:
        content: The body.
        seconds: Longest time between two events. Comments, which some servers send to keep the
            connection open, are none.

    Raises:
        Broken: A line, or the response, is too long.
        EndpointFailed: The next event did not arrive in time.
    """
    rest, size, last_event = b"", 0, time.monotonic()
    async for part in content.iter_any():
        size += len(part)
        *lines, rest = (rest + part).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                last_event = time.monotonic()
            yield line
        if len(rest) > MAX_LINE_BYTES:
            raise Broken(f"a line of more than {MAX_LINE_BYTES} bytes")
        if size > MAX_RESPONSE_BYTES:
            raise Broken(f"a response of more than {MAX_RESPONSE_BYTES} bytes")
        if time.monotonic() - last_event > seconds:
            raise EndpointFailed(f"it sent no event for {seconds:g} s")
    if rest:
        yield rest
