"""The configuration of an inference service, checked before any process starts."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import Field, InstanceOf

from rhapsody.allocation import allocation, is_under_dragon
from rhapsody.errors import ConfigurationError, MissingExtraError
from rhapsody.gpus import this_machine
from rhapsody.inference import engines
from rhapsody.inference.configuration.file import embedded_options, read_config_file
from rhapsody.inference.configuration.listening import ListenConfig
from rhapsody.inference.engines import ServerCommand
from rhapsody.inference.ports import check_port
from rhapsody.inference.replicas.placement import CLAIMS, Place
from rhapsody.inference.vllm.options import options_from
from rhapsody.inference.vllm.versions import arguments_known, server_root
from rhapsody.validation import Count, NonEmptyStr, ZeroOrMore

__all__ = ["InferenceConfig"]


class InferenceConfig(ListenConfig):
    """The parameters of `DragonVllmInferenceBackend`, documented there."""

    model_name: Annotated[NonEmptyStr, Field(description="the name or path of a model")]
    config_file: Annotated[
        InstanceOf[str] | InstanceOf[os.PathLike[str]] | None, Field(description="a path")
    ] = None
    sections: Annotated[
        dict[str, Any] | None,
        Field(repr=False, description="sections of a configuration file of Dragon's service"),
    ] = None
    """What a `ModelConfig` holds, in place of a `config_file`."""
    engine: Annotated[
        str, Field(pattern="^(vllm|embedded)$", description="'vllm' or 'embedded'")
    ] = "vllm"
    launcher: Annotated[
        str | None, Field(pattern="^(dragon|local)$", description="'dragon' or 'local'")
    ] = None
    num_nodes: Count = 1
    num_gpus: ZeroOrMore = 1
    tp_size: Count = 1
    offset: ZeroOrMore = 0
    use_service: Annotated[bool, Field(description="a boolean")] = True
    max_batch_size: Count = 1024
    max_batch_wait_ms: Annotated[float, Field(ge=0, description="a number of at least 0")] = 500
    max_pending: Count = 65536
    max_retries: ZeroOrMore = 2
    max_restarts: ZeroOrMore = 5
    restart_window: Annotated[float, Field(ge=0, description="a number of at least 0")] = 60.0
    spares: ZeroOrMore = 0
    prefix_routing: Annotated[bool, Field(description="a boolean")] = True
    startup_timeout: Annotated[float, Field(ge=0.1, description="a number of at least 0.1")] = 600.0
    health_interval: Annotated[float, Field(ge=0.05, description="a number of at least 0.05")] = 2.0
    hang_timeout: Annotated[float, Field(ge=0.1, description="a number of at least 0.1")] = 60.0

    def check(self) -> ServerCommand:
        """Check the parameters against each other, the configuration file, and the port.

        Returns:
            The command of a server, with the options of the configuration file.

        Raises:
            ConfigurationError: The parameters exclude each other, or the file is invalid.
            MissingExtraError: vLLM is not installed.
            ResourceError: The port is in use.
        """
        if self.launcher != "local" and not is_under_dragon():
            raise ConfigurationError(
                "launcher='dragon' places servers on the nodes of a Dragon allocation, and the "
                "dragon command did not start this program; pass launcher='local' to start the "
                "servers on this machine, or, on an allocation, start it with: dragon my_script.py"
            )
        if self.num_gpus and self.tp_size > self.num_gpus:
            raise ConfigurationError(
                f"tp_size={self.tp_size} must not exceed num_gpus={self.num_gpus}, the GPUs per "
                "node; raise num_gpus or lower tp_size"
            )
        if not self.num_gpus and self.tp_size != 1:
            raise ConfigurationError(
                f"with num_gpus=0 (on the CPU) tp_size must be 1, not {self.tp_size}"
            )
        if self.launcher == "local" and self.offset + self.num_nodes > 1:
            raise ConfigurationError(
                "launcher='local' serves on this machine only; use num_nodes=1 and offset=0, not "
                f"num_nodes={self.num_nodes} and offset={self.offset}"
            )
        self.keys()
        command = self._command()
        if self.use_service and self.port:
            check_port(self.bind_address(), self.port)
        return command

    def _command(self) -> ServerCommand:
        path = self.config_file
        where = f"config_file {os.fspath(path)!r}" if path is not None else "ModelConfig"
        loaded = self.sections or read_config_file(path)
        if self.engine == "embedded":
            if self.sections:
                llm = self.sections.get("llm", {})
                loaded = {key: llm[key] for key in ("max_model_len",) if key in llm}
            return engines.embedded(self.model_name, embedded_options(where, loaded))
        root = server_root()
        if root is None:
            raise MissingExtraError("engine='vllm'", "vllm", "vllm-dragon")
        known = arguments_known(root)
        options = options_from(where, loaded, vars(self), known.names)
        return engines.vllm(self.model_name, self.tp_size, options, known, on_cpu=not self.num_gpus)

    def places(self) -> list[Place]:
        """Return the node and GPUs of each replica, until `CLAIMS.release` frees the GPUs.

        Raises:
            ResourceError: There are too few nodes or GPUs.
        """
        nodes = [this_machine()] if self.launcher == "local" else allocation()
        embedded = self.engine == "embedded"  # it needs no GPU
        places = CLAIMS.place(
            nodes,
            num_nodes=self.num_nodes,
            num_gpus=0 if embedded else self.num_gpus,
            tp_size=self.tp_size,
            offset=self.offset,
        )
        each = max(1, self.num_gpus // self.tp_size) if embedded else 1
        return [place for place in places for _ in range(each)]

    def spare_places(self, places: Sequence[Place]) -> list[Place]:
        """Return the node and GPUs of each spare replica, on the nodes of the others.

        Args:
            places: The places of the other replicas.

        Raises:
            ResourceError: The nodes have too few free GPUs.
        """
        nodes = list(dict.fromkeys(place.node for place in places))
        gpus = self.tp_size if places[0].gpus else 0
        return CLAIMS.place_more(nodes, self.spares, gpus)
