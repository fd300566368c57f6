"""The routes of files and batches: wrong requests; tests/integration has the `openai` client."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from rhapsody.inference.clients import Clients
from rhapsody.inference.config import InferenceConfig
from rhapsody.inference.http.batches.routes import BatchRoutes
from rhapsody.inference.http.errors import error_response
from rhapsody.inference.http.models import Models
from rhapsody.inference.http.served_model import ServedModel

Client = TestClient[web.Request, web.Application]


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[Client]:
    @web.middleware
    async def errors(request: web.Request, handler: Any) -> web.StreamResponse:
        try:
            response: web.StreamResponse = await handler(request)
            return response
        except Exception as error:
            return error_response(request, error)

    clients = Clients({})
    models = Models([ServedModel(InferenceConfig(model_name="tiny"), lambda: None)])
    [everybody] = clients
    routes = BatchRoutes(tmp_path / "batches", models, clients, lambda _: everybody)
    app = web.Application(middlewares=[errors])
    routes.add_to(app.router)
    await routes.start()
    async with TestClient(TestServer(app)) as client:
        yield client
    await routes.stop()


def form(purpose: str | None = "batch", data: bytes | None = b"{}\n") -> aiohttp.FormData:
    fields = aiohttp.FormData(default_to_multipart=True)
    if purpose is not None:
        fields.add_field("purpose", purpose)
    if data is not None:
        fields.add_field("file", data, filename="in.jsonl")
    return fields


async def refused(client: Client, path: str, **request: Any) -> tuple[int, str]:
    async with client.post(path, **request) as response:
        return response.status, (await response.json())["error"]["message"]


async def test_wrong_uploads_are_refused_and_leave_nothing(client: Client, tmp_path: Path) -> None:
    status, message = await refused(client, "/v1/files", json={})
    assert (status, message[:40]) == (400, "a file is sent as multipart/form-data, w")
    assert await refused(client, "/v1/files", data=form("other")) == (
        400,
        "'purpose' must be 'batch', got 'other'",
    )
    assert (await refused(client, "/v1/files", data=form(data=None)))[1] == "'file' is missing"
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    status, message = await refused(client, "/v1/files", data=b"no form", headers=headers)
    assert status == 400
    data = b"--x\r\nno header\r\n\r\ntext\r\n--x--\r\n"
    status, message = await refused(client, "/v1/files", data=data, headers=headers)
    assert (status, message[:25]) == (400, "the form cannot be read: ")
    assert not list((tmp_path / "batches").glob("file-*"))


async def test_file_that_is_too_large_is_refused_before_it_is_read(client: Client) -> None:
    writer = await _raw(client, 3 * 1024**3)
    head = await writer[0].readuntil(b"\r\n")
    assert b" 413 " in head
    writer[1].close()
    await writer[1].wait_closed()


async def _raw(client: Client, length: int) -> Any:
    import asyncio

    assert client.port is not None
    reader, writer = await asyncio.open_connection("127.0.0.1", client.port)
    head = f"POST /v1/files HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n"
    writer.write(f"{head}Content-Type: multipart/form-data; boundary=x\r\n\r\n".encode())
    return reader, writer


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"endpoint": "/v1/other"}, "'endpoint' must be"),
        ({"input_file_id": 3}, "'input_file_id' must be the id of a file"),
        ({"completion_window": 3}, "'completion_window' must be a text"),
        ({"metadata": {"a": 3}}, "'metadata' must have at most 16 texts"),
        ({}, "there is no file 'file-1'"),
    ],
)
async def test_wrong_batches_are_refused(
    client: Client, change: dict[str, Any], message: str
) -> None:
    body = {"endpoint": "/v1/chat/completions", "input_file_id": "file-1", **change}
    assert (await refused(client, "/v1/batches", json=body))[1].startswith(message)


async def test_body_that_is_no_object_is_refused(client: Client) -> None:
    assert (await refused(client, "/v1/batches", data=b"{"))[0] == 400
    assert (await refused(client, "/v1/batches", json=[]))[0] == 400


async def test_files_are_listed_as_in_openais_api(client: Client) -> None:
    for _ in range(22):
        async with client.post("/v1/files", data=form()) as response:
            assert response.status == 200

    async def listed(**query: str) -> list[str]:
        async with client.get("/v1/files", params=query) as response:
            return [file["id"] for file in (await response.json())["data"]]

    newest_first = await listed()
    assert len(newest_first) == 22
    assert await listed(limit="10000") == await listed(order="desc") == newest_first
    assert await listed(order="asc") == newest_first[::-1]
    async with client.get("/v1/files", params={"order": "x"}) as response:
        assert (response.status, "'order' must be" in await response.text()) == (400, True)


async def test_lists_have_pages(client: Client) -> None:
    for _ in range(3):
        async with client.post("/v1/files", data=form()) as response:
            assert response.status == 200
    async with client.get("/v1/files", params={"limit": "2"}) as response:
        first = await response.json()
    assert (len(first["data"]), first["has_more"]) == (2, True)
    async with client.get("/v1/files", params={"after": first["last_id"]}) as response:
        second = json.loads(await response.text())
    assert (len(second["data"]), second["has_more"]) == (1, False)
    for wrong in ({"limit": "0"}, {"limit": "9" * 5000}, {"limit": "x"}, {"after": "file-0"}):
        async with client.get("/v1/files", params=wrong) as response:
            assert response.status == 400
