"""The routes `/v1/files` and `/v1/batches`."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from aiohttp import BodyPartReader, web
from aiohttp.http import HttpProcessingError

from rhapsody.errors import PromptError
from rhapsody.inference.bulk.lines import CHAT, EMBEDDINGS, LineError, unknown_model
from rhapsody.inference.bulk.run import AT_ONCE, PRIORITY
from rhapsody.inference.clients import Client, Clients
from rhapsody.inference.http.batches.batch import Batch
from rhapsody.inference.http.batches.files import MAX_FILES, FileStore, lock_folder
from rhapsody.inference.http.batches.runner import BATCHES_AT_ONCE, Batches
from rhapsody.inference.http.bodies import BodyError
from rhapsody.inference.http.models import Models
from rhapsody.inference.http.request_body import read_body
from rhapsody.scratch import Scratch

__all__ = ["BatchRoutes"]

CHUNK_BYTES = 1024 * 1024
CHUNK_SECONDS = 60.0
"""Longest time until the next part of a file arrives."""
PURPOSE = "batch"
PAGE, MAX_PAGE = 20, 100
"""Entries of a list, and the most that a client may ask for, as in OpenAI's API."""
MAX_METADATA = 16

ClientOf = Callable[[web.Request], Client]


class BatchRoutes:
    """Serves files and batches of the clients of a gateway.

    Args:
        folder: Where they are kept; None: in a temporary folder, which `stop` removes.
        models: The models that answer requests.
        clients: The clients.
        client_of: Returns who has sent a request.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str] | None,
        models: Models,
        clients: Clients,
        client_of: ClientOf,
    ) -> None:
        self._given = folder
        self._models = models
        self._clients = clients
        self._client_of = client_of
        self._scratch: Scratch | None = None
        self._lock: int | None = None
        self._files: FileStore
        self._batches: Batches

    def add_to(self, router: web.UrlDispatcher) -> None:
        """Add the routes to a server."""
        router.add_post("/v1/files", self._upload)
        router.add_get("/v1/files", self._list_files)
        router.add_get("/v1/files/{id}", self._get_file)
        router.add_delete("/v1/files/{id}", self._delete_file)
        router.add_get("/v1/files/{id}/content", self._content)
        router.add_post("/v1/batches", self._create_batch)
        router.add_get("/v1/batches", self._list_batches)
        router.add_get("/v1/batches/{id}", self._get_batch)
        router.add_post("/v1/batches/{id}/cancel", self._cancel_batch)

    async def start(self) -> None:
        """Open the folder, and continue the batches in it.

        Raises:
            ConfigurationError: The folder cannot be used.
        """
        folder = await asyncio.to_thread(self._open_folder)
        self._files = await asyncio.to_thread(FileStore, folder)
        at_once = max(1, min(AT_ONCE, self._models.max_pending // 2) // BATCHES_AT_ONCE)
        self._batches = Batches(folder, self._files, self._target_for, at_once)
        await self._batches.start()

    def _open_folder(self) -> Path:
        if self._given is None:
            self._scratch = Scratch("files")
            return self._scratch.path
        folder = Path(self._given).absolute()
        self._lock = lock_folder(folder)
        return folder

    async def stop(self) -> None:
        """Interrupt the batches, and close the folder. Idempotent."""
        if hasattr(self, "_batches"):
            await self._batches.stop()
        lock, self._lock = self._lock, None
        if lock is not None:
            os.close(lock)
        if self._scratch is not None:
            await asyncio.to_thread(self._scratch.remove)

    def _target_for(self, owner: str) -> _ClientTarget:
        return _ClientTarget(self._models, self._clients.named(owner))

    async def _upload(self, request: web.Request) -> web.Response:
        owner = self._client_of(request).name
        if request.content_type != "multipart/form-data":
            raise BodyError("a file is sent as multipart/form-data, with 'purpose' and 'file'")
        if (request.content_length or 0) > self._files.max_file_bytes + CHUNK_BYTES:
            raise PromptError(
                f"a file may have at most {self._files.max_file_bytes} bytes; send it in parts",
                413,
                "RequestTooLarge",
                "file",
            )
        purpose: str | None = None
        stored: str | None = None
        try:
            reader = await request.multipart()
            while (part := await reader.next()) is not None:
                if not isinstance(part, BodyPartReader):
                    raise BodyError("a form within the form is not supported")
                if part.name == "purpose":
                    purpose = (await part.read_chunk(100)).decode("utf-8", "replace")
                elif part.name == "file" and stored is None:
                    stored = await self._store(owner, part)
            if purpose != PURPOSE:
                raise BodyError(f"'purpose' must be '{PURPOSE}', got {purpose!r:.80}", "purpose")
            if stored is None:
                raise BodyError("'file' is missing", "file")
            kept = await asyncio.to_thread(self._files.keep, stored)
        except BaseException as error:
            if stored is not None:
                self._files.remove(stored)
            unreadable = isinstance(error, (ValueError, HttpProcessingError))
            if unreadable and not isinstance(error, BodyError):
                raise BodyError(f"the form cannot be read: {error}") from error
            raise
        return web.json_response(kept)

    async def _store(self, owner: str, part: BodyPartReader) -> str:
        """Write a file as it arrives, and return its id."""
        name = (part.filename or "file")[:200]
        file_id, file = await asyncio.to_thread(self._files.create, owner, name, PURPOSE)
        try:
            with file:
                await self._receive(part, file_id, file)
        except BaseException:
            self._files.remove(file_id)
            raise
        return file_id

    async def _receive(self, part: BodyPartReader, file_id: str, file: BinaryIO) -> None:
        while True:
            reading = part.read_chunk(CHUNK_BYTES)
            try:
                chunk = await asyncio.wait_for(reading, CHUNK_SECONDS)
            except asyncio.TimeoutError:
                raise web.HTTPRequestTimeout(
                    text=f"no part of the file arrived within {CHUNK_SECONDS:g} s"
                ) from None
            if not chunk:
                return
            self._files.grow(file_id, len(chunk), bounded=True)
            await asyncio.to_thread(file.write, chunk)

    async def _list_files(self, request: web.Request) -> web.Response:
        owner, purpose = self._client_of(request).name, request.query.get("purpose")
        files, order = self._files.all_of(owner, purpose), request.query.get("order", "desc")
        if order not in ("asc", "desc"):
            raise BodyError(f"'order' must be 'asc' or 'desc', got {order!r:.80}", "order")
        return _page(request, files if order == "desc" else files[::-1], MAX_FILES, MAX_FILES)

    async def _get_file(self, request: web.Request) -> web.Response:
        found = self._files.find(self._client_of(request).name, request.match_info["id"])
        return web.json_response(found)

    async def _delete_file(self, request: web.Request) -> web.Response:
        file_id = request.match_info["id"]
        self._files.find(self._client_of(request).name, file_id)
        if self._batches.uses(file_id):
            text = f"a batch that has not ended needs '{file_id}'; cancel it"
            raise PromptError(text, 409, "ConflictError", "file_id")
        await asyncio.to_thread(self._files.remove, file_id)
        return web.json_response({"id": file_id, "object": "file", "deleted": True})

    async def _content(self, request: web.Request) -> web.FileResponse:
        file_id = request.match_info["id"]
        self._files.find(self._client_of(request).name, file_id)
        headers = {"Content-Type": "application/octet-stream"}
        return web.FileResponse(self._files.path(file_id), headers=headers)

    async def _create_batch(self, request: web.Request) -> web.Response:
        owner = self._client_of(request).name
        try:
            body = json.loads(await read_body(request))
        except (ValueError, RecursionError) as error:
            raise BodyError(f"the body is not a JSON object: {error}") from error
        if not isinstance(body, dict):
            raise BodyError(f"the body must be a JSON object, got {body!r:.80}")
        return web.json_response(await self._batches.create(_new_batch(owner, body)))

    async def _list_batches(self, request: web.Request) -> web.Response:
        batches = self._batches.all_of(self._client_of(request).name)
        return _page(request, batches, PAGE, MAX_PAGE)

    async def _get_batch(self, request: web.Request) -> web.Response:
        return web.json_response(self._find_batch(request).shown())

    async def _cancel_batch(self, request: web.Request) -> web.Response:
        return web.json_response(await self._batches.cancel(self._find_batch(request)))

    def _find_batch(self, request: web.Request) -> Batch:
        return self._batches.find(self._client_of(request).name, request.match_info["id"])


class _ClientTarget:
    """The models, for the requests of one client's batch."""

    def __init__(self, models: Models, client: Client) -> None:
        self._models = models
        self._client = client

    def model_for(self, name: Any) -> str:
        """Return the model that a request names."""
        try:
            model = self._models.choose(None if name is None else str(name))
            return model.name if name is None else str(name)
        except BodyError as error:
            raise LineError(str(error)) from error
        except PromptError as error:
            raise unknown_model(str(error)) from error

    async def run(self, model: str, task: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the result fields of a task, and count its tokens."""
        await self._client.enter()
        limits = self._client.limits
        priority = PRIORITY if limits is None else min(PRIORITY, limits.max_priority)
        task = {**task, "priority": priority}
        fields = await self._models.choose(model).run(task, model)
        self._client.add_usage(fields["usage"])
        return fields


def _new_batch(owner: str, body: Mapping[str, Any]) -> Batch:
    """Return the batch that a body describes. Raises BodyError if a field is invalid."""
    endpoint, input_file = body.get("endpoint"), body.get("input_file_id")
    if endpoint not in (CHAT, EMBEDDINGS):
        raise BodyError(
            f"'endpoint' must be '{CHAT}' or '{EMBEDDINGS}', got {endpoint!r:.80}", "endpoint"
        )
    if not isinstance(input_file, str):
        raise BodyError(
            f"'input_file_id' must be the id of a file, got {input_file!r:.80}", "input_file_id"
        )
    window, metadata = body.get("completion_window", "24h"), body.get("metadata")
    if not isinstance(window, str):
        raise BodyError("'completion_window' must be a text such as '24h'", "completion_window")
    if metadata is not None and not _is_metadata(metadata):
        raise BodyError(
            f"'metadata' must have at most {MAX_METADATA} texts of 512 characters by name",
            "metadata",
        )
    return Batch.new(owner, endpoint, input_file, window[:32], metadata)


def _is_metadata(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and len(value) <= MAX_METADATA
        and all(isinstance(text, str) and len(text) <= 512 for text in value.values())
        and all(len(name) <= 512 for name in value)
    )


def _page(
    request: web.Request, entries: list[dict[str, Any]], limit: int, most: int
) -> web.Response:
    """Return a part of a list: at most `limit` entries, from the one that follows `after`."""
    text, after = request.query.get("limit", str(limit)), request.query.get("after")
    if not (text.isdecimal() and len(text) <= 9 and 1 <= int(text) <= most):
        raise BodyError(f"'limit' must be a whole number from 1 to {most}", "limit")
    ids = [entry["id"] for entry in entries]
    if after is not None and after not in ids:
        raise BodyError(f"'after' must be the id of an entry, got {after!r:.80}", "after")
    begin = 0 if after is None else ids.index(after) + 1
    page = entries[begin : begin + int(text)]
    return web.json_response(
        {
            "object": "list",
            "data": page,
            "first_id": page[0]["id"] if page else None,
            "last_id": page[-1]["id"] if page else None,
            "has_more": begin + len(page) < len(entries),
        }
    )
