"""The HTTP session of a replica: its address, its key, and the reuse of connections."""

from pathlib import Path

import pytest
from aiohttp import web

from rhapsody.inference.replicas.client_session import open_session
from tests.support.replicas import short_directory


class Upstream:
    """A server that counts its connections and returns each request's headers."""

    def __init__(self) -> None:
        self.connections: set[object] = set()

    async def start(self, socket: Path | None) -> tuple[web.AppRunner, str]:
        app = web.Application()
        app.router.add_get("/status/{status}", self._respond)
        runner = web.AppRunner(app)
        await runner.setup()
        if socket is not None:
            await web.UnixSite(runner, str(socket)).start()
            return runner, f"unix:{socket}"
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        host, port = runner.addresses[0][:2]
        return runner, f"http://{host}:{port}"

    async def _respond(self, request: web.Request) -> web.Response:
        self.connections.add(request.transport)
        return web.json_response(dict(request.headers), status=int(request.match_info["status"]))


@pytest.mark.parametrize("unix", [True, False])
async def test_requests_carry_the_key_and_no_headers_of_aiohttp(unix: bool) -> None:
    with short_directory() as folder:
        runner, address = await Upstream().start(folder / "s" if unix else None)
        async with (
            open_session(address, "secret") as session,
            session.get("/status/200") as response,
        ):
            headers = await response.json()
        await runner.cleanup()
    assert headers["X-Rhapsody-Key"] == "secret"
    assert headers.keys() <= {"Host", "X-Rhapsody-Key"}


@pytest.mark.parametrize(("status", "connections"), [(200, 1), (400, 3), (500, 3)])
async def test_connections_are_reused_unless_the_response_is_an_error(
    status: int, connections: int
) -> None:
    upstream = Upstream()
    with short_directory() as folder:
        runner, address = await upstream.start(folder / "s")
        async with open_session(address, "secret") as session:
            for _ in range(3):
                async with session.get(f"/status/{status}") as response:
                    await response.read()
        await runner.cleanup()
    assert len(upstream.connections) == connections
