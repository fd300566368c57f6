"""Fixtures that start embedded servers."""

import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import aiohttp
import pytest

from tests.support.embedded_servers import KEY, Server, Servers


@pytest.fixture
def servers() -> Iterator[Servers]:
    started = Servers()
    yield started
    started.close()


@pytest.fixture
def socket_path() -> Iterator[Path]:
    # Not tmp_path: the path of a Unix socket is limited to 107 bytes.
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder) / "replica.sock"


@pytest.fixture(scope="module", params=["port", "uds"])
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """One server for all tests of a module, once on a port and once on a Unix socket."""
    started = Servers()
    with tempfile.TemporaryDirectory() as folder:
        uds = Path(folder) / "replica.sock" if request.param == "uds" else None
        yield started.start("--max-model-len", "256", uds=uds, key=KEY)
        started.close()


@pytest.fixture
async def client(server: Server) -> AsyncIterator[aiohttp.ClientSession]:
    async with server.client() as session:
        yield session
