"""The weights of a model: replaced on its servers one by one, with a version, or on none."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import weakref
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import aiohttp

from rhapsody.errors import ConfigurationError, ReplicaError
from rhapsody.inference.kinds import FIRST_VERSION
from rhapsody.inference.protocol.batch import WEIGHTS_PATH
from rhapsody.inference.replicas.replica import Replica

__all__ = ["ServedWeights", "Weights"]

logger = logging.getLogger(__name__)

VERSION = re.compile(r"[!-~]{1,128}\Z")
"""It is sent in a header."""


class Pool(Protocol):
    """The servers of the model."""

    def paused(self, replica: Replica, seconds: float | None) -> AbstractAsyncContextManager[None]:
        """Return a context in which a server has no prompts; see `ReplicaPool.paused`."""


@dataclass
class ServedWeights:
    """What the servers of a model have.

    Attributes:
        path: Where the weights are. None: at the model's own place.
        version: Their version.
        number: The largest version that was a number, also of servers whose reload failed later.
    """

    path: str | None = None
    version: str = FIRST_VERSION
    number: int = int(FIRST_VERSION)


class Weights:
    """The weights that every server of a model has.

    Args:
        served: The weights that servers load when they start; a reload changes it.
    """

    def __init__(self, served: ServedWeights) -> None:
        self._served = served
        self._lock = asyncio.Lock()
        self._prepared: weakref.WeakKeyDictionary[Replica, int] = weakref.WeakKeyDictionary()
        """The servers that have weights, with the number of their start."""

    @property
    def version(self) -> str:
        """The version of the weights."""
        return self._served.version

    async def prepare(self, replica: Replica) -> None:
        """Load the weights on a server that has started, before it takes prompts.

        Raises:
            ReplicaError: The server did not load them.
        """
        loaded = None
        while loaded != (self._served.path, self._served.version):  # a reload may end meanwhile
            loaded = path, _ = self._served.path, self._served.version
            if path is not None:
                await _load(replica, path)
        replica.version = self._served.version
        self._prepared[replica] = replica.starts

    async def reload(
        self,
        pool: Pool,
        path: str,
        version: str | int | None,
        timeout: float,
        drain_seconds: float | None = None,
    ) -> str:
        """Load weights on all servers, one after the other; the others take prompts meanwhile.

        If one does not load them, the servers that have them start again with the former ones. A
        server that dies meanwhile loads them when it has started again, if another one has them.

        Args:
            pool: The servers.
            path: Where the weights are.
            version: Their version. None: the next number that no weights have had.
            timeout: Longest time in which one server loads them, in seconds.
            drain_seconds: Longest time in which one server finishes its requests before that, in
                seconds. None: no limit.

        Returns:
            The version.

        Raises:
            ConfigurationError: The path does not exist, or the version is invalid.
            ReplicaError: A server did not load them, or did not finish its requests. All have the
                former version.
        """
        async with self._lock:
            former = self._served.version
            version = str(self._served.number + 1 if version is None else version)
            if not VERSION.match(version) or version == former:
                raise ConfigurationError(
                    "'version' must be 1 to 128 printable ASCII characters without spaces, and "
                    f"not the present one, got {version!r:.140}"
                )
            path = await asyncio.to_thread(os.path.abspath, path)
            if not await asyncio.to_thread(os.path.exists, path):
                raise ConfigurationError(f"there are no weights at {path}")
            changed: list[Replica] = []
            loading = partial(_switch, path=path, version=version, timeout=timeout, changed=changed)
            try:
                await self._switch_all(pool, version, drain_seconds, loading)
                self._served.path, self._served.version = path, version
                self._note_number(version)
            except BaseException as error:
                if any(replica.version == version for replica in changed):
                    self._note_number(version)  # responses may have it
                for replica in changed:
                    _start_again(replica)
                if not isinstance(error, ReplicaError):
                    raise
                raise ReplicaError(
                    f"{error.reason}; the model keeps its weights of version '{former}'"
                ) from error
        logger.info("the model has the weights of version %s, from %s", version, path)
        return version

    async def _switch_all(
        self,
        pool: Pool,
        version: str,
        drain_seconds: float | None,
        switch: Callable[[Replica], Awaitable[None]],
    ) -> None:
        lost: dict[Replica, _LostError] = {}
        # Servers may start meanwhile, with the former weights.
        while outdated := [one for one in self._servers() if one.version != version]:
            replica = outdated[0]
            try:
                async with pool.paused(replica, drain_seconds):
                    await switch(replica)
            except _LostError as error:
                if replica in lost:
                    raise
                lost[replica] = error
                self._prepared.pop(replica, None)  # until it has started again
        if lost and not any(one.version == version for one in self._prepared):
            raise next(iter(lost.values()))  # the weights may be the reason

    def _note_number(self, version: str) -> None:
        if version.isdecimal():
            self._served.number = max(self._served.number, int(version))

    def _servers(self) -> list[Replica]:
        # A server that is starting again cannot be reached yet, and loads the weights itself.
        return [
            one
            for one, start in self._prepared.items()
            if start == one.starts and _may_take_prompts(one)
        ]


def _may_take_prompts(replica: Replica) -> bool:
    """Return whether a server runs. One that drains may be needed again."""
    return replica.address is not None and replica.state != "STOPPED"


async def _switch(
    replica: Replica, path: str, version: str, timeout: float, changed: list[Replica]
) -> None:
    """Load weights on a server without prompts; `changed` gets it if it may have other weights."""
    if not _may_take_prompts(replica):  # it has stopped, and loads the weights when it starts again
        return
    changed.append(replica)
    try:
        await asyncio.wait_for(_load(replica, path), timeout)
    except asyncio.TimeoutError:
        raise ReplicaError(
            f"model server {replica.index} did not load the weights of {path} in {timeout:g} s"
        ) from None
    except _RefusedError:
        changed.remove(replica)
        raise
    except _LostError:
        changed.remove(replica)
        _start_again(replica)
        raise
    replica.version = version


class _RefusedError(ReplicaError):
    """A server has refused weights, and keeps those that it had."""


class _LostError(ReplicaError):
    """The connection to a server was lost while it loaded weights, most likely by its end."""


async def _load(replica: Replica, path: str) -> None:
    try:
        status, text = await replica.connection.exchange(WEIGHTS_PATH, {"path": path})
    except (aiohttp.ClientError, OSError) as error:
        raise _LostError(
            f"the connection to model server {replica.index} was lost while it loaded the weights "
            f"of {path}: {error}"
        ) from error
    if status != 200:
        kind = _RefusedError if status == 400 else ReplicaError
        raise kind(f"model server {replica.index} did not load the weights of {path}: {text}")


def _start_again(replica: Replica) -> None:
    """Have a server restarted, which may have weights that it must not have."""
    logger.warning("model server %d starts again because of its weights", replica.index)
    replica.suspect()
    replica.kill()
