"""The inference gateway: several models behind one HTTP server."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping, Sequence
from typing import Any

from rhapsody.backends.core.lifecycle import Lifecycle
from rhapsody.backends.core.service_loop import service_loop
from rhapsody.backends.inference import DragonVllmInferenceBackend
from rhapsody.errors import ConfigurationError
from rhapsody.inference.clients import replacing_keys
from rhapsody.inference.configuration.listening import ListenConfig
from rhapsody.inference.http.gateway import Gateway
from rhapsody.inference.http.models import Models
from rhapsody.inference.http.served_model import ServedModel
from rhapsody.suggest import suggest_parameters

__all__ = ["InferenceGateway"]


class InferenceGateway(Lifecycle):
    """Serves several models at one address. A request goes to the model that it names.

    It starts the backends that do not run yet, and shuts those down when it is shut down itself.
    The same backends can serve a session or an engine meanwhile. A backend needs no HTTP server of
    its own: pass `use_service=False` to it.

    Args:
        backends: The backends of the models, each with a model name of its own.
        host: Address to listen on; None: this machine's name. With "127.0.0.1" other machines
            cannot connect.
        port: Port of the HTTP server; 0: any free port.
        api_key: Key that HTTP clients must send; None: the value of RHAPSODY_API_KEY, if set.
        api_keys: Keys of several HTTP clients, as for `DragonVllmInferenceBackend`.
        cors_origins: Origins of web pages that may use the server, ["*"]: all.
        batch_dir: Folder for the files and batches of HTTP clients, as for
            `DragonVllmInferenceBackend`.
        name: Name of the gateway in logs.

    Raises:
        ConfigurationError: A backend is no `DragonVllmInferenceBackend`, two models have the same
            name, or a parameter has the wrong type or range.
    """

    @suggest_parameters
    def __init__(
        self,
        backends: Sequence[DragonVllmInferenceBackend],
        *,
        host: str | None = None,
        port: int = 8000,
        api_key: str | None = None,
        api_keys: Mapping[str, Any] | None = None,
        cors_origins: list[str] | tuple[str, ...] = (),
        batch_dir: str | os.PathLike[str] | None = None,
        name: str = "gateway",
    ) -> None:
        super().__init__(name)
        self.config = ListenConfig(
            host=host,
            port=port,
            api_key=os.environ.get("RHAPSODY_API_KEY") if api_key is None else api_key,
            api_keys={} if api_keys is None else api_keys,
            cors_origins=cors_origins,
            batch_dir=batch_dir,
        )
        self.config.keys()  # refuses invalid ones
        self.backends = _checked(backends)
        self._started: list[DragonVllmInferenceBackend] = []
        self._gateway: Gateway | None = None

    async def start(self) -> None:
        """Start the backends that do not run yet, and the HTTP server."""
        self._started = [backend for backend in self.backends if not backend.is_up]
        _running.add(self)
        try:
            await _start_all(self._started)
            models = [_served(backend) for backend in self.backends]
            gateway = Gateway(self.config, models)
            await gateway.start()
            self._gateway = gateway
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Close the HTTP server, and shut the backends down that `start` started."""
        gateway, self._gateway = self._gateway, None
        started, self._started = self._started, []
        try:
            if gateway is not None:
                await gateway.stop()
        finally:
            await asyncio.gather(*(one.shutdown_on_service_loop() for one in started))
            _running.discard(self)

    def cancel_all(self) -> list[asyncio.Future[Any]]:
        """Do nothing: the gateway has no tasks of its own."""
        return []

    async def shutdown(self, drain_seconds: float = 0) -> None:
        """Close the HTTP server and stop the models that the gateway started. Idempotent.

        Args:
            drain_seconds: Time for pending prompts of these models to finish first, in seconds.
                Meanwhile HTTP clients get a 503 for new ones.
        """
        if drain_seconds > 0:
            await asyncio.gather(*(one.drain(drain_seconds) for one in self._started))
        await super().shutdown()

    async def set_api_keys(self, api_keys: Mapping[str, Any]) -> None:
        """Replace the keys of HTTP clients, see `DragonVllmInferenceBackend.set_api_keys`."""
        keys = replacing_keys(api_keys, self.config.api_key)
        self.config = self.config.model_copy(update={"api_keys": dict(api_keys)})
        if self._gateway is not None:
            await service_loop().run(self._gateway.replace_keys(keys))

    def get_endpoint(self) -> str | None:
        """Return the URL of the HTTP server; None while it does not run."""
        return self._gateway.endpoint if self._gateway is not None else None

    def get_statistics(self) -> dict[str, Any]:
        """Return the counts of all backends together, their replicas, and the HTTP clients."""
        each = {one.model_name: one.get_statistics() for one in self.backends}
        counts = {
            name: sum(statistics.get(name, 0) for statistics in each.values())
            for name in ("batches", "batched_prompts", "pending_prompts")
        }
        mean = counts["batched_prompts"] / counts["batches"] if counts["batches"] else None
        replicas = [
            {"model": name, **replica}
            for name, statistics in each.items()
            for replica in statistics.get("replicas", [])
        ]
        clients = self._gateway.usage() if self._gateway is not None else []
        return {**counts, "mean_batch_size": mean, "replicas": replicas, "clients": clients}


_running: set[InferenceGateway] = set()
"""Running gateways. They serve HTTP clients even if the program holds no reference."""


def _checked(backends: Any) -> list[DragonVllmInferenceBackend]:
    """Return the backends. Raises ConfigurationError if one cannot be served."""
    found = list(backends) if isinstance(backends, (list, tuple)) else [backends]
    if not found:
        raise ConfigurationError("an InferenceGateway needs at least one backend, got none")
    for one in found:
        if not isinstance(one, DragonVllmInferenceBackend):
            raise ConfigurationError(
                "an InferenceGateway serves backends of the class DragonVllmInferenceBackend, got "
                f"{one!r:.80}"
            )
    Models([_served(one) for one in found])  # refuses two models of one name
    return found


def _served(backend: DragonVllmInferenceBackend) -> ServedModel:
    return ServedModel(backend.config, lambda: backend.service)


async def _start_all(backends: Sequence[DragonVllmInferenceBackend]) -> None:
    """Start backends at once. If one fails, wait for the others and raise its error."""
    outcomes = await asyncio.gather(
        *(backend.initialize() for backend in backends), return_exceptions=True
    )
    for outcome in outcomes:
        if isinstance(outcome, BaseException):
            raise outcome
