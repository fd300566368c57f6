"""The body of a request: read within a time limit, and decompressed."""

from __future__ import annotations

import asyncio
import zlib

from aiohttp import web

from rhapsody.inference.http.bodies import BodyError
from rhapsody.inference.protocol.process import MAX_BODY_BYTES

__all__ = ["read_body"]

BODY_SECONDS = 300.0
"""Longest time for a body to arrive."""
LARGE_BODY_BYTES = 1024 * 1024
"""A larger body is decompressed in a thread."""

WBITS = {
    "gzip": 16 + zlib.MAX_WBITS,
    "x-gzip": 16 + zlib.MAX_WBITS,
    "deflate": zlib.MAX_WBITS,
}
"""Formats of zlib by content coding (RFC 9110, section 8.4.1)."""

SLICE_BYTES = 4096
"""Compressed bytes that are decompressed at a time."""


async def read_body(request: web.Request, seconds: float = BODY_SECONDS) -> bytes:
    """Return a request's body, decompressed as its `Content-Encoding` says.

    The server must run with `auto_decompress=False`: aiohttp answers a body that it cannot
    decompress with an error of its own, and drops the connection.

    Args:
        request: The request.
        seconds: Longest time for the body to arrive.

    Raises:
        BodyError: The body cannot be decompressed, or its chunks are malformed.
        HTTPRequestEntityTooLarge: The body is larger than MAX_BODY_BYTES.
        HTTPRequestTimeout: The body did not arrive in time.
        HTTPUnsupportedMediaType: The content coding is neither gzip nor deflate.
    """
    coding = request.headers.get("Content-Encoding", "identity").strip().lower()
    if coding not in WBITS and coding not in ("", "identity"):
        raise web.HTTPUnsupportedMediaType(
            text=f"the content coding {coding!r} is not supported; compress the body with gzip or "
            "deflate, or send it as it is",
            headers={"Accept-Encoding": "gzip, deflate"},
        )
    try:
        data = await asyncio.wait_for(request.read(), seconds)
    except asyncio.TimeoutError:
        raise web.HTTPRequestTimeout(text=f"the body did not arrive within {seconds:g} s") from None
    except web.RequestPayloadError as error:
        raise BodyError(f"the body cannot be read: {error}") from error
    if coding not in WBITS or not data:
        return data
    if len(data) > LARGE_BODY_BYTES:
        return await asyncio.to_thread(_decompressed, data, coding)
    return _decompressed(data, coding)


def _decompressed(data: bytes, coding: str) -> bytes:
    wbits = WBITS[coding]
    # Some clients send "deflate" without zlib's header, whose first byte has 8 in its lower half.
    if coding == "deflate" and data[0] & 0xF != 8:
        wbits = -zlib.MAX_WBITS
    parts: list[bytes] = []
    room = MAX_BODY_BYTES
    stream, at = zlib.decompressobj(wbits), 0
    while at < len(data):
        if stream.eof:  # a body of gzip may have several members
            stream = zlib.decompressobj(wbits)
        # In slices: after each member zlib copies the rest of what it was given.
        piece = data[at : at + SLICE_BYTES]
        try:
            parts.append(stream.decompress(piece, room + 1))
        except zlib.error as error:
            raise BodyError(f"the body is not valid {coding}: {error}") from error
        room -= len(parts[-1])
        if room < 0:
            raise web.HTTPRequestEntityTooLarge(MAX_BODY_BYTES, MAX_BODY_BYTES - room)
        at += len(piece) - len(stream.unused_data)
    if not stream.eof:
        raise BodyError(f"the body is not valid {coding}: it ends early")
    return b"".join(parts)
