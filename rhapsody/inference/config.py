"""The configuration of an inference service, checked before any process starts."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import AfterValidator, Field, InstanceOf

from rhapsody.allocation import Node, allocation, is_under_dragon
from rhapsody.errors import ConfigurationError, MissingExtraError
from rhapsody.gpus import this_machine
from rhapsody.inference import engines
from rhapsody.inference.configuration.file import embedded_options, read_config_file
from rhapsody.inference.configuration.listening import ListenConfig
from rhapsody.inference.engines import ServerCommand
from rhapsody.inference.ports import check_port
from rhapsody.inference.replicas.placement import CLAIMS, Place, place
from rhapsody.inference.vllm.options import options_from
from rhapsody.inference.vllm.versions import arguments_known, server_root
from rhapsody.validation import Count, NonEmptyStr, ZeroOrMore

__all__ = ["InferenceConfig"]


def _check_replicas(replicas: int | tuple[int, int] | None) -> int | tuple[int, int] | None:
    fewest, most = replicas if isinstance(replicas, tuple) else (0, replicas)
    if most is not None and not 0 <= fewest <= most >= 1:
        raise ValueError
    return replicas


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
    nodes_per_replica: Annotated[
        int | None, Field(ge=1, description="a whole number of at least 1")
    ] = None
    replicas: Annotated[
        int | tuple[int, int] | None,
        AfterValidator(_check_replicas),
        Field(
            description="a whole number of at least 1, or a pair (fewest, most) such as (0, 4) "
            "whose second number is at least 1 and not below the first"
        ),
    ] = None
    scale_up_after: Annotated[float, Field(ge=0, description="a number of at least 0")] = 5.0
    scale_down_after: Annotated[float, Field(ge=0, description="a number of at least 0")] = 300.0
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
        self._check_ranks()
        if self.launcher == "local" and self.offset + self.num_nodes > 1:
            raise ConfigurationError(
                "launcher='local' serves on this machine only; use num_nodes=1 and offset=0, not "
                f"num_nodes={self.num_nodes} and offset={self.offset}"
            )
        self._check_most_replicas()
        self.keys()
        command = self._command()
        if self.use_service and self.port:
            check_port(self.bind_address(), self.port)
        return command

    def _check_ranks(self) -> None:
        ranks, tp_size = self.ranks, self.tp_size
        local = self.launcher == "local"
        if ranks > 1 and self.engine == "embedded":
            raise ConfigurationError(
                f"nodes_per_replica={ranks} is for engine='vllm'; the embedded model runs in one "
                "process"
            )
        if ranks > self.num_nodes and not local:
            raise ConfigurationError(
                f"nodes_per_replica={ranks} must not exceed num_nodes={self.num_nodes}; raise "
                "num_nodes"
            )
        if tp_size % ranks:
            raise ConfigurationError(
                f"tp_size={tp_size} must be a multiple of the nodes of a replica, {ranks}"
            )
        if not self.num_gpus and tp_size != ranks:
            raise ConfigurationError(
                f"with num_gpus=0 (on the CPU) tp_size must be {ranks}, "
                + ("" if ranks == 1 else "as nodes_per_replica is, ")
                + f"not {tp_size}"
            )
        on_node = tp_size if local else tp_size // ranks
        if self.num_gpus and on_node > self.num_gpus:
            raise ConfigurationError(
                f"tp_size={tp_size} must not exceed num_gpus={self.num_gpus}, the GPUs per "
                "node; raise num_gpus or lower tp_size"
                if ranks == 1 or local
                else f"tp_size={tp_size} on nodes_per_replica={ranks} nodes needs {on_node} GPUs "
                f"on each, and num_gpus is {self.num_gpus}; raise num_gpus or nodes_per_replica"
            )

    def _check_most_replicas(self) -> None:
        most = self.bounds[1]
        if self.gpus_per_rank and most > self._most_that_fit:
            raise ConfigurationError(
                f"replicas={self.replicas} of tp_size={self.tp_size} need more GPUs than "
                f"num_gpus={self.num_gpus} on num_nodes={self.num_nodes}; raise num_gpus, or lower "
                "replicas"
            )

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
        if self.ranks > 1 and known.names and "nnodes" not in known.names:
            raise ConfigurationError(
                f"a replica on {self.ranks} nodes needs the option --nnodes, which the installed "
                "version of vLLM does not have; install a newer one, or lower tp_size"
            )
        options = options_from(where, loaded, vars(self), known.names)
        return engines.vllm(self.model_name, self.tp_size, options, known, on_cpu=not self.num_gpus)

    @property
    def bounds(self) -> tuple[int, int]:
        """The fewest and the most replicas."""
        if isinstance(self.replicas, tuple):
            return self.replicas
        fixed = self.replicas or self._most_that_fit
        return fixed, fixed

    @property
    def ranks(self) -> int:
        """The server processes of a replica, each on a node of its own."""
        if self.nodes_per_replica is not None:
            return self.nodes_per_replica
        if self.num_nodes > 1 and 0 < self.num_gpus < self.tp_size:
            return -(-self.tp_size // self.num_gpus)
        return 1

    @property
    def _most_that_fit(self) -> int:
        if self.launcher == "local":
            return max(1, self.num_gpus // self.tp_size)
        on_node = max(1, self.num_gpus // (self.tp_size // self.ranks))
        return self.num_nodes // self.ranks * on_node

    @property
    def is_elastic(self) -> bool:
        """Whether the number of replicas follows the load."""
        fewest, most = self.bounds
        return fewest < most

    @property
    def gpus_per_rank(self) -> int:
        """GPUs that a rank of a replica uses; the embedded model needs none."""
        embedded = self.engine == "embedded"
        return 0 if embedded or not self.num_gpus else self.tp_size // self.ranks

    def nodes(self) -> list[Node]:
        """Return the nodes to serve on. This may take a second.

        Raises:
            ResourceError: There are too few nodes, or a node has too few GPUs.
        """
        nodes = [this_machine()] if self.launcher == "local" else allocation()
        places = place(
            nodes,
            num_nodes=self.num_nodes,
            num_gpus=self.num_gpus if self.gpus_per_rank else 0,
            tp_size=max(1, self.gpus_per_rank),
            offset=self.offset,
        )
        return list(dict.fromkeys(place.node for place in places))

    def places(self, nodes: Sequence[Node]) -> list[Place]:
        """Return the node and GPUs of each replica, until `CLAIMS.release` frees the GPUs.

        Args:
            nodes: The nodes to serve on.

        Raises:
            ResourceError: There are too few free GPUs.
        """
        gpus = self.gpus_per_rank
        if self.replicas is not None or self.ranks > 1:
            return CLAIMS.place_more(nodes, self.bounds[0], gpus, "replicas", self.ranks)
        places = CLAIMS.place(
            nodes,
            num_nodes=len(nodes),
            num_gpus=self.num_gpus if gpus else 0,
            tp_size=self.tp_size,
            offset=0,
        )
        each = max(1, self.num_gpus // self.tp_size) if self.engine == "embedded" else 1
        return [place for place in places for _ in range(each)]

    def spare_places(self, nodes: Sequence[Node]) -> list[Place]:
        """Return the node and GPUs of each spare replica.

        Args:
            nodes: The nodes to serve on.

        Raises:
            ResourceError: The nodes have too few free GPUs.
        """
        return CLAIMS.place_more(nodes, self.spares, self.gpus_per_rank, ranks=self.ranks)
