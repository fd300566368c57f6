"""One model of the gateway: the requests for it, its state and its metrics."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import starmap
from typing import Any, Protocol

from aiohttp import web

from rhapsody.errors import PromptError, ReplicaError
from rhapsody.inference import execution
from rhapsody.inference.admission import Admission
from rhapsody.inference.clients import Client
from rhapsody.inference.config import InferenceConfig
from rhapsody.inference.execution import run_prompt
from rhapsody.inference.gather import gather_outcomes
from rhapsody.inference.http.bodies import BodyError, GenerateBody
from rhapsody.inference.http.generate_response import GenerateResponse
from rhapsody.inference.http.media import remote_media
from rhapsody.inference.http.proxy import Proxy
from rhapsody.inference.metrics import Metrics
from rhapsody.inference.prompts import Completion
from rhapsody.inference.replicas.pool import ReplicaPool

__all__ = ["PromptService", "ServedModel"]

UNAVAILABLE, HEALTHY = "unavailable", "healthy"


class HasNames(Protocol):
    """The LoRA adapters of a model."""

    @property
    def names(self) -> Collection[str]:
        """Their names."""


class PromptService(execution.PromptService, Protocol):
    """The interface of an inference service that the gateway uses."""

    pool: ReplicaPool
    admission: Admission
    metrics: Metrics
    fetches_media: bool
    """Whether the servers fetch images from any URL, and cannot be told not to."""
    has_priorities: bool
    """Whether the servers handle requests by their priority."""

    @property
    def adapters(self) -> HasNames:
        """The LoRA adapters of the model."""

    @property
    def healthy(self) -> bool:
        """Whether a server takes prompts, or starts when a prompt comes."""

    def check_open(self) -> None:
        """Raise ReplicaError unless the service accepts prompts."""

    async def complete_admitted(
        self,
        prompt: str | Sequence[Mapping[str, Any]],
        system_prompt: str | None = None,
        sampling: Mapping[str, Any] | None = None,
        *,
        priority: int = 0,
        order: int | None = None,
        adapter: str | None = None,
    ) -> Completion:
        """Complete one prompt that `admission` has let in."""


class ServedModel:
    """A model that a gateway serves.

    Args:
        config: The configuration of its service.
        service: Returns the running service; None while the model is stopped. A model that starts
            again has another service.
    """

    def __init__(
        self, config: InferenceConfig, service: Callable[[], PromptService | None]
    ) -> None:
        self._config = config
        self._find_service = service

    @property
    def name(self) -> str:
        """The name of the model."""
        return self._config.model_name

    @property
    def names(self) -> Collection[str]:
        """The names of the model and of its adapters."""
        service = self._find_service()
        return {self.name, *(service.adapters.names if service is not None else ())}

    def _adapter(self, name: str | None) -> str | None:
        return None if name == self.name else name

    @property
    def max_pending(self) -> int:
        """How many prompts may be pending."""
        return self._config.max_pending

    @property
    def _service(self) -> PromptService:
        service = self._find_service()
        if service is None:
            raise ReplicaError(f"the model '{self.name}' is stopped")
        return service

    def check_open(self) -> None:
        """Raise ReplicaError unless the model accepts prompts."""
        self._service.check_open()

    async def forward(
        self, request: web.Request, client: Client, data: bytes
    ) -> web.StreamResponse:
        """Forward a request to a replica of the model, see `Proxy.handle`."""
        service = self._service
        service.check_open()
        proxy = Proxy(
            service.pool,
            service.admission,
            self._config.max_retries + 1,
            fetches_media=service.fetches_media,
            has_priorities=service.has_priorities,
            start_seconds=self._config.startup_timeout,
        )
        return await proxy.handle(request, client, data)

    async def generate(self, body: GenerateBody, enter: Callable[[int], Client]) -> bytes:
        """Complete the prompts of `POST /generate`.

        Args:
            body: The body of the request, with a priority.
            enter: Counts prompts against the rate of the client, and returns the client.

        Returns:
            The body of the response.

        Raises:
            BodyError: There are more prompts than may be pending.
            HTTPTooManyRequests: The client has used up its rate.
            OverloadedError: Too many prompts are pending.
            ReplicaError: No server is left.
        """
        since = time.monotonic()
        service = self._service
        service.check_open()
        admission, pool = service.admission, service.pool
        if pool.failure is not None:
            raise pool.failure
        if len(body.prompts) > admission.limit:
            raise BodyError(
                f"a request may have at most max_pending={admission.limit} prompts, got "
                f"{len(body.prompts)}; send them in several requests",
                "prompts",
            )
        admission.try_enter(len(body.prompts))
        try:
            client = enter(len(body.prompts))
        except web.HTTPException:
            admission.leave(len(body.prompts))
            raise
        admitted, priority = len(body.prompts), client.allowed(body.priority or 0)
        response = GenerateResponse(len(body.prompts), body.timeout)

        async def complete(position: int, prompt: Any) -> None:
            nonlocal admitted
            try:
                completion = await service.complete_admitted(
                    prompt,
                    body.system_prompt,
                    body.sampling(),
                    priority=priority,
                    order=client.order(priority),
                    adapter=self._adapter(body.model),
                )
                client.add_usage(completion.usage)
                response.set_completion(position, completion)
            except Exception as error:
                response.set_error(position, error)
            finally:
                admitted -= 1
                admission.leave()

        completing = starmap(complete, enumerate(body.prompts))
        try:
            await gather_outcomes(completing, body.timeout, pool.window)
        finally:
            admission.leave(admitted)  # prompts that did not start
        return response.encode(time.monotonic() - since)

    async def run(self, task: Mapping[str, Any], name: str | None = None) -> dict[str, Any]:
        """Complete the prompts of a task, see `run_prompt`.

        Args:
            task: The fields of the task.
            name: The name of the model, or of one of its adapters.

        Raises:
            PromptError: The task has media from a URL, which the servers would fetch.
        """
        service = self._service
        if service.fetches_media and (url := remote_media(json.dumps(task["prompt"]).encode())):
            raise PromptError(f"media from the URL {url!r:.80} are refused", 400)
        return await run_prompt(service, {**task, "adapter": self._adapter(name or self.name)})

    def health(self) -> dict[str, Any]:
        """Return the state of the model and of its replicas."""
        service, config = self._find_service(), self._config
        described = {"model": config.model_name, "engine": config.engine}
        if service is None:
            return {"status": UNAVAILABLE, **described, "replicas": []}
        return {
            "status": HEALTHY if service.healthy else UNAVAILABLE,
            **described,
            "replicas": [
                {
                    "index": replica.index,
                    "state": replica.shown_state,
                    "in_flight": replica.in_flight,
                    "restarts": replica.restarts,
                }
                for replica in service.pool.replicas
            ],
            "batch_config": {
                "max_batch_size": config.max_batch_size,
                "max_batch_wait_ms": config.max_batch_wait_ms,
                "max_pending": config.max_pending,
                "pending_prompts": service.admission.pending,
            },
        }

    async def metrics(self) -> bytes:
        """Return the metrics of the model and of its replicas in Prometheus' text format."""
        service = self._find_service()
        if service is None:
            return b""
        pool = service.pool
        ready = pool.ready
        if pool.router is not None:
            service.metrics.set_routed(pool.router.hits, pool.router.misses)
        if pool.scaling is not None:
            service.metrics.set_scaling(pool.scaling)
        texts = await asyncio.gather(*(replica.connection.metrics() for replica in ready))
        # A model server's metrics are long, and parsing them in Python would block the loop.
        return await asyncio.to_thread(
            service.metrics.expose,
            service.admission.pending,
            [replica.shown_state for replica in pool.replicas],
            {r.index: text for r, text in zip(ready, texts, strict=True) if text is not None},
        )

    async def describe(self) -> list[dict[str, Any]]:
        """Return the entries of the model in `/v1/models`, as its server has them."""
        service = self._find_service()
        replica = service.pool.least_loaded() if service is not None else None
        entries = await replica.connection.models() if replica is not None else None
        return entries or [self.stand_in()]

    def stand_in(self) -> dict[str, Any]:
        """Return an entry in `/v1/models` while no server of the model is ready."""
        return {"id": self.name, "object": "model", "created": 0, "owned_by": "rhapsody"}

    async def openapi(self) -> dict[str, Any] | None:
        """Return the OpenAPI document of a server of the model; None if it has none."""
        service = self._find_service()
        replica = service.pool.least_loaded() if service is not None else None
        return await replica.connection.openapi() if replica is not None else None
