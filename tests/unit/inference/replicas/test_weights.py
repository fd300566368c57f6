"""New weights on all servers or on none, with fake servers."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import aiohttp
import pytest

from rhapsody.errors import ConfigurationError, ReplicaError
from rhapsody.inference.replicas.replica import Replica
from rhapsody.inference.replicas.weights import ServedWeights, Weights


class Server:
    """Remembers which weights it has loaded, and answers with a status."""

    def __init__(self, index: int, *, status: int = 200, gone: bool = False) -> None:
        self.index = index
        self.starts = 1
        self.address: str | None = "unix:here"
        self.version = ""
        self.draining = False
        self.state = "READY"
        self.status = status
        self.gone = gone
        self.loaded: list[str] = []
        self.killed = self.suspected = False
        self.gate = asyncio.Event()
        self.gate.set()
        self.connection = self

    async def exchange(self, path: str, body: Mapping[str, Any]) -> tuple[int, str]:
        assert path == "/rhapsody/weights"
        await self.gate.wait()
        if self.gone:
            raise aiohttp.ClientConnectionError("it is gone")
        if self.status == 200:
            self.loaded.append(body["path"])
        return self.status, "no such layer"

    def suspect(self) -> None:
        self.suspected = True

    def kill(self) -> None:
        self.killed = True


class Pool:
    """Notes which servers are paused, in order."""

    def __init__(self) -> None:
        self.order: list[int] = []
        self.is_paused = False

    @asynccontextmanager
    async def paused(self, replica: Any, seconds: float | None) -> AsyncIterator[None]:
        assert not self.is_paused
        if seconds is not None and self.order:
            raise ReplicaError("server 7 is busy")
        self.is_paused = True
        self.order.append(replica.index)
        try:
            yield
        finally:
            self.is_paused = False


async def prepare(weights: Weights, *servers: Server) -> None:
    for server in servers:
        await weights.prepare(cast(Replica, server))


async def reload(weights: Weights, path: object, version: Any = None, **options: Any) -> str:
    pool = options.pop("pool", None) or Pool()
    timeout = options.pop("timeout", 20)
    return await weights.reload(pool, str(path), version, timeout, **options)


def served() -> tuple[Weights, list[Server]]:
    return Weights(ServedWeights()), [Server(0), Server(1)]


async def test_servers_change_one_after_the_other(tmp_path: Path) -> None:
    weights, servers = served()
    await prepare(weights, *servers)
    assert ([one.version for one in servers], weights.version) == (["0", "0"], "0")
    pool = Pool()
    assert await reload(weights, tmp_path, pool=pool) == "1"
    assert sorted(pool.order) == [0, 1]
    assert [one.loaded for one in servers] == [[str(tmp_path)]] * 2
    assert ([one.version for one in servers], weights.version) == (["1", "1"], "1")


async def test_number_belongs_to_one_set_of_weights(tmp_path: Path) -> None:
    weights, servers = served()
    await prepare(weights, *servers)
    pool = Pool()
    assert await reload(weights, tmp_path, pool=pool) == "1"
    assert await reload(weights, tmp_path, "after-run-7") == "after-run-7"
    for place, following in ((1, "3"), (0, "4")):
        server = servers[pool.order[place]]
        server.status = 500
        with pytest.raises(ReplicaError):
            await reload(weights, tmp_path)  # responses of the first server may have the version
        server.status = 200
        assert await reload(weights, tmp_path) == following


async def test_server_that_starts_later_loads_the_weights(tmp_path: Path) -> None:
    weights, servers = served()
    await prepare(weights, *servers)
    await reload(weights, tmp_path, "v2")
    late = Server(2)
    await prepare(weights, late)
    assert (late.loaded, late.version) == ([str(tmp_path)], "v2")


async def test_reload_does_not_wait_for_a_server_that_starts_again(tmp_path: Path) -> None:
    weights, servers = served()
    await prepare(weights, *servers)
    servers[1].starts, servers[1].state, servers[1].gone = 2, "STARTING", True
    assert await reload(weights, tmp_path, "v2") == "v2"
    servers[1].gone = False
    await prepare(weights, servers[1])
    assert [one.version for one in servers] == ["v2", "v2"]
    assert await reload(weights, tmp_path, "v3") == "v3"
    assert [one.version for one in servers] == ["v3", "v3"]


async def test_server_that_starts_during_a_reload_gets_the_new_weights(tmp_path: Path) -> None:
    weights, servers = served()
    await prepare(weights, *servers)
    servers[0].gate.clear()
    servers[1].gate.clear()
    reloading = asyncio.ensure_future(reload(weights, tmp_path, "v2"))
    late = Server(2)
    await prepare(weights, late)
    assert late.version == "0"
    servers[0].gate.set()
    servers[1].gate.set()
    await reloading
    assert (late.loaded, late.version) == ([str(tmp_path)], "v2")


async def test_draining_server_gets_the_weights_since_it_may_be_needed_again(
    tmp_path: Path,
) -> None:
    weights, servers = served()
    await prepare(weights, *servers)
    servers[0].draining = servers[1].draining = True
    servers[1].state = "STOPPED"
    await reload(weights, tmp_path)
    assert [one.version for one in servers] == ["1", "0"]


async def test_reload_that_ends_while_a_server_starts_is_not_missed(tmp_path: Path) -> None:
    weights, servers = served()
    await prepare(weights, *servers)
    await reload(weights, tmp_path, "v1")
    late = Server(2)
    late.gate.clear()
    preparing = asyncio.ensure_future(prepare(weights, late))
    await asyncio.sleep(0)
    await reload(weights, tmp_path, "v2")
    late.gate.set()
    await preparing
    assert (late.loaded, late.version) == ([str(tmp_path)] * 2, "v2")


async def test_failure_leaves_the_former_weights(tmp_path: Path) -> None:
    weights, (good, bad) = served()
    await prepare(weights, good, bad)
    bad.status = 500
    # The order of the servers is not fixed; both ways must end with the former weights.
    with pytest.raises(ReplicaError, match=r"server 1 did not load .*; the model keeps its"):
        await reload(weights, tmp_path)
    assert weights.version == "0"
    assert bad.killed
    assert bad.suspected
    assert good.killed == bool(good.loaded)


@pytest.mark.parametrize("dead", [0, 1])
async def test_server_that_dies_gets_the_weights_when_it_starts_again(
    tmp_path: Path, dead: int
) -> None:
    weights, servers = served()
    await prepare(weights, *servers)
    server = servers[dead]
    server.gone = True
    assert await reload(weights, tmp_path, "v2") == weights.version == "v2"
    assert [one.killed for one in servers] == [one is server for one in servers]
    server.gone, server.starts = False, 2
    await prepare(weights, server)
    assert [one.version for one in servers] == ["v2", "v2"]


async def test_weights_that_no_server_survives_are_not_kept(tmp_path: Path) -> None:
    weights, servers = served()
    await prepare(weights, *servers)
    for server in servers:
        server.gone = True
    with pytest.raises(ReplicaError, match=r"was lost while it loaded .* of version '0'"):
        await reload(weights, tmp_path)
    assert weights.version == "0"


async def test_server_that_dies_twice_fails_the_reload(tmp_path: Path) -> None:
    class RestartingPool(Pool):
        @asynccontextmanager
        async def paused(self, replica: Any, seconds: float | None) -> AsyncIterator[None]:
            if self.order:
                bad.starts += 1
                bad.gone = False
                await prepare(weights, bad)
                bad.gone = True
            async with super().paused(replica, seconds):
                yield

    weights, (bad, good) = served()
    await prepare(weights, bad, good)
    bad.gone = True
    with pytest.raises(ReplicaError, match=r"server 0 was lost .*; the model keeps its weights"):
        await reload(weights, tmp_path, pool=RestartingPool())
    assert (weights.version, good.killed) == ("0", True)


async def test_server_that_refuses_keeps_its_weights(tmp_path: Path) -> None:
    weights, servers = served()
    await prepare(weights, *servers)
    for server in servers:
        server.status = 400
    with pytest.raises(ReplicaError, match="no such layer; the model keeps its weights of versio"):
        await reload(weights, tmp_path)
    assert not any(server.killed for server in servers)
    assert weights.version == "0"


async def test_servers_keep_the_former_weights_if_one_does_not_finish_its_requests(
    tmp_path: Path,
) -> None:
    weights, servers = served()
    await prepare(weights, *servers)
    pool = Pool()
    with pytest.raises(ReplicaError, match="server 7 is busy; the model keeps its weights of vers"):
        await reload(weights, tmp_path, pool=pool, drain_seconds=5)
    [first] = pool.order
    assert [one.killed for one in servers] == [one is servers[first] for one in servers]
    assert weights.version == "0"


async def test_server_that_takes_too_long_starts_again(tmp_path: Path) -> None:
    weights, server = Weights(ServedWeights()), Server(0)
    await prepare(weights, server)
    server.gate.clear()
    with pytest.raises(ReplicaError, match=r"in 0\.01 s; the model keeps its weights of version"):
        await reload(weights, tmp_path, timeout=0.01)
    assert server.killed


async def test_cancelled_reload_leaves_the_former_weights(tmp_path: Path) -> None:
    weights, server = Weights(ServedWeights()), Server(0)
    await prepare(weights, server)
    server.gate.clear()
    reloading = asyncio.ensure_future(reload(weights, tmp_path))
    while not reloading.done():
        await asyncio.sleep(0)
        reloading.cancel()
    assert reloading.cancelled()
    assert weights.version == "0"


async def test_stopped_servers_are_left_out(tmp_path: Path) -> None:
    weights, (running, stopped) = served()
    await prepare(weights, running, stopped)
    stopped.address = None
    await reload(weights, tmp_path)
    assert (running.loaded, stopped.loaded) == ([str(tmp_path)], [])


@pytest.mark.parametrize("version", ["", "0", "a b", "ä", "v" * 129, 0])
async def test_invalid_version_is_refused(tmp_path: Path, version: Any) -> None:
    weights, servers = served()
    await prepare(weights, *servers)
    with pytest.raises(ConfigurationError, match="'version' must be 1 to 128 printable"):
        await reload(weights, tmp_path, version)
    assert not servers[0].loaded


async def test_missing_path_is_refused(tmp_path: Path) -> None:
    weights, servers = served()
    await prepare(weights, *servers)
    with pytest.raises(ConfigurationError, match="there are no weights at"):
        await reload(weights, tmp_path / "none")


async def test_weights_that_a_starting_server_does_not_load_fail_its_start(tmp_path: Path) -> None:
    weights = Weights(ServedWeights(str(tmp_path), "v2"))
    with pytest.raises(ReplicaError, match="server 0 did not load the weights"):
        await prepare(weights, Server(0, status=500))
