"""One model server: its process, its health, and the batch route to it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import aiohttp

from rhapsody.api.errors import ReplicaError
from rhapsody.inference.launchers.local import LocalLauncher, ServerProcess
from rhapsody.inference.prompts import PromptRequest

__all__ = ["KEY_HEADER", "Replica"]

logger = logging.getLogger(__name__)

KEY_HEADER = "X-Rhapsody-Key"
HEALTH_TIMEOUT_SECONDS = 5.0
HEALTH_FAILURES = 3
"""Health checks in a row that fail before a server counts as dead."""
LARGE_BODY = 256 * 1024
"""Characters of prompts from which a batch is put into JSON in a thread."""


class Replica:
    """A server that this process started, and restarts when it dies.

    Args:
        index: Its number in the pool.
        command: How it is started, but for the address.
        environment: Variables on top of this process's; holds the key of every request.
        directory: Private directory for its socket and its log. Paths of sockets are limited to
            108 bytes, so it is a short one.
        limit: Prompts it works on at a time.
        launcher: Starts the process.
        on_change: Called when it has become ready, has room again, or has failed for good.
    """

    def __init__(
        self,
        index: int,
        command: Sequence[str],
        environment: Mapping[str, str],
        directory: Path,
        limit: int,
        launcher: LocalLauncher,
        on_change: Callable[[], None],
    ) -> None:
        self.index = index
        self.limit = limit
        self.state = "STARTING"
        self.restarts = 0
        self.in_flight = 0
        self._socket = directory / f"replica-{index}.sock"
        self._log = directory / f"replica-{index}.log"
        self._command = [*command, "--uds", str(self._socket)]
        self._environment = dict(environment)
        self._launcher = launcher
        self._on_change = on_change
        self._process: ServerProcess | None = None
        self._client: aiohttp.ClientSession | None = None
        self._doubted = asyncio.Event()
        self._cancelled: list[str] = []
        self._cancelling: asyncio.Task[None] | None = None

    @property
    def address(self) -> str:
        """Where it listens: `unix:<path>`."""
        return f"unix:{self._socket}"

    @property
    def pid(self) -> int | None:
        """Process id of the server, while it runs."""
        return self._process.pid if self._process is not None else None

    @property
    def room(self) -> int:
        """How many more prompts it could start at once."""
        return max(self.limit - self.in_flight, 0)

    def log_tail(self) -> str:
        """The last lines of the server's log."""
        return self._process.log_tail() if self._process is not None else ""

    # -- life -----------------------------------------------------------------------------------

    async def start(self, timeout: float) -> None:
        """Start the server and wait until it is ready.

        Args:
            timeout: Longest time that may take, in seconds.

        Raises:
            ReplicaError: It exited or was not ready in time, with its last lines.
        """
        self.state = "STARTING"
        self._socket.unlink(missing_ok=True)
        try:
            self._process = await self._launcher.launch(self._command, self._environment, self._log)
        except OSError as error:
            raise ReplicaError(
                f"model server {self.index} could not be started: {error}"
            ) from error
        self._client = aiohttp.ClientSession(
            base_url="http://replica",
            connector=aiohttp.UnixConnector(str(self._socket), limit=0),
            headers={KEY_HEADER: self._environment["RHAPSODY_REPLICA_KEY"]},
            timeout=aiohttp.ClientTimeout(total=None),
            auto_decompress=False,
        )
        exit_ = asyncio.ensure_future(self._process.wait())
        health = asyncio.ensure_future(self._until_healthy())
        try:
            await asyncio.wait([exit_, health], timeout=timeout, return_when="FIRST_COMPLETED")
            if not health.done():
                reason = (
                    f"exited with code {exit_.result()} while it started"
                    if exit_.done()
                    else f"was not ready within {timeout:g} s"
                )
                raise ReplicaError(f"model server {self.index} {reason}", self.log_tail())
        except BaseException:
            await self.end()
            raise
        finally:
            for waiting in (exit_, health):
                waiting.cancel()
            await asyncio.gather(exit_, health, return_exceptions=True)
        logger.info("model server %d is ready at %s", self.index, self.address)
        self._set_ready()

    async def _until_healthy(self) -> None:
        # A server says in no other way that it is ready; start-up is the only time we ask often.
        pause = 0.02
        while not await self._is_healthy():
            await asyncio.sleep(pause)
            pause = min(pause * 1.5, 0.5)

    async def _is_healthy(self) -> bool:
        assert self._client is not None
        timeout = aiohttp.ClientTimeout(total=HEALTH_TIMEOUT_SECONDS)
        try:
            async with self._client.get("/health", timeout=timeout) as answer:
                return answer.status == 200
        except (aiohttp.ClientError, OSError, asyncio.TimeoutError):
            return False

    async def until_dead(self, interval: float) -> str:
        """Wait until the server has exited or stopped answering, and say which.

        Args:
            interval: Seconds between health checks.
        """
        assert self._process is not None
        exit_ = asyncio.ensure_future(self._process.wait())
        exit_.add_done_callback(lambda _: self._doubted.set())
        failures = 0
        try:
            while failures < HEALTH_FAILURES:
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(self._doubted.wait(), interval)
                if exit_.done():
                    return f"exited with code {exit_.result()}"
                self._doubted.clear()
                if await self._is_healthy():
                    failures = 0
                    self._set_ready()
                else:
                    failures += 1
                    self.state = "UNHEALTHY"
        finally:
            exit_.cancel()
        return f"did not answer {HEALTH_FAILURES} health checks in a row"

    def _set_ready(self) -> None:
        if self.state != "READY":
            self.state = "READY"
            self._on_change()

    def doubt(self) -> None:
        """Send nothing more until a health check, done at once, has found it well."""
        if self.state == "READY":
            self.state = "UNHEALTHY"
        self._doubted.set()

    async def end(self, state: str = "DEAD") -> None:
        """End the server and every connection to it."""
        self.state = state
        if self._cancelling is not None:
            self._cancelling.cancel()
        if self._client is not None:
            client, self._client = self._client, None
            await client.close()
        if self._process is not None:
            await self._process.end()
        self._socket.unlink(missing_ok=True)

    def kill(self) -> None:
        """End the server at once, from any thread, at the exit of this process."""
        if self._process is not None:
            self._process.kill()

    # -- work -----------------------------------------------------------------------------------

    async def answer(self, requests: Sequence[PromptRequest]) -> list[PromptRequest]:
        """Send a batch and hand each prompt its events as they come.

        Args:
            requests: The batch.

        Returns:
            The prompts that have no outcome, because the connection was lost.
        """
        self.in_flight += len(requests)
        open_ = {request.id: request for request in requests}
        for request in requests:
            request.replica = self
        try:
            async for event in self._events(requests):
                request = open_[event["id"]]
                request.take_event(event)
                if event["type"] != "delta":
                    del open_[event["id"]]
                    self._leave(1)
        except (aiohttp.ClientError, OSError, asyncio.TimeoutError) as error:
            logger.warning("model server %d lost %d prompts: %s", self.index, len(open_), error)
        finally:
            if open_:
                self.doubt()
            self._leave(len(open_))
        return [request for request in open_.values() if not request.done]

    async def _events(self, requests: Sequence[PromptRequest]) -> AsyncIterator[dict[str, Any]]:
        if self._client is None:
            return
        bodies = {"prompts": [request.body for request in requests]}
        large = sum(len(str(body.body["prompt"])) for body in requests) > LARGE_BODY
        data = await asyncio.to_thread(json.dumps, bodies) if large else json.dumps(bodies)
        headers = {"Content-Type": "application/json"}
        async with self._client.post("/rhapsody/batch", data=data, headers=headers) as answer:
            if answer.status != 200:
                text = (await answer.text())[:500]
                raise aiohttp.ClientError(f"the batch route answered {answer.status}: {text}")
            rest = b""
            async for chunk in answer.content.iter_any():
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    yield json.loads(line)

    def _leave(self, prompts: int) -> None:
        if prompts:
            self.in_flight -= prompts
            self._on_change()

    def cancel(self, request_id: str) -> None:
        """Have the server stop working on a prompt; many at once go in one message."""
        self._cancelled.append(request_id)
        if self._cancelling is None or self._cancelling.done():
            self._cancelling = asyncio.get_running_loop().create_task(self._send_cancelled())

    async def _send_cancelled(self) -> None:
        while self._cancelled and self._client is not None:
            ids, self._cancelled = self._cancelled, []
            with contextlib.suppress(aiohttp.ClientError, OSError):  # then it has stopped anyway
                async with self._client.post("/rhapsody/cancel", json={"ids": ids}):
                    pass

    @contextlib.asynccontextmanager
    async def request(
        self, method: str, path: str, headers: Mapping[str, str], data: Any
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Pass an HTTP request through; it counts as one prompt in flight.

        Raises:
            aiohttp.ClientError: The server went away.
        """
        if self._client is None:
            raise aiohttp.ClientConnectionError("the model server is gone")
        self.in_flight += 1
        try:
            async with self._client.request(
                method, path, headers=headers, data=data, allow_redirects=False
            ) as answer:
                yield answer
        finally:
            self._leave(1)

    def as_dict(self) -> dict[str, Any]:
        """Describe it: index, state, address, pid, prompts in flight, restarts."""
        return {
            "index": self.index,
            "state": self.state,
            "address": self.address,
            "pid": self.pid,
            "in_flight": self.in_flight,
            "restarts": self.restarts,
        }
