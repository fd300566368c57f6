"""One model server: its process, its health, and the batch route to it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp.connector import Connection
from yarl import URL

from rhapsody.api.errors import PromptError, ReplicaError
from rhapsody.inference.batch_call import CANCEL_PATH, LIMIT_PATH, PATH, events, posts_of
from rhapsody.inference.launchers import Launcher, ServerProcess
from rhapsody.inference.placement import Place
from rhapsody.inference.prompts import PromptRequest
from rhapsody.processes import SECRET_VARIABLES
from rhapsody.waiting import done_within

__all__ = ["KEY_HEADER", "Replica"]

logger = logging.getLogger(__name__)

KEY_HEADER = "X-Rhapsody-Key"
SECRETS = SECRET_VARIABLES | {"HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "VLLM_API_KEY"}
"""Variables whose values no log that is shown may hold."""
START_CHECK_SECONDS = 5.0
"""Longest time for a health check while a server starts, and for reading its metrics."""
HEALTH_INTERVALS = 2.5
"""Longest time for a health check of a running server, in intervals between them."""
KEEPALIVE_SECONDS = 3.0
"""How long an idle connection may be used again; uvicorn closes it after 5 seconds."""
HEALTH_FAILURES = 3
"""Health checks in a row that fail before a server counts as dead."""


class Replica:
    """A server that this process started, and restarts when it dies.

    Args:
        index: Its number in the pool.
        command: How it is started, but for the address.
        environment: Variables on top of this process's; holds the key of every request.
        directory: Private directory for its socket and its log. Paths of sockets are limited to
            108 bytes, so it is a short one.
        limit: Prompts it works on at a time; None asks the server.
        launcher: Starts the process.
        on_change: Called when it has become ready, has room again, or has failed for good.
        place: Its node and GPUs, to be told to those who ask.
    """

    def __init__(
        self,
        index: int,
        command: Sequence[str],
        environment: Mapping[str, str],
        directory: Path,
        limit: int | None,
        launcher: Launcher,
        on_change: Callable[[], None],
        place: Place | None = None,
    ) -> None:
        self.index = index
        self.limit = limit or 0
        self._ask_limit = limit is None
        self.state = "STARTING"
        self.restarts = 0
        self.in_flight = 0
        self._socket = directory / f"replica-{index}.sock"
        self._log = directory / f"replica-{index}.log"
        self._command = list(command)
        self._environment = dict(environment)
        self._launcher = launcher
        self._on_change = on_change
        self._place = place
        self._process: ServerProcess | None = None
        self._client: aiohttp.ClientSession | None = None
        self._answers: set[aiohttp.ClientResponse] = set()
        self._doubted = asyncio.Event()
        self._cancelled: list[str] = []
        self._cancelling: asyncio.Task[None] | None = None

    @property
    def address(self) -> str | None:
        """Where it listens, while it runs: `unix:<path>` or `http://<host>:<port>`."""
        process = self._process
        return process.address if process is not None and not process.ended else None

    @property
    def pid(self) -> int | None:
        """Process id of the server, while it runs."""
        process = self._process
        return process.pid if process is not None and not process.ended else None

    @property
    def room(self) -> int:
        """How many more prompts it could start at once."""
        return max(self.limit - self.in_flight, 0)

    def log_tail(self) -> str:
        """The last lines of the server's log."""
        tail = self._process.log_tail() if self._process is not None else ""
        for name, value in {**os.environ, **self._environment}.items():
            if name in SECRETS and value:
                tail = tail.replace(value, "***")
        return tail

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
            self._process = await self._launcher.launch(
                self._command, self._environment, self._log, self._socket
            )
        except OSError as error:
            raise ReplicaError(
                f"model server {self.index} could not be started: {error}"
            ) from error
        self._client = _client_of(self._process.address, self._environment["RHAPSODY_REPLICA_KEY"])
        exit_ = asyncio.ensure_future(self._process.wait())
        health = asyncio.ensure_future(self._until_healthy())
        try:
            await asyncio.wait([exit_, health], timeout=timeout, return_when="FIRST_COMPLETED")
            if health.done():
                health.result()
            else:
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

    async def _learn_limit(self) -> None:
        async with self._ask("GET", LIMIT_PATH, {}, None) as answer:
            self.limit = int((await answer.json())["max_num_seqs"])

    async def _until_healthy(self) -> None:
        # A server says in no other way that it is ready; start-up is the only time we ask often.
        pause = 0.02
        while not await self._is_healthy(START_CHECK_SECONDS):
            await asyncio.sleep(pause)
            pause = min(pause * 1.5, 0.5)
        if self._ask_limit:
            await self._learn_limit()

    async def _is_healthy(self, seconds: float) -> bool:
        assert self._client is not None
        timeout = aiohttp.ClientTimeout(total=seconds)
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
                await done_within(self._doubted.wait(), interval)
                if exit_.done():
                    return f"exited with code {exit_.result()}"
                self._doubted.clear()
                if await self._is_healthy(HEALTH_INTERVALS * interval):
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
        self._cancelled.clear()
        if self._cancelling is not None:
            self._cancelling.cancel()
            await asyncio.wait([self._cancelling])
        if self._client is not None:
            client, self._client = self._client, None
            for answer in self._answers:  # aiohttp closes connections without a word to readers
                answer.content.set_exception(aiohttp.ClientConnectionError("it was ended"))
            await client.close()
        if self._process is not None:
            await self._process.end()
        self._socket.unlink(missing_ok=True)

    def kill(self) -> None:
        """End the server at once, from any thread, at the exit of this process."""
        if self._process is not None:
            self._process.kill()

    def take(self, requests: Sequence[PromptRequest]) -> None:
        """Count prompts as in flight here; `answer` is to follow."""
        self.in_flight += len(requests)
        for request in requests:
            request.sent_to(self)

    async def answer(self, requests: Sequence[PromptRequest]) -> list[PromptRequest]:
        """Send prompts that were taken, and hand each its events as they come.

        Args:
            requests: The prompts.

        Returns:
            Those that have no outcome, because the connection was lost.
        """
        posts = await posts_of(requests)
        self._leave(len(requests) - sum(len(group) for _, group in posts))
        lost = await asyncio.gather(*(self._post(body, group) for body, group in posts))
        return [request for group in lost for request in group]

    async def _post(self, body: bytes, group: Sequence[PromptRequest]) -> list[PromptRequest]:
        open_ = {request.id: request for request in group}
        try:
            await self._exchange(body, open_)
        except (aiohttp.ClientError, OSError, asyncio.TimeoutError) as error:
            logger.warning("model server %d lost %d prompts: %s", self.index, len(open_), error)
        except Exception:
            logger.exception("model server %d sent what nobody understands", self.index)
        finally:
            if open_:
                self.doubt()
            self._leave(len(open_))
        return [request for request in open_.values() if not request.done]

    async def _exchange(self, body: bytes, open_: dict[str, PromptRequest]) -> None:
        async with self._ask("POST", PATH, {"Content-Type": "application/json"}, body) as answer:
            if 400 <= answer.status < 500:
                await self._refused(answer, open_)
            elif answer.status != 200:
                raise aiohttp.ClientError(f"it answered {answer.status}")
            # The server knows the prompts now; a cancel sent before this may have come too early.
            for request in open_.values():
                if request.done:
                    self.cancel(request.id)
            async with contextlib.aclosing(events(answer.content)) as lines:
                async for event in lines:
                    request = open_[event["id"]]
                    request.take_event(event)
                    if event["type"] != "delta":
                        del open_[event["id"]]
                        self._leave(1)

    async def _refused(
        self, answer: aiohttp.ClientResponse, open_: dict[str, PromptRequest]
    ) -> None:
        """Sending it again would not help: too large, above all."""
        text = (await answer.text())[:500]
        error = f"the model server refused the prompt with status {answer.status}: {text}"
        for request in open_.values():
            request.fail(PromptError(error, answer.status, "BadRequestError"))
        self._leave(len(open_))
        open_.clear()

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
                async with self._client.post(CANCEL_PATH, json={"ids": ids}):
                    pass

    @contextlib.asynccontextmanager
    async def request(
        self, method: str, path: str, headers: Mapping[str, str], data: bytes | None = None
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Pass an HTTP request through; it counts as one prompt in flight.

        Args:
            method: The method.
            path: Path and query, quoted as they are to be sent.
            headers: The headers, to which this replica's key is added.
            data: The body.

        Raises:
            aiohttp.ClientError: The server went away.
        """
        self.in_flight += 1
        try:
            async with self._ask(method, path, headers, data) as answer:
                yield answer
        finally:
            self._leave(1)

    @contextlib.asynccontextmanager
    async def _ask(
        self, method: str, path: str, headers: Mapping[str, str], data: bytes | None
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        if self._client is None:
            raise aiohttp.ClientConnectionError("it is gone")
        async with self._client.request(
            method,
            URL(path, encoded=True),
            headers=headers,
            data=BytesIO(data) if data else None,
            allow_redirects=False,
        ) as answer:
            self._answers.add(answer)
            try:
                yield answer
            finally:
                self._answers.discard(answer)

    async def metrics(self) -> str | None:
        """Return the server's own metrics as text; None where it does not tell them."""
        if self._client is None:
            return None
        timeout = aiohttp.ClientTimeout(total=START_CHECK_SECONDS)
        try:
            async with self._client.get("/metrics", timeout=timeout) as answer:
                return await answer.text() if answer.status == 200 else None
        except (aiohttp.ClientError, OSError, asyncio.TimeoutError):
            return None

    def as_dict(self) -> dict[str, Any]:
        """Describe it: index, state, address, node, GPUs, pid, prompts in flight, restarts."""
        return {
            "index": self.index,
            "state": self.state,
            "address": self.address,
            "node": self._place.host.name if self._place is not None else None,
            "gpus": list(self._place.gpus) if self._place is not None else [],
            "pid": self.pid,
            "in_flight": self.in_flight,
            "restarts": self.restarts,
        }


class _Answer(aiohttp.ClientResponse):
    """An answer after which its connection is used again, unless it is an error.

    uvicorn closes the connection after an error that its application did not expect, without
    saying so in the answer. A request that was sent on it would be lost.
    """

    async def start(self, connection: Connection) -> aiohttp.ClientResponse:
        protocol = connection.protocol
        await super().start(connection)
        if self.status >= 400 and protocol is not None:
            protocol.force_close()  # when it has been read
            if self.content.is_eof():
                protocol.close()
        return self


def _client_of(address: str, key: str) -> aiohttp.ClientSession:
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
        response_class=_Answer,
        timeout=aiohttp.ClientTimeout(total=None),
        # Requests are passed on as they came, answers as they are.
        auto_decompress=False,
        skip_auto_headers=("Accept", "Accept-Encoding", "Content-Type", "User-Agent"),
    )
