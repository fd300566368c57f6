"""Fake replicas and servers, for faults that tests cannot cause in a real server."""

import asyncio
import contextlib
import json
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

from aiohttp import web

from rhapsody.errors import ReplicaError
from rhapsody.inference.prompts import Completion, PromptRequest
from rhapsody.inference.replicas.launcher import Launcher
from rhapsody.inference.replicas.pool import ReplicaPool
from rhapsody.inference.replicas.replica import Replica
from rhapsody.inference.replicas.scaling import Scaling

Lines = Callable[[list[dict[str, Any]]], list[bytes]]
"""Makes the lines of a response of the batch route from its prompts."""


class FakeReplica:
    """Starts at once, lives until `die` is called, and completes every prompt.

    Args:
        index: Its number.
        in_flight: Prompts that it has at first.
        state: Its state.
    """

    def __init__(self, index: int, in_flight: int = 0, state: str = "READY") -> None:
        self.index = index
        self.in_flight = in_flight
        self.ordinary_in_flight = 0
        self.state = state
        self.limit = 8
        self.restarts = 0
        self.spare = False
        self.draining = False
        self.paused = False
        self.version = "0"
        self.reserved: list[PromptRequest] = []
        self.cancelled: list[str] = []
        self.starts = 0
        self.failing_starts = 0
        self.losses = 0
        self.watch_error: Exception | None = None
        self.on_room: Callable[[], None] = lambda: None
        self._deaths: asyncio.Queue[str] = asyncio.Queue()
        self.connection = self

    @property
    def shown_state(self) -> str:
        return self.state

    def log_tail(self) -> str:
        return f"last lines of {self.index}"

    async def start(self, timeout: float) -> None:
        self.starts += 1
        if self.failing_starts:
            self.failing_starts -= 1
            self.state = "DEAD"
            raise ReplicaError(f"model server {self.index} exited with code 1 while it started")
        self.state = "READY"
        self.on_room()

    def failure(self, reason: str) -> ReplicaError:
        return ReplicaError(f"model server {self.index} {reason}", self.log_tail())

    async def watch(self, interval: float, hang_timeout: float) -> str:
        if self.watch_error is not None:
            raise self.watch_error
        return await self._deaths.get()

    def die(self, reason: str = "exited with code -9") -> None:
        self._deaths.put_nowait(reason)

    async def retire(self, state: str = "DEAD") -> None:
        self.state = state

    async def stop(self, state: str = "DEAD") -> None:
        self.state = state

    def kill(self) -> None:
        self.state = "KILLED"

    async def metrics(self) -> str:
        return "# TYPE fake_prompts gauge\nfake_prompts 7\n"

    async def openapi(self) -> dict[str, Any]:
        return {"paths": {"/v1/fakes": {"get": {"summary": "Fakes"}}, "/shutdown": {"post": {}}}}

    def cancel(self, request_id: str) -> None:
        self.cancelled.append(request_id)

    def reserve(self, requests: Sequence[PromptRequest]) -> None:
        self.in_flight += len(requests)
        self.ordinary_in_flight += sum(not request.urgent for request in requests)
        self.reserved.extend(requests)
        for request in requests:
            request.replica = self

    async def send(self, requests: Sequence[PromptRequest]) -> list[PromptRequest]:
        """Complete prompts, or lose them while `losses` is above 0."""
        self.in_flight -= len(requests)
        self.ordinary_in_flight -= sum(not request.urgent for request in requests)
        if self.losses:
            self.losses -= 1
            return list(requests)
        for request in requests:
            request.complete(Completion([f"from {self.index}"], ["stop"], {}))
        return []


def pool_of(
    *replicas: "FakeReplica | Replica",
    max_retries: int = 2,
    max_restarts: int = 2,
    prefix_routing: bool = True,
    scaling: Scaling | None = None,
) -> ReplicaPool:
    """Return a pool of given replicas."""

    def make(on_room: Callable[[], None]) -> list[Replica]:
        for replica in replicas:
            if isinstance(replica, FakeReplica):
                replica.on_room = on_room
        return cast("list[Replica]", list(replicas))

    return ReplicaPool(
        make,
        max_retries=max_retries,
        max_restarts=max_restarts,
        restart_window=60,
        startup_timeout=5,
        health_interval=1,
        hang_timeout=10,
        max_batch_size=16,
        max_batch_wait=0.5,
        prefix_routing=prefix_routing,
        scaling=scaling,
    )


@contextlib.contextmanager
def short_directory() -> Iterator[Path]:
    """Make a directory for sockets: tmp_path may be too long for the 108 bytes of their path."""
    with tempfile.TemporaryDirectory(prefix="rhapsody-") as folder:
        yield Path(folder)


@contextlib.asynccontextmanager
async def started_replica(server: "ScriptedServer", index: int = 0) -> AsyncIterator[Replica]:
    """Start a replica on a scripted server."""
    with short_directory() as folder:
        replica = make_replica(server, folder, index)
        await replica.start(10)
        yield replica
        await replica.stop()


def make_replica(
    server: "ScriptedServer", folder: Path, index: int = 0, limit: int | None = 4
) -> Replica:
    """Make a replica on a scripted server, not yet started."""
    environment = {"RHAPSODY_REPLICA_KEY": "key"}
    launcher = cast("Launcher", server)
    return Replica(index, ["server"], environment, folder, limit, launcher, lambda: None)


class ScriptedServer:
    """A launcher and a server in this process, with responses scripted by the test."""

    def __init__(self) -> None:
        self.pid = 4711
        self.stopped = False
        self.batches: list[list[dict[str, Any]]] = []
        self.cancelled: list[list[str]] = []
        self.cancel_received = asyncio.Event()
        self.accepting = asyncio.Event()
        self.accepting.set()
        self.finish = asyncio.Event()
        self.lines: Lines = done_lines
        self.status = 200
        self.refused: str | None = None
        """A batch with this prompt is refused as a whole."""
        self.text = ""
        self.exit = asyncio.Event()
        self.routes: list[web.RouteDef] = []
        self._runner: web.AppRunner | None = None
        self._health_now: Callable[[web.Request], Awaitable[web.Response]] | None = None

    async def launch(
        self, command: list[str], environment: dict[str, str], log: Path, socket: Path
    ) -> "ScriptedServer":
        app = web.Application()
        app.router.add_get("/health", self._health)
        app.router.add_post("/rhapsody/batch", self._batch)
        app.router.add_post("/rhapsody/cancel", self._cancel)
        app.router.add_post("/fails", self._fail)
        app.router.add_routes(self.routes)
        self._runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.UnixSite(self._runner, str(socket)).start()
        self.address = f"unix:{socket}"
        return self

    async def wait(self) -> int:
        await self.exit.wait()
        return 1

    async def note_shared_memory(self) -> None:
        pass

    async def stop(self) -> None:
        if self._runner is not None:
            self.finish.set()
            await self._runner.cleanup()
        self.stopped = True

    def log_tail(self) -> str:
        return "last lines"

    async def _health(self, request: web.Request) -> web.Response:
        return web.Response() if self._health_now is None else await self._health_now(request)

    async def _batch(self, request: web.Request) -> web.StreamResponse:
        prompts = (await request.json())["prompts"]
        self.batches.append(prompts)
        await self.accepting.wait()
        if self.refused is not None and self.refused in [prompt["prompt"] for prompt in prompts]:
            return web.Response(status=400, text="no")
        if self.status != 200:
            return web.Response(status=self.status, text="no")
        response = web.StreamResponse()
        await response.prepare(request)
        for line in self.lines(prompts):
            await response.write(line)
        if self.lines is no_lines:
            await self.finish.wait()
        return response

    async def _fail(self, request: web.Request) -> web.StreamResponse:
        """Close the connection after an error without announcing it, as uvicorn does."""
        response = web.Response(status=int(request.query["status"]), text=self.text)
        await response.prepare(request)
        await response.write_eof()
        assert request.transport is not None
        asyncio.get_running_loop().call_later(0.001, request.transport.close)
        return response

    async def _cancel(self, request: web.Request) -> web.Response:
        self.cancelled.append((await request.json())["ids"])
        self.cancel_received.set()
        return web.json_response({})


def done_lines(prompts: list[dict[str, Any]]) -> list[bytes]:
    event = {"type": "done", "texts": ["text"], "finish_reasons": ["stop"], "usage": {}}
    return [json.dumps({"id": p["id"], **event}).encode() + b"\n" for p in prompts]


def no_lines(prompts: list[dict[str, Any]]) -> list[bytes]:
    return []
