"""One model server: its process, its health, and the prompts in flight there."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import aiohttp

from rhapsody.errors import PromptError, ReplicaError, describe_error
from rhapsody.inference.pacing import Pace
from rhapsody.inference.prompts import PromptRequest
from rhapsody.inference.protocol.batch import BATCH_PATH
from rhapsody.inference.protocol.process import KEY_VARIABLE
from rhapsody.inference.replicas.batch_client import read_events, split_batch
from rhapsody.inference.replicas.connection import JSON_HEADERS, ServerConnection
from rhapsody.inference.replicas.health import Health
from rhapsody.inference.replicas.launcher import Launcher, ServerProcess
from rhapsody.inference.replicas.placement import Place
from rhapsody.inference.replicas.server_log import clean, keep_log, root_cause
from rhapsody.waiting import done_within

__all__ = ["Replica"]

logger = logging.getLogger(__name__)

START_CHECK_SECONDS = 5.0
"""Longest time for a health check while a server starts."""
HEALTH_INTERVALS = 2.5
"""Longest time for a health check of a running server, in intervals between checks."""
HEALTH_FAILURES = 3
"""Refused health checks in a row after which a server counts as dead. One that does not respond may
be busy, and counts as dead after `hang_timeout`."""
REFUSED_FOR_ONE = (400, 413, 422)
"""Statuses with which a server refuses a whole batch because of one prompt, such as one whose JSON
is nested too deeply for it."""
FULL_DISK_BYTES = 1024 * 1024
"""A file system with less room counts as full."""


class _RefusedTogetherError(Exception):
    """The server refused several prompts in one request. Alone, some may be accepted."""


class Replica:
    """A server that this process starts, watches and can start again.

    Args:
        index: Its number in the pool.
        command: The command that starts it, without the address.
        environment: Variables added to this process's; RHAPSODY_REPLICA_KEY must be one of them.
        directory: Private directory for its socket and its log. Its path must be short, since the
            path of a Unix socket is limited to 108 bytes.
        limit: Prompts it works on at a time; None: ask the server.
        launcher: Starts the process.
        on_room: Called when it may have room for prompts again.
        place: Its node and GPUs, for `as_dict`.
        pace: Bounds the work on prompts in one pass of the loop, of all replicas that share it.
        advice: What to do about errors in the server's log, by a regular expression.
        kept_log: File for the log of a server that could not start; None: none is kept.
        spare: Whether it takes prompts only in place of another one.
        prepare: Called with it when its server has started, before it takes prompts.
    """

    def __init__(
        self,
        index: int,
        command: Sequence[str],
        environment: Mapping[str, str],
        directory: Path,
        limit: int | None,
        launcher: Launcher,
        on_room: Callable[[], None],
        place: Place | None = None,
        pace: Pace | None = None,
        advice: Mapping[str, str] | None = None,
        kept_log: Path | None = None,
        spare: bool = False,
        prepare: Callable[[Replica], Awaitable[None]] | None = None,
    ) -> None:
        self._prepare = prepare
        self.index = index
        self.spare = spare
        self.version = ""
        """The version of its weights."""
        self.paused = False
        """Whether it takes no prompts for the moment."""
        self.draining = False
        """Whether it takes no more prompts, and stops when its prompts have ended."""
        self.limit = limit or 0
        self._ask_limit = limit is None
        self.kinds: frozenset[str] | None = None
        """The kinds of AI task that its model takes, if only the server knows."""
        self.state = "STARTING"
        self.restarts = 0
        self.in_flight = 0
        self.ordinary_in_flight = 0
        """Prompts of the queue in flight that are not urgent."""
        self._directory = directory
        self._advice = dict(advice or {})
        self._kept_log = kept_log
        self.starts = 0
        """How often its server was started."""
        self._log = self._new_log()
        self._command = list(command)
        self._environment = dict(environment)
        self._launcher = launcher
        self._on_room = on_room
        self._place = place
        self._pace = pace or Pace()
        self._process: ServerProcess | None = None
        self._ending: dict[asyncio.Task[None], ServerProcess] = {}
        """Former servers that still have processes."""
        self.connection = ServerConnection(environment[KEY_VARIABLE])
        """For requests that do not count as prompts."""
        self._check_now = asyncio.Event()

    @property
    def address(self) -> str | None:
        """Its address while it runs: `unix:<path>` or `http://<host>:<port>`."""
        return self._running.address if self._running is not None else None

    @property
    def pid(self) -> int | None:
        """Process id of the server while it runs."""
        return self._running.pid if self._running is not None else None

    @property
    def _running(self) -> ServerProcess | None:
        process = self._process
        if process is None or process.stopped or process in self._ending.values():
            return None
        return process

    @property
    def shown_state(self) -> str:
        """Its state, or "DRAINING" while it takes no more prompts."""
        alive = self.state in ("READY", "UNHEALTHY")
        return "DRAINING" if (self.draining or self.paused) and alive else self.state

    def log_tail(self) -> str:
        """Return the last lines of the server's log, with secrets masked.

        Control sequences are removed, since errors are shown in terminals. The first error is put
        before the last lines.
        """
        tail = self._process.log_tail() if self._process is not None else ""
        return clean(tail, self._environment)

    def failure(self, reason: str) -> ReplicaError:
        """Return the error of a server that failed: with the first error in its log, and advice.

        Args:
            reason: What happened to it, without a subject.
        """
        tail = self.log_tail()
        cause = root_cause(tail)
        parts = [f"model server {self.index} {reason}" + (f": {cause}" if cause else "")]
        parts += [hint for pattern, hint in self._advice.items() if re.search(pattern, cause)]
        with contextlib.suppress(OSError):
            if shutil.disk_usage(self._directory).free < FULL_DISK_BYTES:
                parts.append(
                    f"the file system of {self._directory} is full, which may be the reason"
                )
        return ReplicaError("; ".join(parts), tail)

    def _start_failure(self, reason: str) -> ReplicaError:
        """Return the error of a server that could not start, and keep its log."""
        error = self.failure(reason)
        if self._kept_log is None or not self._log.exists():
            return error
        try:
            keep_log(self._log, self._kept_log, self._environment)
        except OSError as failed:
            where = f"its log could not be kept: {failed}"
        else:
            where = f"its log is kept in {self._kept_log}"
        return ReplicaError(f"{error.reason}; {where}", error.log_tail)

    def _new_log(self) -> Path:
        return self._directory / f"replica-{self.index}-{self.starts}.log"

    async def start(self, timeout: float) -> None:
        """Start the server and wait until it is ready.

        Args:
            timeout: Longest time until it is ready, in seconds.

        Raises:
            ReplicaError: It exited or was not ready in time; the error has its last log lines.
        """
        self.state = "STARTING"
        # Errors quote the log of this start only, and the former server may still have its socket.
        self._log.unlink(missing_ok=True)
        self.starts += 1
        self._log = self._new_log()
        self._log.unlink(missing_ok=True)  # that of a former replica with this number
        socket = self._directory / f"replica-{self.index}-{self.starts}.sock"
        try:
            self._process = await self._launcher.launch(
                self._command, self._environment, self._log, socket
            )
        except OSError as error:
            raise ReplicaError(
                f"model server {self.index} could not be started: {error}"
            ) from error
        self.connection.open(self._process.address)
        exited = asyncio.ensure_future(self._process.wait())
        healthy = asyncio.ensure_future(self._wait_healthy())
        try:
            await asyncio.wait([exited, healthy], timeout=timeout, return_when="FIRST_COMPLETED")
            problem = healthy.exception() if healthy.done() else None
            if isinstance(problem, ReplicaError):
                raise problem
            if problem is not None or not healthy.done():
                if exited.done():
                    reason = f"exited with code {exited.result()} while it started"
                elif problem is not None:
                    reason = f"failed while it started ({describe_error(problem)})"
                else:
                    reason = f"was not ready within {timeout:g} s"
                raise await asyncio.to_thread(self._start_failure, reason) from problem
        except BaseException:
            await self.stop()
            raise
        finally:
            for waiting in (exited, healthy):
                waiting.cancel()
            await asyncio.gather(exited, healthy, return_exceptions=True)
        await self._process.note_shared_memory()
        logger.info("model server %d is ready at %s", self.index, self.address)
        self._set_ready()

    async def _wait_healthy(self) -> None:
        # A server reports in no other way that it is ready, so it is polled while it starts.
        pause = 0.02
        while await self.connection.check_health(START_CHECK_SECONDS) is not Health.GOOD:
            await asyncio.sleep(pause)
            pause = min(pause * 1.5, 0.5)
        if self._ask_limit:
            self.limit, self.kinds = await self.connection.limit()
        if self._prepare is not None:
            await self._prepare(self)

    async def watch(self, interval: float, hang_timeout: float) -> str:
        """Check the server's health until it is dead, and return the reason.

        Args:
            interval: Seconds between health checks.
            hang_timeout: Seconds without a response after which the server counts as dead.
        """
        assert self._process is not None
        exited = asyncio.ensure_future(self._process.wait())
        exited.add_done_callback(lambda _: self._check_now.set())
        loop = asyncio.get_running_loop()
        refused = 0
        silent_since: float | None = None
        try:
            while refused < HEALTH_FAILURES:
                await done_within(self._check_now.wait(), interval)
                if exited.done():
                    return f"exited with code {exited.result()}"
                self._check_now.clear()
                began = loop.time()
                health = await self.connection.check_health(
                    min(HEALTH_INTERVALS * interval, hang_timeout)
                )
                if health is Health.GOOD:
                    refused, silent_since = 0, None
                    self._set_ready()
                    continue
                self.state = "UNHEALTHY"
                refused += health is Health.BAD
                silent_since = began if silent_since is None else silent_since
                if health is Health.UNKNOWN and loop.time() - silent_since >= hang_timeout:
                    return f"did not respond for {hang_timeout:g} s"
        finally:
            exited.cancel()
        return f"refused {HEALTH_FAILURES} health checks in a row"

    def _set_ready(self) -> None:
        if self.state != "READY":
            self.state = "READY"
            self._on_room()

    def suspect(self) -> None:
        """Take no more prompts until a health check, made at once, has succeeded."""
        if self.state == "READY":
            self.state = "UNHEALTHY"
        self._check_now.set()

    async def stop(self, state: str = "DEAD") -> None:
        """Stop the server and close every connection to it."""
        await self.retire(state)
        while self._ending:
            await asyncio.wait(list(self._ending))

    async def retire(self, state: str = "DEAD") -> None:
        """Close every connection, and stop the server in the background.

        Its processes may take seconds to end. Another server may start meanwhile.
        """
        self.state = state
        await self.connection.close()
        process = self._process
        if process is not None and not process.stopped and process not in self._ending.values():
            ending = asyncio.get_running_loop().create_task(_end(process))
            self._ending[ending] = process
            ending.add_done_callback(self._ending.pop)

    def kill(self) -> None:
        """Kill the servers at once, from any thread, at the exit of this process."""
        for process in [*self._ending.values(), self._process]:
            if process is not None:
                process.kill()

    def reserve(self, requests: Sequence[PromptRequest]) -> None:
        """Count prompts as in flight here; `send` must follow."""
        self.in_flight += len(requests)
        for request in requests:
            self.ordinary_in_flight += not request.urgent
            request.sent_to(self)

    async def send(self, requests: Sequence[PromptRequest]) -> list[PromptRequest]:
        """Send reserved prompts, and pass their events on as they arrive.

        Args:
            requests: The prompts.

        Returns:
            The prompts without an outcome, because the connection was lost.
        """
        parts = await split_batch(requests, self._pace)
        sent = {request for _, prompts in parts for request in prompts}
        self._release([request for request in requests if request not in sent])
        lost = await asyncio.gather(*(self._post(body, prompts) for body, prompts in parts))
        return [request for prompts in lost for request in prompts]

    async def _post(self, body: bytes, requests: Sequence[PromptRequest]) -> list[PromptRequest]:
        pending = {request.id: request for request in requests}
        try:
            await self._stream_events(body, pending)
        except _RefusedTogetherError:
            pending.clear()
            middle = len(requests) // 2
            halves = self.send(requests[:middle]), self.send(requests[middle:])
            return [request for lost in await asyncio.gather(*halves) for request in lost]
        except (aiohttp.ClientError, OSError, asyncio.TimeoutError) as error:
            logger.warning(
                "the connection to model server %d was lost with %d prompts in flight: %s",
                self.index,
                len(pending),
                error,
            )
        except Exception:
            logger.exception("model server %d sent an invalid event", self.index)
        finally:
            if pending:
                self.suspect()
            self._release(pending.values())
        return [request for request in pending.values() if not request.done]

    async def _stream_events(self, body: bytes, pending: dict[str, PromptRequest]) -> None:
        async with self.connection.request("POST", BATCH_PATH, JSON_HEADERS, body) as response:
            if response.status in REFUSED_FOR_ONE and len(pending) > 1:
                raise _RefusedTogetherError
            if 400 <= response.status < 500:
                await self._fail_refused(response, pending)
            elif response.status != 200:
                raise aiohttp.ClientError(
                    f"the batch route responded with status {response.status}"
                )
            # A cancel sent before the server knew the prompts had no effect, so send it again.
            for request in pending.values():
                if request.done:
                    self.connection.cancel(request.id)
            reading = read_events(response.content, self._pace)
            async with contextlib.aclosing(reading) as events:
                async for event in events:
                    request = pending[event["id"]]
                    request.handle_event(event)
                    if event["type"] != "delta":
                        del pending[event["id"]]
                        self._release([request])

    async def _fail_refused(
        self, response: aiohttp.ClientResponse, pending: dict[str, PromptRequest]
    ) -> None:
        """Fail prompts that the server refused, such as a body that is too large.

        Another attempt would be refused as well.
        """
        text = (await response.text())[:500]
        error = f"the model server refused the prompt with status {response.status}: {text}"
        for request in pending.values():
            request.fail(PromptError(error, response.status, "BadRequestError"))
        self._release(pending.values())
        pending.clear()

    def _release(self, requests: Collection[PromptRequest]) -> None:
        if requests:
            self.in_flight -= len(requests)
            self.ordinary_in_flight -= sum(not request.urgent for request in requests)
            self._on_room()

    @contextlib.asynccontextmanager
    async def request(
        self, method: str, path: str, headers: Mapping[str, str], data: bytes | None = None
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Forward an HTTP request; see `ServerConnection.request`. It counts as one prompt."""
        self.in_flight += 1
        try:
            async with self.connection.request(method, path, headers, data) as response:
                yield response
        finally:
            self.in_flight -= 1
            self._on_room()

    def as_dict(self) -> dict[str, Any]:
        """Return index, state, address, node, GPUs, pid, in_flight, restarts, spare, and ranks."""
        return {
            "index": self.index,
            "state": self.shown_state,
            "address": self.address,
            "node": self._place.node.name if self._place is not None else None,
            "gpus": list(self._place.gpus) if self._place is not None else [],
            "pid": self.pid,
            "in_flight": self.in_flight,
            "restarts": self.restarts,
            "spare": self.spare,
            **self._ranks_as_dict(),
        }

    def _ranks_as_dict(self) -> dict[str, Any]:
        place, process = self._place, self._running
        if place is None or not place.others:
            return {}
        pids = process.pids if process is not None else [None] * len(place.ranks)
        ranks = zip(place.ranks, pids, strict=True)
        return {
            "ranks": [
                {"node": one.node.name, "gpus": list(one.gpus), "pid": pid} for one, pid in ranks
            ]
        }


async def _end(process: ServerProcess) -> None:
    try:
        await process.stop()
    except Exception:
        logger.exception("stopping the process %d of a model server failed", process.pid)
    path = process.address.removeprefix("unix:")
    if path != process.address:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
