"""What an inference service is to be: checked before any process starts."""

from __future__ import annotations

import difflib
import errno
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from rhapsody.api.errors import ConfigurationError, MissingExtraError, ResourceError
from rhapsody.inference import engines
from rhapsody.inference.engines import Engine
from rhapsody.inference.launchers.dragon import allocation, require_runtime
from rhapsody.inference.launchers.local import this_host
from rhapsody.inference.placement import Claims, Place
from rhapsody.inference.vllm.options import options_from
from rhapsody.inference.vllm.versions import arguments_known, server_root

__all__ = [
    "CLAIMS",
    "EMBEDDED_KEYS",
    "InferenceConfig",
    "check_port",
    "port_error",
    "read_config_file",
]

EMBEDDED_KEYS: dict[str, tuple[type, float | None]] = {
    "max-model-len": (int, 2),
    "max-num-seqs": (int, 1),
    "seed": (int, None),
    "token-delay-ms": (float, 0),
}
"""Keys of a configuration file that the embedded model takes: their kind, and their least value."""

CLAIMS = Claims()


@dataclass(frozen=True)
class InferenceConfig:
    """The parameters of `DragonVllmInferenceBackend`, which says what each means."""

    model_name: str
    config_file: str | os.PathLike[str] | None = None
    engine: str = "vllm"
    launcher: str | None = None
    num_nodes: int = 1
    num_gpus: int = 1
    tp_size: int = 1
    offset: int = 0
    host: str | None = None
    port: int = 8000
    use_service: bool = True
    api_key: str | None = field(default=None, repr=False)
    max_batch_size: int = 1024
    max_batch_wait_ms: float = 500
    max_pending: int = 65536
    max_retries: int = 2
    max_restarts: int = 5
    startup_timeout: float = 600.0
    health_interval: float = 2.0
    hang_timeout: float = 60.0

    def __post_init__(self) -> None:
        if not self.model_name or not isinstance(self.model_name, str):
            raise ConfigurationError(
                f"model_name must be the name or path of a model, not {self.model_name!r}"
            )
        for name, (kind, least) in _LEAST.items():
            _check_number(name, getattr(self, name), kind, least)
        if self.port > 65535:
            raise ConfigurationError(f"port must be at most 65535, not {self.port}")
        if self.engine not in ("vllm", "embedded"):
            raise ConfigurationError(f"engine must be 'vllm' or 'embedded', not {self.engine!r}")
        if self.launcher not in (None, "dragon", "local"):
            raise ConfigurationError(f"launcher must be 'dragon' or 'local', not {self.launcher!r}")
        if not isinstance(self.config_file, (str, os.PathLike, type(None))):
            raise ConfigurationError(f"config_file must be a path, not {self.config_file!r}")
        if not isinstance(self.host, (str, type(None))):
            raise ConfigurationError(f"host must be a name or an address, not {self.host!r}")
        if not isinstance(self.use_service, bool):
            raise ConfigurationError(f"use_service must be True or False, not {self.use_service!r}")
        key = self.api_key
        if key is not None and not (
            isinstance(key, str) and key.isprintable() and key.split() == [key]
        ):
            raise ConfigurationError("api_key must be text without spaces and line breaks")

    def bind_address(self) -> str | None:
        """Say where the gateway listens: `host`, or this machine's name; None is everywhere.

        Everywhere is for machines whose own name cannot be looked up, which may take seconds.
        """
        if self.host is not None:
            return self.host
        try:
            socket.getaddrinfo(socket.gethostname(), None)
        except OSError:
            return None
        return socket.gethostname()

    def check(self) -> Engine:
        """Refuse what cannot be, in one sentence; look at files and ports.

        Returns:
            How to start a server, with the options of the configuration file.

        Raises:
            ConfigurationError: A combination is impossible, or the file is wrong.
            MissingExtraError: vLLM or Dragon is asked for and not installed.
            ResourceError: The port is taken.
        """
        if self.launcher != "local":
            require_runtime()
        if self.num_gpus and self.tp_size > self.num_gpus:
            raise ConfigurationError(
                f"tp_size={self.tp_size} needs as many GPUs on a node, and num_gpus="
                f"{self.num_gpus}; raise num_gpus or lower tp_size"
            )
        if not self.num_gpus and self.tp_size != 1:
            raise ConfigurationError(
                f"num_gpus=0 runs on the CPU, where tp_size must be 1, not {self.tp_size}"
            )
        if self.launcher == "local" and self.offset + self.num_nodes > 1:
            raise ConfigurationError(
                f"launcher='local' has this one node, and num_nodes={self.num_nodes} from "
                f"offset={self.offset} asks for more; use num_nodes=1 and offset=0"
            )
        engine = self._engine()
        if self.use_service and self.port:
            check_port(self.bind_address(), self.port)
        return engine

    def _engine(self) -> Engine:
        path = self.config_file
        where = f"config_file {os.fspath(path)!r}" if path is not None else ""
        loaded = read_config_file(path)
        if self.engine == "embedded":
            return engines.embedded(self.model_name, _embedded_options(where, loaded))
        root = server_root()
        if root is None:
            raise MissingExtraError("engine='vllm'", "vllm", "vllm-dragon")
        known = arguments_known(root)
        options = options_from(where, loaded, self, known.names)
        return engines.vllm(self.model_name, self.tp_size, options, known)

    def places(self) -> list[Place]:
        """Give each replica its node and GPUs; `CLAIMS.release` gives them back.

        Raises:
            ResourceError: There are not as many nodes or GPUs as asked for.
        """
        hosts = [this_host()] if self.launcher == "local" else allocation()
        embedded = self.engine == "embedded"  # looks for no GPU
        places = CLAIMS.place(
            hosts,
            num_nodes=self.num_nodes,
            num_gpus=0 if embedded else self.num_gpus,
            tp_size=self.tp_size,
            offset=self.offset,
        )
        each = max(1, self.num_gpus // self.tp_size) if embedded else 1
        return [place for place in places for _ in range(each)]


_LEAST: dict[str, tuple[type, float]] = {
    "num_nodes": (int, 1),
    "num_gpus": (int, 0),
    "tp_size": (int, 1),
    "offset": (int, 0),
    "port": (int, 0),
    "max_batch_size": (int, 1),
    "max_batch_wait_ms": (float, 0),
    "max_pending": (int, 1),
    "max_retries": (int, 0),
    "max_restarts": (int, 0),
    "startup_timeout": (float, 0.1),
    "health_interval": (float, 0.05),
    "hang_timeout": (float, 0.1),
}


def _check_number(name: str, value: Any, kind: type, least: float | None) -> None:
    if isinstance(value, bool) or not isinstance(value, int if kind is int else (int, float)):
        wanted = "a whole number" if kind is int else "a number"
        raise ConfigurationError(f"{name} must be {wanted}, not {value!r}")
    if least is not None and not value >= least:
        raise ConfigurationError(f"{name} must be at least {least}, not {value!r}")


def read_config_file(path: str | os.PathLike[str] | None) -> Mapping[Any, Any]:
    """Read a YAML file of keys and values.

    Args:
        path: The file; None has none.

    Raises:
        ConfigurationError: The file cannot be read, or is no mapping.
    """
    if path is None:
        return {}
    try:
        loaded = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(
            f"config_file {os.fspath(path)!r} cannot be read: {error.strerror}"
        ) from error
    except yaml.MarkedYAMLError as error:
        # Its own words show a piece of the file, where there may be a secret.
        mark = f", line {error.problem_mark.line + 1}" if error.problem_mark is not None else ""
        problem = f"{error.problem or error.context}{mark}"
        raise ConfigurationError(f"config_file {os.fspath(path)!r} is no YAML: {problem}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise ConfigurationError(f"config_file {os.fspath(path)!r} is no YAML: {reason}") from None
    if loaded is None:
        return {}
    if not isinstance(loaded, Mapping):
        raise ConfigurationError(
            f"config_file {os.fspath(path)!r} must hold 'key: value' lines, "
            f"not a {type(loaded).__name__}"
        )
    return loaded


def _embedded_options(where: str, loaded: Mapping[Any, Any]) -> dict[str, Any]:
    options = {str(key).replace("_", "-"): value for key, value in loaded.items()}
    for key, value in options.items():
        if key not in EMBEDDED_KEYS:
            near = difflib.get_close_matches(key, EMBEDDED_KEYS, n=1)
            hint = f"did you mean '{near[0]}'? " if near else ""
            raise ConfigurationError(
                f"{where}: unknown key '{key}'; {hint}"
                f"the embedded engine knows {', '.join(sorted(EMBEDDED_KEYS))}"
            )
        _check_number(f"{where}: {key}", value, *EMBEDDED_KEYS[key])
    return options


def check_port(address: str | None, port: int) -> None:
    """Refuse a port that is taken.

    Args:
        address: A name or an address of this machine; None is every one.
        port: The port.

    Raises:
        ResourceError: Something listens there, or the address is not this machine's.
    """
    absent: OSError | None = None
    free = False
    try:
        for family, kind, proto, _, target in socket.getaddrinfo(
            address, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        ):
            try:
                with socket.socket(family, kind, proto) as probe:
                    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    probe.bind(target)
                free = True
            except OSError as error:
                if error.errno not in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):
                    raise
                absent = error  # a machine without IPv6 may still know an address of that kind
        if absent is not None and not free:
            raise absent
    except OSError as error:
        raise port_error(address, port, error) from error


def port_error(address: str | None, port: int, error: OSError) -> ResourceError:
    """Say that a server cannot listen at an address, and what to do."""
    where = f"{address or 'any address'}, port {port}"
    advice = "choose another port=, or 0 for any free"
    if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
        advice = "choose a host= that is this machine's, such as '127.0.0.1'"
    return ResourceError(None, "port", f"{where}: {error.strerror or error}; {advice}")
