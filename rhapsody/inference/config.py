"""The configuration of an inference service, checked before any process starts."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import AfterValidator, Field, InstanceOf

from rhapsody.allocation import allocation, is_under_dragon
from rhapsody.errors import ConfigurationError, MissingExtraError
from rhapsody.gpus import this_machine
from rhapsody.inference import engines
from rhapsody.inference.clients import ApiKey, check_key, parse_keys
from rhapsody.inference.config_file import embedded_options, read_config_file
from rhapsody.inference.engines import ServerCommand
from rhapsody.inference.ports import check_port
from rhapsody.inference.replicas.placement import CLAIMS, Place
from rhapsody.inference.vllm.options import options_from
from rhapsody.inference.vllm.versions import arguments_known, server_root
from rhapsody.validation import Count, Fault, NonEmptyStr, StrictModel, ZeroOrMore

__all__ = ["InferenceConfig"]

ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/\s]+")
"""An origin as browsers send it: a scheme, a host and maybe a port, without a path."""


def _check_api_key(key: str | None) -> str | None:
    return None if key is None else check_key(key)


def _check_origins(origins: Sequence[str]) -> tuple[str, ...]:
    if not all(origin == "*" or ORIGIN.fullmatch(origin) for origin in origins):
        raise ValueError
    return tuple(origins)


class InferenceConfig(StrictModel):
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
    host: Annotated[str | None, Field(description="a host name or an address")] = None
    port: Annotated[int, Field(ge=0, le=65535, description="a whole number from 0 to 65535")] = 8000
    use_service: Annotated[bool, Field(description="a boolean")] = True
    api_key: Annotated[
        str | None,
        AfterValidator(_check_api_key),
        Field(
            repr=False,
            description="non-empty text without spaces and line breaks, also if it is set as "
            "RHAPSODY_API_KEY; remove both to require no key",
        ),
    ] = None
    api_keys: Annotated[
        dict[str, str | dict[str, Any] | InstanceOf[ApiKey]],
        Field(description="a dict of keys by name"),
    ] = Field(default_factory=dict, repr=False)
    cors_origins: Annotated[
        list[str] | tuple[str, ...],
        AfterValidator(_check_origins),
        Field(description="a list of origins such as 'https://app.example', or ['*'] for all"),
    ] = ()
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

    @classmethod
    def refuse(cls, fault: Fault) -> Exception:
        """Return a ConfigurationError."""
        return ConfigurationError(fault.message)

    def keys(self) -> dict[str, ApiKey]:
        """Return the keys by the names of their clients; `api_key` is the one of "default".

        Raises:
            ConfigurationError: A key is invalid, or two clients have the same one.
        """
        return parse_keys(self.api_keys, self.api_key)

    def bind_address(self) -> str | None:
        """Return the address that the gateway listens on.

        This may block for seconds while the host name is resolved.

        Returns:
            `host` if it is set, else this machine's name; None (all addresses) if that name cannot
            be resolved.
        """
        if self.host is not None:
            return self.host
        try:
            socket.getaddrinfo(socket.gethostname(), None)
        except OSError:
            return None
        return socket.gethostname()

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
