"""One inference service: batcher, pool and gateway under one life, on the loop that starts it."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rhapsody.api.errors import ReplicaError
from rhapsody.inference.admission import Admission
from rhapsody.inference.batcher import Batcher
from rhapsody.inference.config import CLAIMS, InferenceConfig
from rhapsody.inference.engines import Engine
from rhapsody.inference.gateway import Gateway
from rhapsody.inference.launchers.dragon import DragonLauncher
from rhapsody.inference.launchers.local import LocalLauncher
from rhapsody.inference.metrics import Metrics
from rhapsody.inference.placement import Place
from rhapsody.inference.pool import Pool
from rhapsody.inference.prompts import Completion, PromptRequest
from rhapsody.inference.replica import Replica
from rhapsody.scratch import Scratch
from rhapsody.waiting import done_within

__all__ = ["InferenceService"]

logger = logging.getLogger(__name__)


class InferenceService:
    """Answers prompts by the replicas of one model.

    Everything here runs on the loop that calls `start`.

    Args:
        config: What to serve, and how.
        on_batch: Called with the number of prompts in each batch that leaves.
    """

    def __init__(self, config: InferenceConfig, on_batch: Callable[[int], None]) -> None:
        self.config = config
        self._on_batch = on_batch
        self.metrics = Metrics()
        self.admission = Admission(config.max_pending)
        self.gateway: Gateway | None = None
        self.draining = False
        self.pool: Pool | None = None
        self._batcher: Batcher[PromptRequest] | None = None
        self._scratch: Scratch | None = None
        self._places: list[Place] = []
        self._open: set[PromptRequest] = set()

    async def start(self) -> None:
        """Start the replicas, wait until they are ready, and open the gateway.

        Raises:
            ConfigurationError: The configuration is impossible; nothing was started.
            ResourceError: The port is taken; nothing was started.
            ReplicaError: A server could not start, with its last lines; nothing is left running.
        """
        # It looks names up and reads a file: not on the loop.
        engine = await asyncio.to_thread(self.config.check)
        self._places = await asyncio.to_thread(self.config.places)
        self._scratch = await asyncio.to_thread(Scratch, "model")
        self.pool = Pool(
            self._make_replicas(engine, self._scratch.path),
            max_retries=self.config.max_retries,
            max_restarts=self.config.max_restarts,
            startup_timeout=self.config.startup_timeout,
            health_interval=self.config.health_interval,
            put_back=self._put_back,
            on_failure=self._fail_waiting,
        )
        self._batcher = Batcher(
            self.pool.dispatch,
            self.pool.capacity,
            max_batch_size=self.config.max_batch_size,
            max_wait=self.config.max_batch_wait_ms / 1000,
            on_batch=self._note_batch,
        )
        try:
            await self.pool.start()
            if self.config.use_service:
                self.gateway = Gateway(self)
                await self.gateway.start()
        except BaseException:
            await self.stop()
            raise

    def _note_batch(self, waits: list[float]) -> None:
        self.metrics.batch(waits)
        self._on_batch(len(waits))

    def _make_replicas(self, engine: Engine, directory: Path) -> list[Replica]:
        environment = {
            **engine.environment,
            "RHAPSODY_REPLICA_KEY": secrets.token_urlsafe(32),
            "RHAPSODY_HANG_SECONDS": str(self.config.hang_timeout),
        }
        launcher = LocalLauncher if self.config.launcher == "local" else DragonLauncher
        return [
            Replica(
                index,
                engine.command,
                environment,
                directory,
                engine.limit,
                launcher(place),
                self._wake,
                place,
            )
            for index, place in enumerate(self._places)
        ]

    async def drain(self, seconds: float) -> None:
        """Let in nothing new, and wait for what is inside, but not longer than so many seconds."""
        self.draining = True
        if not await done_within(self.admission.until_empty(), seconds):
            logger.warning(
                "%d prompts were not answered within drain_seconds=%g and are ended",
                self.admission.pending,
                seconds,
            )

    def check_open(self) -> None:
        """Refuse what comes while the service drains.

        Raises:
            ReplicaError: It does.
        """
        if self.draining:
            raise ReplicaError("the inference service is shutting down and takes nothing new")

    async def stop(self) -> None:
        """Close the gateway, end the replicas, fail what still waits."""
        ended = ReplicaError("the inference service was shut down")
        if self.pool is not None and self.pool.failure is None:
            self.pool.failure = ended  # prompts that wait to be let in get this from now on
        if self.gateway is not None:
            await self.gateway.stop()
            self.gateway = None
        for request in list(self._open):
            request.fail(ended)
        if self._batcher is not None:
            self._batcher.clear()
            await self._batcher.close()
        if self.pool is not None:
            await self.pool.stop()
        CLAIMS.release(self._places)
        self._places = []
        if self._scratch is not None:
            self._scratch.remove()

    def kill(self) -> None:
        """End the servers at once, at the exit of this process."""
        if self.pool is not None:
            self.pool.kill()
        if self._scratch is not None:
            self._scratch.remove()

    def _wake(self) -> None:
        if self._batcher is not None:
            self._batcher.wake()

    def _put_back(self, requests: Any) -> None:
        assert self._batcher is not None
        self._batcher.put_back(requests)

    def _fail_waiting(self, error: ReplicaError) -> None:
        for request in self._batcher.clear() if self._batcher is not None else ():
            request.fail(error)

    async def complete(
        self,
        prompt: str | Sequence[Mapping[str, Any]],
        system_prompt: str | None = None,
        sampling: Mapping[str, Any] | None = None,
        on_sent: Callable[[Replica], None] | None = None,
        on_text: Callable[[str], Any] | None = None,
    ) -> Completion:
        """Answer one prompt; wait where `max_pending` are inside already.

        `on_sent` is called with the server that gets the prompt, each time; `on_text` with each
        piece of the response, as it comes.
        Cancelling it takes the prompt out of the queue, or stops the server's work on it.

        Raises:
            PromptError: The server refused the prompt.
            ReplicaError: No server could answer it.
        """
        self.check_open()
        await self.admission.enter()
        try:
            return await self.complete_admitted(prompt, system_prompt, sampling, on_sent, on_text)
        finally:
            self.admission.leave()

    async def complete_admitted(
        self,
        prompt: str | Sequence[Mapping[str, Any]],
        system_prompt: str | None = None,
        sampling: Mapping[str, Any] | None = None,
        on_sent: Callable[[Replica], None] | None = None,
        on_text: Callable[[str], Any] | None = None,
    ) -> Completion:
        """Answer one prompt that has been let in already."""
        assert self._batcher is not None
        assert self.pool is not None
        if self.pool.failure is not None:
            raise self.pool.failure
        request = PromptRequest(prompt, system_prompt, sampling, on_text, on_sent)
        since = time.monotonic()
        usage, outcome = None, "error"
        self._open.add(request)
        self._batcher.put(request)
        try:
            completion = await request.completion()
            usage, outcome = completion.usage, "done"
            return completion
        except asyncio.CancelledError:
            outcome = "cancelled"
            self._withdraw(request)
            raise
        finally:
            self._open.discard(request)
            request.abandon()
            if request.first_at is not None:
                self.metrics.first_piece(request.first_at - since)
            self.metrics.outcome(outcome, time.monotonic() - since, usage)

    def _withdraw(self, request: PromptRequest) -> None:
        assert self._batcher is not None
        if not self._batcher.remove(request) and request.replica is not None:
            request.replica.cancel(request.id)

    @property
    def healthy(self) -> bool:
        """Whether at least one server takes prompts."""
        return not self.draining and self.pool is not None and bool(self.pool.ready)

    def get_statistics(self) -> dict[str, Any]:
        """Count batches and prompts, and describe the replicas."""
        batches, batched = self.metrics.batches, self.metrics.batched
        return {
            "batches": batches,
            "batched_prompts": batched,
            "mean_batch_size": batched / batches if batches else None,
            "pending_prompts": self.admission.pending,
            "replicas": [replica.as_dict() for replica in self.pool.replicas] if self.pool else [],
        }
