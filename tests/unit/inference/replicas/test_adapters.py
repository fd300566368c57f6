"""LoRA adapters on all servers or on none, with fake servers."""

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import aiohttp
import pytest

from rhapsody.errors import ConfigurationError, ReplicaError
from rhapsody.inference.replicas.adapters import Adapters
from rhapsody.inference.replicas.replica import Replica


class Server:
    """Remembers its adapters, and refuses the name "bad" if it is picky."""

    address: str | None = "unix:here"

    def __init__(self, index: int, *, picky: bool = False, gone: bool = False) -> None:
        self.index = index
        self.starts = 1
        self.loaded: dict[str, str] = {}
        self.static: list[str] = []
        self._picky = picky
        self.gone = gone
        self.connection = self

    async def exchange(self, path: str, body: Mapping[str, Any]) -> tuple[int, str]:
        await asyncio.sleep(0)
        if self.gone:
            raise aiohttp.ClientConnectionError("it is gone")
        name = body["lora_name"]
        if path == "/v1/unload_lora_adapter":
            del self.loaded[name]
        elif self._picky and name == "bad":
            return 400, "its rank is too high"
        else:
            self.loaded[name] = body["lora_path"]
        return 200, ""

    async def models(self) -> list[dict[str, Any]]:
        return [{"id": name} for name in ("tiny", *self.static, *self.loaded)]


async def prepare(adapters: Adapters, *servers: Server) -> None:
    for server in servers:
        await adapters.prepare(cast(Replica, server))


@pytest.fixture
def folder(tmp_path: Path) -> str:
    (tmp_path / "adapter_config.json").write_text("{}")
    return str(tmp_path)


async def test_adapter_is_loaded_on_all_servers(folder: str) -> None:
    adapters, servers = Adapters("tiny", {}, None), [Server(0), Server(1)]
    await prepare(adapters, *servers)
    await adapters.load("tuned", folder)
    assert [server.loaded for server in servers] == [{"tuned": folder}] * 2
    assert set(adapters.names) == {"tuned"}
    await adapters.unload("tuned")
    assert [server.loaded for server in servers] == [{}] * 2
    assert not adapters.names


async def test_adapter_that_one_server_refuses_is_on_none(folder: str) -> None:
    adapters, servers = Adapters("tiny", {}, None), [Server(0), Server(1, picky=True)]
    await prepare(adapters, *servers)
    with pytest.raises(ReplicaError, match="server 1 did not load the adapter 'bad': its rank"):
        await adapters.load("bad", folder)
    assert [server.loaded for server in servers] == [{}] * 2
    assert not adapters.names


async def test_server_that_starts_again_loads_the_adapters_first(folder: str) -> None:
    adapters, server = Adapters("tiny", {}, None), Server(0)
    await prepare(adapters, server)
    await adapters.load("tuned", folder)
    server.loaded.clear()
    await prepare(adapters, server)
    assert server.loaded == {"tuned": folder}
    with pytest.raises(ReplicaError, match="did not load the adapter 'tuned': it is gone"):
        await prepare(adapters, Server(1, gone=True))


async def test_server_that_starts_again_is_not_asked_before_it_is_ready(folder: str) -> None:
    adapters, again = Adapters("tiny", {}, None), Server(0)
    await prepare(adapters, again, Server(1))
    again.starts, again.gone = 2, True
    await adapters.load("tuned", folder)
    again.gone = False
    await prepare(adapters, again)
    assert again.loaded == {"tuned": folder}
    await adapters.unload("tuned")
    assert again.loaded == {}


async def test_server_that_is_down_loads_an_adapter_at_its_start(folder: str) -> None:
    adapters, down = Adapters("tiny", {}, None), Server(0)
    await prepare(adapters, down, Server(1))
    down.address, down.gone = None, True
    await adapters.load("tuned", folder)
    down.address, down.gone = "unix:here", False
    await prepare(adapters, down)
    assert down.loaded == {"tuned": folder}


async def test_adapters_of_the_configuration_file_are_known(folder: str) -> None:
    adapters, server = Adapters("tiny", {}, None), Server(0)
    server.static = ["given"]
    await prepare(adapters, server)
    assert set(adapters.names) == {"given"}
    with pytest.raises(ConfigurationError, match="the name 'given' is taken"):
        await adapters.load("given", folder)


@pytest.mark.parametrize("name", ["", "tiny", 3])
async def test_invalid_name_is_refused(name: Any, folder: str) -> None:
    with pytest.raises(ConfigurationError, match="name"):
        await Adapters("tiny", {}, None).load(name, folder)


async def test_folder_without_an_adapter_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="has no adapter: the folder must have"):
        await Adapters("tiny", {}, None).load("tuned", str(tmp_path))


async def test_unknown_adapter_cannot_be_unloaded() -> None:
    with pytest.raises(ConfigurationError, match="'tuned'"):
        await Adapters("tiny", {}, None).unload("tuned")


async def test_servers_without_adapters_say_why(folder: str) -> None:
    adapters, server = Adapters("tiny", {}, "the embedded model has no weights"), Server(0)
    await prepare(adapters, server)
    with pytest.raises(ConfigurationError, match="the embedded model has no weights"):
        await adapters.load("tuned", folder)
