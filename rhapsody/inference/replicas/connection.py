"""The connection to one model server: HTTP requests to it, and what its own routes say."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Mapping
from io import BytesIO
from typing import Any

import aiohttp
from yarl import URL

from rhapsody.inference.protocol.batch import CANCEL_PATH, LIMIT_PATH
from rhapsody.inference.replicas.client_session import open_session
from rhapsody.inference.replicas.health import Health, check_health

__all__ = ["JSON_HEADERS", "ServerConnection"]

READ_SECONDS = 5.0
"""Longest time for reading what a server says about itself, such as its metrics."""
JSON_HEADERS = {"Content-Type": "application/json"}


class ServerConnection:
    """Sends requests to a server from `open` to `close`. It may be opened again.

    Args:
        key: The server's key, sent with every request.
    """

    def __init__(self, key: str) -> None:
        self._key = key
        self._session: aiohttp.ClientSession | None = None
        self._responses: set[aiohttp.ClientResponse] = set()
        self._cancelled: list[str] = []
        self._cancelling: asyncio.Task[None] | None = None

    def open(self, address: str) -> None:
        """Send requests to a server from now on.

        Args:
            address: `unix:<path>` or `http://<host>:<port>`.
        """
        self._session = open_session(address, self._key)

    async def close(self) -> None:
        """End all requests. Their readers get an `aiohttp.ClientConnectionError`."""
        self._cancelled.clear()
        if self._cancelling is not None:
            self._cancelling.cancel()
            await asyncio.wait([self._cancelling])
        if self._session is not None:
            session, self._session = self._session, None
            for response in self._responses:  # aiohttp does not wake readers when it closes
                response.content.set_exception(aiohttp.ClientConnectionError("it was stopped"))
            await session.close()

    @contextlib.asynccontextmanager
    async def request(
        self, method: str, path: str, headers: Mapping[str, str], data: bytes | None = None
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Send an HTTP request.

        Args:
            method: The method.
            path: Path and query, already quoted.
            headers: The headers, to which the server's key is added.
            data: The body.

        Raises:
            aiohttp.ClientError: The connection to the server was lost, or is closed.
        """
        if self._session is None:
            raise aiohttp.ClientConnectionError("the model server is stopped")
        async with self._session.request(
            method,
            URL(path, encoded=True),
            headers=headers,
            data=BytesIO(data) if data else None,
            allow_redirects=False,
        ) as response:
            self._responses.add(response)
            try:
                yield response
            finally:
                self._responses.discard(response)

    def cancel(self, request_id: str) -> None:
        """Tell the server to stop working on a prompt. Cancels made together share a request."""
        self._cancelled.append(request_id)
        if self._cancelling is None or self._cancelling.done():
            self._cancelling = asyncio.get_running_loop().create_task(self._send_cancelled())

    async def _send_cancelled(self) -> None:
        while self._cancelled and self._session is not None:
            ids, self._cancelled = self._cancelled, []
            # A server that cannot be reached works on no prompt.
            with contextlib.suppress(aiohttp.ClientError, OSError):
                async with self._session.post(CANCEL_PATH, json={"ids": ids}):
                    pass

    async def check_health(self, seconds: float) -> Health:
        """Check the health of the server; see `check_health`.

        Args:
            seconds: Longest time to wait for the response.
        """
        assert self._session is not None
        return await check_health(self._session, seconds)

    async def limit(self) -> tuple[int, frozenset[str]]:
        """Return how many prompts the server works on at a time, and the kinds that it takes.

        Raises:
            aiohttp.ClientError: The connection to the server was lost.
        """
        async with self.request("GET", LIMIT_PATH, {}) as response:
            answer = await response.json()
        return int(answer["max_num_seqs"]), frozenset(answer["kinds"])

    async def exchange(self, path: str, body: Mapping[str, Any]) -> tuple[int, str]:
        """Send an administrator's command, and return the status and the text of the response.

        Raises:
            aiohttp.ClientError: The connection to the server was lost.
        """
        async with self.request("POST", path, JSON_HEADERS, json.dumps(body).encode()) as response:
            text = await response.text()
            status = response.status
        with contextlib.suppress(ValueError, KeyError, TypeError):
            text = json.loads(text)["error"]["message"]
        return status, f"{text:.500}"

    async def metrics(self) -> str | None:
        """Return the server's own metrics as text; None if it gives none."""
        return await self._get("/metrics")

    async def models(self) -> list[dict[str, Any]] | None:
        """Return the models that the server lists; None if it does not answer."""
        text = await self._get("/v1/models")
        try:
            entries = json.loads(text or "null")["data"]
        except (ValueError, TypeError, KeyError):
            return None
        return entries if isinstance(entries, list) else None

    async def openapi(self) -> dict[str, Any] | None:
        """Return the OpenAPI document of the server's routes; None if it has none."""
        text = await self._get("/openapi.json")
        try:
            document = json.loads(text or "null")
        except ValueError:
            return None
        return document if isinstance(document, dict) else None

    async def _get(self, path: str) -> str | None:
        if self._session is None:
            return None
        timeout = aiohttp.ClientTimeout(total=READ_SECONDS)
        try:
            async with self._session.get(path, timeout=timeout) as response:
                return await response.text() if response.status == 200 else None
        except (aiohttp.ClientError, OSError, asyncio.TimeoutError):
            return None
