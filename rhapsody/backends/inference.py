"""The inference backend: serves a model and completes the prompts of AI tasks."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from typing import Any

from rhapsody.backends.core.service_loop import service_loop
from rhapsody.backends.prompts import PromptBackend
from rhapsody.errors import BackendError
from rhapsody.inference.clients import replacing_keys
from rhapsody.inference.config import InferenceConfig
from rhapsody.inference.configuration.dragon import ModelConfig, model_parameters
from rhapsody.inference.kinds import KINDS
from rhapsody.inference.replicas.adapters import Adapters
from rhapsody.inference.replicas.weights import ServedWeights
from rhapsody.inference.service import InferenceService
from rhapsody.suggest import suggest_parameters

__all__ = ["DragonVllmInferenceBackend"]


class DragonVllmInferenceBackend(PromptBackend):
    """Serves a model: batches prompts, restarts servers that die, and optionally serves HTTP.

    Args:
        config_file: YAML file with the engine's own options; None: the engine's defaults.
        model_name: Name or path of the model. Required, unless `model` is given.
        num_nodes: Nodes to serve on.
        num_gpus: GPUs on each node; 0 serves on the CPU.
        tp_size: GPUs that one replica of the model spans; more than `num_gpus` span several nodes.
        port: Port of the HTTP server; 0: any free port.
        offset: First node of the allocation to use, counted from 0.
        use_service: Whether to serve HTTP as well (server mode). False is engine mode: Python only.
        max_batch_size: Maximum number of prompts in a batch.
        max_batch_wait_ms: Longest time, in milliseconds, that a prompt waits for others while
            every replica is busy. While a replica has room, prompts are sent at once.
        name: Name of the backend.
        engine: "vllm", or "embedded" for a small text generator that needs no GPU and no
            download. It is not a real model, as its entry in `/v1/models` says.
        launcher: "dragon" to place servers on the nodes of a Dragon allocation, "local" to start
            them on this machine.
        host: Address to listen on; None: this machine's name. With "127.0.0.1" other machines
            cannot connect.
        api_key: Key that HTTP clients must send; None: the value of RHAPSODY_API_KEY, if set.
            An empty key is an error.
        api_keys: Keys of several HTTP clients by their names. A value may be a dict with `key`,
            `weight` (share of the model, default 1), `rate` (prompts per minute) and
            `max_priority`.
        cors_origins: Origins of web pages that may use the HTTP server from a browser, such as
            "https://app.example"; ["*"]: all. They need the key as well.
        max_pending: Maximum number of prompts queued and in flight. Beyond it, `generate` and tasks
            wait, and HTTP requests get a 503.
        max_retries: How often a prompt is sent again if its server dies.
        max_restarts: How often in a row a server is restarted.
        restart_window: A restart counts as in a row if the server ran shorter, in seconds.
        spares: Servers that are kept ready, with GPUs of their own, to take over for one that dies.
        prefix_routing: Whether prompts with the same long beginning go to the same replica, which
            has it in its cache, unless that replica has much more to do than others.
        replicas: Number of servers in all; or a pair of the fewest and the most, between which
            their number follows the load. If the fewest is 0, the first prompt starts one.
            None: as many as `num_gpus` and `tp_size` allow.
        nodes_per_replica: Nodes that one replica of the model spans, each with an equal part of its
            `tp_size` GPUs. None: 1, or as many as `tp_size` needs if it exceeds `num_gpus`.
        scale_up_after: A server is added if more have been needed for so many seconds.
        scale_down_after: A server is drained and stopped if fewer have been needed for so many
            seconds. Its GPUs are free for tasks then.
        startup_timeout: Longest time for a server to become ready, in seconds.
        health_interval: Time between health checks of a server, in seconds.
        hang_timeout: Longest time without a reaction of a server, or of vLLM's engine process, in
            seconds, before the server is restarted. It does not react while it compiles.
        batch_dir: Folder for the files and batches that HTTP clients create by `/v1/files` and
            `/v1/batches`. They are kept, and batches that have not ended continue at the next
            start. None: a temporary folder, which is removed at the end.
        model: A `ModelConfig` of `rhapsody.backends.ai.config`, as in `rhapsody-py`, instead of
            `config_file`, `model_name` and `tp_size`. It may also be the first argument.
        hardware: A `HardwareConfig` instead of `num_nodes`, `num_gpus` and `offset`; with `model`
            only. None: all nodes and GPUs.
        batching: A `BatchingConfig`, which has no effect; with `model` only.
        guardrails: A `GuardrailsConfig`, which must be disabled; with `model` only.
        dynamic_worker: A `DynamicWorkerConfig`, which has no effect; with `model` only.

    Raises:
        ConfigurationError: A parameter has the wrong type or range. `initialize` checks against
            this machine, before any process starts.
    """

    _service: InferenceService | None

    @suggest_parameters
    def __init__(
        self,
        config_file: str | os.PathLike[str] | ModelConfig | None = None,
        model_name: str | None = None,
        num_nodes: int = 1,
        num_gpus: int = 1,
        tp_size: int = 1,
        port: int = 8000,
        offset: int = 0,
        use_service: bool = True,
        max_batch_size: int = 1024,
        max_batch_wait_ms: float = 500,
        name: str = "dragon_vllm",
        *,
        engine: str = "vllm",
        launcher: str | None = None,
        host: str | None = None,
        api_key: str | None = None,
        cors_origins: list[str] | tuple[str, ...] = (),
        max_pending: int = 65536,
        max_retries: int = 2,
        max_restarts: int = 5,
        startup_timeout: float = 600.0,
        health_interval: float = 2.0,
        hang_timeout: float = 60.0,
        api_keys: Mapping[str, Any] | None = None,
        restart_window: float = 60.0,
        spares: int = 0,
        prefix_routing: bool = True,
        replicas: int | tuple[int, int] | None = None,
        nodes_per_replica: int | None = None,
        scale_up_after: float = 5.0,
        scale_down_after: float = 300.0,
        batch_dir: str | os.PathLike[str] | None = None,
        model: Any = None,
        hardware: Any = None,
        batching: Any = None,
        guardrails: Any = None,
        dynamic_worker: Any = None,
    ) -> None:
        super().__init__(name)
        file: Any = config_file
        if hasattr(file, "model_name"):
            file, model = None, file
        placement: dict[str, Any] = {
            "model_name": model_name,
            "config_file": file,
            "num_nodes": num_nodes,
            "num_gpus": num_gpus,
            "tp_size": tp_size,
            "offset": offset,
        }
        objects = (model, hardware, batching, guardrails, dynamic_worker)
        if any(value is not None for value in objects):
            placement = model_parameters(placement, *objects, local=launcher == "local")
        self.config = InferenceConfig(
            **placement,
            engine=engine,
            launcher=launcher,
            host=host,
            port=port,
            use_service=use_service,
            api_key=os.environ.get("RHAPSODY_API_KEY") if api_key is None else api_key,
            cors_origins=cors_origins,
            max_batch_size=max_batch_size,
            max_batch_wait_ms=max_batch_wait_ms,
            max_pending=max_pending,
            max_retries=max_retries,
            max_restarts=max_restarts,
            startup_timeout=startup_timeout,
            health_interval=health_interval,
            hang_timeout=hang_timeout,
            api_keys={} if api_keys is None else api_keys,
            restart_window=restart_window,
            spares=spares,
            prefix_routing=prefix_routing,
            replicas=replicas,
            nodes_per_replica=nodes_per_replica,
            scale_up_after=scale_up_after,
            scale_down_after=scale_down_after,
            batch_dir=batch_dir,
        )
        self.config.keys()  # refuses invalid ones
        self._service: InferenceService | None = None
        self._adapter_paths: dict[str, str] = {}
        self._weights = ServedWeights()

    @property
    def service(self) -> InferenceService | None:
        """What runs the model, on the service loop; None while the backend does not run."""
        return self._service

    @property
    def model_name(self) -> str:
        """Name of the served model."""
        return self.config.model_name

    @property
    def ai_kinds(self) -> frozenset[str] | None:
        """The kinds of AI task that the model takes; with vLLM None until a server is ready."""
        if self.config.engine == "embedded":
            return frozenset(KINDS)
        return self._service.pool.kinds if self._service is not None else None

    @property
    def adapters(self) -> Collection[str] | None:
        """The names of the model's LoRA adapters."""
        if self._service is not None:
            return self._service.adapters.names
        return () if self.config.engine == "embedded" else None

    async def load_adapter(self, name: str, path: str | os.PathLike[str]) -> None:
        """Load a LoRA adapter on all servers of the model, or on none. Starts the backend.

        Servers that start later, such as those restarted after a fault, load it before they take
        prompts. It needs `enable-lora: true` in the `config_file`.

        Args:
            name: The name by which tasks (`AITask(..., adapter=name)`) and HTTP clients
                (`model=name`) use it.
            path: Its folder, with `adapter_config.json`, which all nodes must see.

        Raises:
            ConfigurationError: The name is taken, the folder has no adapter, or the servers take
                no adapters.
            ReplicaError: A server did not load it.
        """
        await self.initialize()
        await service_loop().run(self._running_adapters().load(name, os.fspath(path)))

    async def unload_adapter(self, name: str) -> None:
        """Unload a LoRA adapter from all servers. Prompts with it that are in progress may fail.

        Args:
            name: The name that it was loaded by.

        Raises:
            ConfigurationError: No adapter of this name was loaded.
            ReplicaError: A server did not unload it.
        """
        await self.initialize()
        await service_loop().run(self._running_adapters().unload(name))

    @property
    def model_version(self) -> str:
        """The version of the model's weights: "0", until `reload_weights` sets another one."""
        return self._weights.version

    async def reload_weights(
        self,
        path: str | os.PathLike[str],
        version: str | int | None = None,
        drain_seconds: float | None = None,
    ) -> str:
        """Load new weights of the same model on all servers, or on none. Starts the backend.

        The servers change one after the other: each gets no prompts, finishes those that it has,
        and loads the weights. Servers that start later load them before they take prompts. Each
        response has the version of the weights that it is from as `model_version`.

        Args:
            path: The folder of the weights, which all nodes must see, and which must not change.
                The embedded model learns the text of a file.
            version: The version. None: the next number that no weights have had.
            drain_seconds: Longest time in which each server finishes the requests that it has, in
                seconds. None: no limit.

        Returns:
            The version.

        Raises:
            ConfigurationError: The path does not exist, or the version is invalid.
            ReplicaError: A server did not load the weights, or did not finish its requests in
                time. Servers that have the new weights start again with the former ones.
        """
        await self.initialize()
        if self._service is None:
            raise BackendError(self.name, "it was shut down")
        reload = self._service.reload_weights(os.fspath(path), version, drain_seconds)
        return await service_loop().run(reload)

    def _running_adapters(self) -> Adapters:
        if self._service is None:
            raise BackendError(self.name, "it was shut down")
        return self._service.adapters

    async def start(self) -> None:
        """Start the model's servers, and the HTTP server in server mode."""
        service = await InferenceService.create(
            self.config,
            lambda size: self.history.record_batch(size),
            self._adapter_paths,
            self._weights,
        )
        self._service = service
        _running.add(self)
        try:
            await service.start()
        except BaseException:
            self._service = None
            _running.discard(self)
            raise

    async def stop(self) -> None:
        """Stop all servers."""
        if self._service is not None:
            service, self._service = self._service, None
            try:
                await service.stop()
            finally:
                _running.discard(self)

    async def shutdown(self, drain_seconds: float = 0) -> None:
        """Cancel all tasks and stop all servers. Idempotent; never raises.

        Args:
            drain_seconds: Time for pending prompts to finish first, in seconds. Meanwhile new
                prompts are refused; HTTP clients get a 503.
        """
        if drain_seconds > 0:
            await self.drain(drain_seconds)
        await super().shutdown()

    async def drain(self, seconds: float) -> None:
        """Refuse new prompts, and wait until the pending ones have ended.

        Args:
            seconds: Longest time to wait.
        """
        if self._service is not None:
            await service_loop().run(self._service.drain(seconds))

    def kill_children(self) -> None:
        """Kill the servers."""
        if self._service is not None:
            self._service.kill()

    async def set_api_keys(self, api_keys: Mapping[str, Any]) -> None:
        """Replace the keys of HTTP clients while the server runs. `api_key` stays valid.

        Requests that have begun continue. Clients that keep their name keep their usage.

        Args:
            api_keys: As for the constructor.

        Raises:
            ConfigurationError: A key is invalid, two clients have the same one, or no key is left.
                The keys are not changed then.
        """
        keys = replacing_keys(api_keys, self.config.api_key)
        self.config = self.config.model_copy(update={"api_keys": dict(api_keys)})
        gateway = self._service.gateway if self._service is not None else None
        if gateway is not None:
            await service_loop().run(gateway.replace_keys(keys))

    def server_logs(self) -> dict[str, str]:
        """Return the last lines of the log of each model server, by the name of its replica."""
        if self._service is None:
            return {}
        return {f"replica {r.index}": r.log_tail() for r in self._service.pool.replicas}

    def get_endpoint(self) -> str | None:
        """Return the URL of the HTTP server; None in engine mode or if it is not running."""
        gateway = self._service.gateway if self._service is not None else None
        return gateway.endpoint if gateway is not None else None


_running: set[DragonVllmInferenceBackend] = set()
"""Running backends. They may serve HTTP clients even if the program holds no reference."""
