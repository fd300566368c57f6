"""The inference service: the replicas of one model, with bounds, metrics and the HTTP gateway."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import asdict
from typing import Any

from rhapsody.errors import ReplicaError
from rhapsody.inference.admission import Admission
from rhapsody.inference.config import InferenceConfig
from rhapsody.inference.engines import ServerCommand
from rhapsody.inference.http.gateway import Gateway
from rhapsody.inference.http.served_model import ServedModel
from rhapsody.inference.launchers.factory import ReplicaFactory
from rhapsody.inference.metrics import Metrics
from rhapsody.inference.prompts import Completion, Prompt, PromptRequest
from rhapsody.inference.replicas.adapters import Adapters
from rhapsody.inference.replicas.pool import ReplicaPool
from rhapsody.inference.replicas.replica import Replica
from rhapsody.inference.replicas.scaler import Scaler
from rhapsody.inference.replicas.scaling import Scaling, ScalingPolicy
from rhapsody.inference.replicas.weights import ServedWeights, Weights
from rhapsody.waiting import done_within

__all__ = ["InferenceService"]

logger = logging.getLogger(__name__)


class InferenceService:
    """Completes prompts with the replicas of one model.

    Made by `create`. All methods but `kill` must be called on the loop that ran `create`.

    Args:
        config: The checked configuration.
        command: The command that starts a server.
        factory: Makes the replicas; closed by `stop`.
        on_batch: Called with the number of prompts in each batch that is sent.
    """

    def __init__(
        self,
        config: InferenceConfig,
        command: ServerCommand,
        factory: ReplicaFactory,
        on_batch: Callable[[int], None],
        adapters: Adapters | None = None,
        weights: Weights | None = None,
    ) -> None:
        self.weights = weights or Weights(ServedWeights())
        self.adapters = adapters or Adapters(config.model_name, {}, refusal_of(config, command))
        self.config = config
        self._factory = factory
        self._on_batch = on_batch
        self._open: set[PromptRequest] = set()
        self.draining = False
        self.metrics = Metrics()
        self.admission = Admission(config.max_pending)
        self.pool = ReplicaPool(
            factory.first,
            max_retries=config.max_retries,
            max_restarts=config.max_restarts,
            restart_window=config.restart_window,
            startup_timeout=config.startup_timeout,
            health_interval=config.health_interval,
            hang_timeout=config.hang_timeout,
            max_batch_size=config.max_batch_size,
            max_batch_wait=config.max_batch_wait_ms / 1000,
            prefix_routing=config.prefix_routing,
            on_batch=self._record_batch,
            scaling=Scaling(*config.bounds, config.bounds[0]) if config.is_elastic else None,
        )
        self._scaler: Scaler | None = None
        if config.is_elastic:
            policy = ScalingPolicy(*config.bounds, config.scale_up_after, config.scale_down_after)
            self._scaler = Scaler(self.pool, policy, factory)
        self.fetches_media = command.fetches_media
        self.has_priorities = command.has_priorities
        served = ServedModel(config, lambda: self)
        self.gateway = Gateway(config, [served]) if config.use_service else None

    @classmethod
    async def create(
        cls,
        config: InferenceConfig,
        on_batch: Callable[[int], None],
        adapter_paths: MutableMapping[str, str] | None = None,
        served_weights: ServedWeights | None = None,
    ) -> InferenceService:
        """Check the configuration and make a service. No process is started.

        Args:
            config: What to serve.
            on_batch: Called with the number of prompts in each batch that is sent.
            adapter_paths: The folders of the LoRA adapters that the servers load, by name.
            served_weights: The weights that the servers load. None: the model's own.

        Raises:
            ConfigurationError: The configuration is impossible.
            MissingExtraError: A package that it needs is not installed.
            ResourceError: The port is taken, or there are too few nodes or GPUs.
        """
        # The checks resolve host names and read files, which blocks.
        command = await asyncio.to_thread(config.check)
        paths = {} if adapter_paths is None else adapter_paths
        adapters = Adapters(config.model_name, paths, refusal_of(config, command))
        weights = Weights(served_weights or ServedWeights())

        async def prepare(replica: Replica) -> None:
            await weights.prepare(replica)
            await adapters.prepare(replica)

        factory = await asyncio.to_thread(ReplicaFactory.create, config, command, prepare)
        return cls(config, command, factory, on_batch, adapters, weights)

    async def start(self) -> None:
        """Start the replicas, wait until they are ready, and open the gateway.

        Raises:
            ResourceError: The port is taken.
            ReplicaError: A server could not start; the error has its last log lines. All servers
                have been stopped.
        """
        try:
            await self.pool.start()
            if self._scaler is not None:
                self._scaler.start()
            if self.gateway is not None:
                await self.gateway.start()
        except BaseException:
            await self.stop()
            raise

    async def reload_weights(
        self, path: str, version: str | int | None, drain_seconds: float | None = None
    ) -> str:
        """Load weights on all servers, one after the other; see `Weights.reload`."""
        timeout = self.config.startup_timeout
        return await self.weights.reload(self.pool, path, version, timeout, drain_seconds)

    def _record_batch(self, prompts: list[PromptRequest], waits: list[float]) -> None:
        self.metrics.record_batch([prompt.priority for prompt in prompts], waits)
        self._on_batch(len(prompts))

    async def drain(self, seconds: float) -> None:
        """Accept no new prompts, and wait until the pending ones have ended.

        Args:
            seconds: Longest time to wait.
        """
        self.draining = True
        if not await done_within(self.admission.wait_empty(), seconds):
            logger.warning(
                "%d prompts did not finish within drain_seconds=%g and are stopped",
                self.admission.pending,
                seconds,
            )

    def check_open(self) -> None:
        """Check that the service accepts prompts.

        Raises:
            ReplicaError: It is draining.
        """
        if self.draining:
            raise ReplicaError("the inference service is shutting down and accepts no new prompts")

    async def stop(self) -> None:
        """Close the gateway, stop the replicas, and fail all unfinished prompts."""
        error = ReplicaError("the inference service was shut down")
        self.pool.close(error)  # prompts that wait for admission get this error from now on
        if self.gateway is not None:
            await self.gateway.stop()
        for request in list(self._open):
            request.fail(error)
        if self._scaler is not None:
            await self._scaler.stop()
        await self.pool.stop()
        self._factory.close()

    def kill(self) -> None:
        """Kill the servers at once, at the exit of this process."""
        self.pool.kill()
        self._factory.remove_files()

    async def complete(
        self,
        prompt: Prompt,
        system_prompt: str | None = None,
        sampling: Mapping[str, Any] | None = None,
        on_sent: Callable[[Replica], None] | None = None,
        on_text: Callable[[str], Any] | None = None,
        priority: int = 0,
        adapter: str | None = None,
    ) -> Completion:
        """Complete one prompt. It waits while `max_pending` prompts are pending.

        Cancelling this takes the prompt out of the queue, or stops the server's work on it.

        Args:
            prompt: A text, chat messages, or an input of another kind.
            system_prompt: The system message before it.
            sampling: The engine's sampling parameters.
            on_sent: Called with the replica each time the prompt is sent to one.
            on_text: Called with each piece of the response as it arrives.
            priority: Prompts of higher priority are handled first.
            adapter: The LoRA adapter to respond with; None: the model itself.

        Raises:
            PromptError: The server refused the prompt.
            ReplicaError: No server could complete it.
        """
        self.check_open()
        await self.admission.enter()
        try:
            return await self.complete_admitted(
                prompt, system_prompt, sampling, on_sent, on_text, priority, adapter=adapter
            )
        finally:
            self.admission.leave()

    async def complete_admitted(
        self,
        prompt: Prompt,
        system_prompt: str | None = None,
        sampling: Mapping[str, Any] | None = None,
        on_sent: Callable[[Replica], None] | None = None,
        on_text: Callable[[str], Any] | None = None,
        priority: int = 0,
        order: int | None = None,
        adapter: str | None = None,
    ) -> Completion:
        """Complete one prompt that `admission` has let in. Arguments as for `complete`."""
        if self.pool.failure is not None:
            raise self.pool.failure
        request = PromptRequest(
            prompt, system_prompt, sampling, on_text, on_sent, priority, order, adapter
        )
        since = time.monotonic()
        usage, outcome = None, "error"
        self._open.add(request)
        self.pool.put(request)
        try:
            completion = await request.completion()
            usage, outcome = completion.usage, "done"
            return completion
        except asyncio.CancelledError:
            outcome = "cancelled"
            self.pool.cancel(request)
            raise
        finally:
            self._open.discard(request)
            request.close()
            if request.first_text_at is not None:
                self.metrics.record_first_piece(request.first_text_at - since)
            seconds = time.monotonic() - since
            self.metrics.record_outcome(outcome, seconds, usage, priority)

    @property
    def window(self) -> int:
        """How many prompts of one request should be in progress at a time."""
        return self.pool.window

    @property
    def healthy(self) -> bool:
        """Whether a server takes prompts, or starts when a prompt comes."""
        pool = self.pool
        able = bool(pool.ready) or pool.starts_on_demand or pool.is_paused
        return able and not self.draining

    def get_statistics(self) -> dict[str, Any]:
        """Return counts of batches and prompts, the replicas, and the usage of HTTP clients."""
        batches, batched = self.metrics.batches, self.metrics.batched
        scaling = self.pool.scaling
        return {
            "batches": batches,
            "batched_prompts": batched,
            "mean_batch_size": batched / batches if batches else None,
            "pending_prompts": self.admission.pending,
            "replicas": [replica.as_dict() for replica in self.pool.replicas],
            **({"scaling": asdict(scaling)} if scaling is not None else {}),
            **({"clients": self.gateway.usage()} if self.gateway is not None else {}),
        }


def refusal_of(config: InferenceConfig, command: ServerCommand) -> str | None:
    """Return why the servers of a model take no adapters; None if they do."""
    if command.takes_adapters:
        return None
    if config.engine == "embedded":
        return (
            "the embedded model has no weights that an adapter could change; serve a model with "
            "engine='vllm'"
        )
    return (
        f"the servers of '{config.model_name}' take no adapters; set enable-lora: true in the "
        "config_file"
    )
