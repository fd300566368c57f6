"""The LoRA adapters of a model: loaded on all of its servers, or on none."""

from __future__ import annotations

import asyncio
import os
import weakref
from collections.abc import Collection, MutableMapping
from pathlib import Path

import aiohttp

from rhapsody.errors import ConfigurationError, ReplicaError
from rhapsody.inference.replicas.replica import Replica
from rhapsody.suggest import unknown_name

__all__ = ["Adapters"]

LOAD_PATH = "/v1/load_lora_adapter"
UNLOAD_PATH = "/v1/unload_lora_adapter"
CONFIG_NAME = "adapter_config.json"


class Adapters:
    """The adapters that every server of a model has.

    Args:
        model_name: The name of the model, which no adapter may have.
        paths: The folders of the adapters by name. Those that are loaded later are added.
        refusal: Why the servers take no adapters; None: they do.
    """

    def __init__(
        self, model_name: str, paths: MutableMapping[str, str], refusal: str | None
    ) -> None:
        self._model_name = model_name
        self._paths = paths
        self._refusal = refusal
        self._static: frozenset[str] = frozenset()
        """Adapters that the servers load themselves, by their configuration file."""
        self._lock = asyncio.Lock()
        self._prepared: weakref.WeakKeyDictionary[Replica, int] = weakref.WeakKeyDictionary()
        """The servers that have the adapters, with the number of their start."""

    @property
    def names(self) -> Collection[str]:
        """The names of the adapters."""
        return self._static.union(self._paths)

    async def prepare(self, replica: Replica) -> None:
        """Load the adapters on a server that has started, before it takes prompts.

        Raises:
            ReplicaError: The server did not load one.
        """
        if self._refusal is not None:
            return
        async with self._lock:
            for name, path in self._paths.items():
                await _load(replica, name, path)
            entries = await replica.connection.models() or []
            listed = {str(entry["id"]) for entry in entries} - {self._model_name}
            self._static = frozenset(listed.difference(self._paths))
            self._prepared[replica] = replica.starts

    async def load(self, name: str, path: str) -> None:
        """Load an adapter on all servers. If one does not load it, the others drop it again.

        Raises:
            ConfigurationError: The name is taken, the folder has no adapter, or the servers take
                no adapters.
            ReplicaError: A server did not load it.
        """
        async with self._lock:
            path = await asyncio.to_thread(os.path.abspath, path)
            await self._check_new(name, path)
            servers = self._servers()
            outcomes = await asyncio.gather(
                *(_load(server, name, path) for server in servers), return_exceptions=True
            )
            failed = [one for one in outcomes if isinstance(one, BaseException)]
            if not failed:
                self._paths[name] = path
                return
            loaded = [s for s, one in zip(servers, outcomes, strict=True) if one is None]
            await asyncio.gather(*(_unload(s, name) for s in loaded), return_exceptions=True)
            raise failed[0]

    async def _check_new(self, name: str, path: str) -> None:
        if self._refusal is not None:
            raise ConfigurationError(self._refusal)
        if not isinstance(name, str) or not name:
            raise ConfigurationError(f"an adapter's name must be a non-empty string, got {name!r}")
        if name == self._model_name or name in self.names:
            raise ConfigurationError(
                f"the name '{name}' is taken; choose another one, or unload that adapter first"
            )
        if not await asyncio.to_thread((Path(path) / CONFIG_NAME).is_file):
            raise ConfigurationError(
                f"{path} has no adapter: the folder must have {CONFIG_NAME} and the weights"
            )

    async def unload(self, name: str) -> None:
        """Unload an adapter from all servers.

        Raises:
            ConfigurationError: No adapter of this name was loaded.
            ReplicaError: A server did not unload it.
        """
        async with self._lock:
            if name not in self._paths:
                raise ConfigurationError(unknown_name("adapter", name, self._paths))
            del self._paths[name]
            await asyncio.gather(*(_unload(server, name) for server in self._servers()))

    def _servers(self) -> list[Replica]:
        # A server that is starting again cannot be reached yet, and loads the adapters itself.
        return [
            one
            for one, start in self._prepared.items()
            if start == one.starts and one.address is not None
        ]


async def _load(replica: Replica, name: str, path: str) -> None:
    body = {"lora_name": name, "lora_path": path}
    await _command(replica, LOAD_PATH, body, f"did not load the adapter '{name}'")


async def _unload(replica: Replica, name: str) -> None:
    body = {"lora_name": name}
    await _command(replica, UNLOAD_PATH, body, f"did not unload the adapter '{name}'")


async def _command(replica: Replica, path: str, body: dict[str, str], failure: str) -> None:
    try:
        status, text = await replica.connection.exchange(path, body)
    except (aiohttp.ClientError, OSError) as error:
        status, text = 500, str(error)
    if status != 200:
        raise ReplicaError(f"model server {replica.index} {failure}: {text}")
