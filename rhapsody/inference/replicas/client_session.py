"""The HTTP client session of one replica."""

from __future__ import annotations

import aiohttp
from aiohttp.connector import Connection

from rhapsody.inference.protocol.process import KEY_HEADER

__all__ = ["open_session"]

KEEPALIVE_SECONDS = 3.0
"""How long an idle connection may be reused; uvicorn closes it after 5 seconds."""


class _Response(aiohttp.ClientResponse):
    """A response whose connection is reused, unless the response is an error.

    uvicorn closes the connection after an unhandled error of its application, without a
    `Connection: close` header. The next request sent on it would be lost.
    """

    async def start(self, connection: Connection) -> aiohttp.ClientResponse:
        protocol = connection.protocol
        await super().start(connection)
        if self.status >= 400 and protocol is not None:
            protocol.force_close()  # takes effect when the response has been read
            if self.content.is_eof():
                protocol.close()
        return self


def open_session(address: str, key: str) -> aiohttp.ClientSession:
    """Return a session for requests to one replica.

    Args:
        address: `unix:<path>` or `http://<host>:<port>`.
        key: The replica's key, sent with every request.
    """
    path = address.removeprefix("unix:")
    local = path != address
    connector: aiohttp.BaseConnector = (
        aiohttp.UnixConnector(path, limit=0, keepalive_timeout=KEEPALIVE_SECONDS)
        if local
        else aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEPALIVE_SECONDS)
    )
    return aiohttp.ClientSession(
        base_url="http://replica" if local else address,
        connector=connector,
        headers={KEY_HEADER: key},
        response_class=_Response,
        timeout=aiohttp.ClientTimeout(total=None),
        # Requests and responses are passed on unchanged.
        auto_decompress=False,
        skip_auto_headers=("Accept", "Accept-Encoding", "Content-Type", "User-Agent"),
    )
