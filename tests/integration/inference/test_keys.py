"""Keys: which requests need a key, and which texts must not contain one."""

import asyncio
import json
import logging
import os
import sys
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest

from rhapsody import ComputeTask, Session
from rhapsody.backends import ConcurrentExecutionBackend
from rhapsody.errors import ConfigurationError

KEY = "a-key-that-must-not-appear"


@pytest.mark.parametrize("path", ["/generate", "/metrics", "/v1/models", "/nothing"])
async def test_only_health_is_served_without_key(start: Any, path: str) -> None:
    guarded = await start(use_service=True, api_key=KEY)
    async with aiohttp.ClientSession(base_url=guarded.get_endpoint()) as http:
        async with http.get("/health") as response:
            assert response.status == 200
        for headers in ({}, {"Authorization": "Bearer no"}, {"Authorization": KEY}):
            async with http.get(path, headers=headers) as response:
                assert response.status == 401
                assert response.headers["WWW-Authenticate"] == "Bearer"
                assert (await response.json())["error"]["type"] == "AuthenticationError"


async def test_environment_variable_sets_the_key(
    start: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RHAPSODY_API_KEY", KEY)
    guarded = await start(use_service=True)
    async with aiohttp.ClientSession(base_url=guarded.get_endpoint()) as http:
        async with http.get("/v1/models") as response:
            assert response.status == 401
        headers = {"Authorization": f"Bearer {KEY}"}
        async with http.get("/v1/models", headers=headers) as response:
            assert response.status == 200


async def test_keys_are_replaced_while_the_server_runs(start: Any) -> None:
    guarded = await start(use_service=True, api_keys={"alice": "old"})
    async with aiohttp.ClientSession(base_url=guarded.get_endpoint()) as http:
        await guarded.set_api_keys({"alice": "new"})
        with pytest.raises(ConfigurationError, match="at least one key"):
            await guarded.set_api_keys({})
        for key, status in (("old", 401), ("new", 200)):
            headers = {"Authorization": f"Bearer {key}"}
            async with http.get("/v1/models", headers=headers) as response:
                assert response.status == status


async def test_key_is_not_passed_to_servers(
    start: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("RHAPSODY_API_KEY", KEY)
    guarded = await start(use_service=True)
    async with (
        aiohttp.ClientSession(base_url=guarded.get_endpoint()) as http,
        http.get("/v1/models", headers={"Authorization": f"Bearer {KEY}"}),
    ):
        pass
    server = psutil.Process(guarded.replicas[0]["pid"])
    assert KEY not in " ".join(server.cmdline())
    assert KEY not in server.environ().values()
    assert "RHAPSODY_API_KEY" not in server.environ()
    assert KEY not in repr(guarded) + repr(guarded.config) + caplog.text


async def test_replica_key_is_on_no_command_line(start: Any) -> None:
    backend = await start()
    server = psutil.Process(backend.replicas[0]["pid"])
    secret = server.environ()["RHAPSODY_REPLICA_KEY"]
    assert len(secret) > 20
    assert secret not in " ".join(server.cmdline())
    assert "RHAPSODY_REPLICA_KEY" not in os.environ


async def test_tasks_see_no_key(
    start: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("RHAPSODY_API_KEY", KEY)
    await start()
    show = "import json, os; print(json.dumps(dict(os.environ)))"
    async with Session([ConcurrentExecutionBackend()], work_dir=tmp_path) as session:
        task = ComputeTask(executable=sys.executable, arguments=["-c", show])
        await session.submit_tasks(task)
        await asyncio.wait_for(task, 20)
    seen = json.loads(task.stdout)
    assert not {"RHAPSODY_API_KEY", "RHAPSODY_REPLICA_KEY"} & seen.keys()
    assert KEY not in seen.values()


async def test_replica_refuses_requests_without_its_key(start: Any) -> None:
    backend = await start()
    connector = aiohttp.UnixConnector(backend.replicas[0]["address"].removeprefix("unix:"))
    async with aiohttp.ClientSession(base_url="http://replica", connector=connector) as http:
        for path in ("/health", "/v1/models", "/metrics", "/nothing"):
            async with http.get(path) as response:
                assert response.status == 401


async def test_replica_socket_is_private(start: Any) -> None:
    backend = await start()
    path = Path(backend.replicas[0]["address"].removeprefix("unix:"))
    assert path.stat().st_mode & 0o077 == 0
    assert path.parent.stat().st_mode & 0o077 == 0
