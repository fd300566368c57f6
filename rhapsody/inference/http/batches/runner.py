"""Runs batches: their requests through the models, and the results into files."""

from __future__ import annotations

import asyncio
import logging
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, Protocol

from rhapsody.errors import PromptError, ReplicaError, RhapsodyError
from rhapsody.inference.bulk.results import Result, Results
from rhapsody.inference.bulk.run import BulkRun, Finished, Target, count_requests, read_lines
from rhapsody.inference.http.batches.batch import Batch, load_batches
from rhapsody.inference.http.batches.files import FileStore, not_found

__all__ = ["Batches"]

logger = logging.getLogger(__name__)

BATCHES_AT_ONCE = 4
MAX_BATCHES = 10_000
RETRY_SECONDS = 1.0
"""Pause of a batch after a request for which there was no server. It doubles each time."""
MAX_RETRY_SECONDS = 60.0


class MakeTarget(Protocol):
    """Makes what answers the requests of a client."""

    def __call__(self, owner: str) -> Target:
        """Return the target for a client's requests."""


class Batches:
    """The batches of a gateway.

    Args:
        folder: Where they are kept.
        files: The files of their requests and results.
        target_for: Returns what answers the requests of a client.
        at_once: How many requests of a batch are in progress at a time.
    """

    def __init__(
        self, folder: Path, files: FileStore, target_for: MakeTarget, at_once: int
    ) -> None:
        self._folder = folder
        self._files = files
        self._target_for = target_for
        self._at_once = at_once
        self._turn = asyncio.Semaphore(BATCHES_AT_ONCE)
        self._batches: dict[str, Batch] = {}
        self._running: dict[str, asyncio.Task[None]] = {}

    async def start(self) -> None:
        """Continue the batches in the folder that have not ended."""
        for batch in await asyncio.to_thread(load_batches, self._folder):
            self._batches[batch.id] = batch
            if batch.status == "cancelling":
                await self._finish(batch, "cancelled")
            elif not batch.ended:
                self._start(batch)

    async def stop(self) -> None:
        """Interrupt the batches that run. They continue at the next start with the same folder."""
        running = list(self._running.values())
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    async def create(self, batch: Batch) -> dict[str, Any]:
        """Start a new batch, and return its description.

        Raises:
            PromptError: The client has no such file, or there are too many batches.
        """
        self._files.find(batch.owner, batch.fields["input_file_id"])
        if len(self._batches) >= MAX_BATCHES:
            self._forget_oldest()
        self._batches[batch.id] = batch
        self._start(batch)  # first: a client that disconnects cancels what follows
        await self._save(batch)
        return batch.shown()

    def _forget_oldest(self) -> None:
        oldest = next((batch for batch in self._batches.values() if batch.ended), None)
        if oldest is None:
            text = f"{MAX_BATCHES} batches have not ended; try again later"
            raise PromptError(text, 429, "RateLimitError")
        del self._batches[oldest.id]
        (self._folder / f"{oldest.id}.json").unlink(missing_ok=True)

    def find(self, owner: str, batch_id: str) -> Batch:
        """Return a batch of a client. Raises PromptError if the client has none of this id."""
        batch = self._batches.get(batch_id)
        if batch is None or batch.owner != owner:
            raise not_found("batch", batch_id)
        return batch

    def all_of(self, owner: str) -> list[dict[str, Any]]:
        """Return the descriptions of a client's batches, the newest first."""
        return [batch.shown() for batch in self._batches.values() if batch.owner == owner][::-1]

    def uses(self, file_id: str) -> bool:
        """Return whether a batch that has not ended needs a file."""
        return any(
            file_id in (batch.fields["input_file_id"], *(batch.fields["_results"] or ()))
            for batch in self._batches.values()
            if not batch.ended
        )

    async def cancel(self, batch: Batch) -> dict[str, Any]:
        """Ask a batch to end, unless all its requests have ended, and return its description."""
        if batch.ended or batch.status in ("cancelling", "finalizing"):
            return batch.shown()
        batch.enter("cancelling")
        shown = batch.shown()
        if (task := self._running.get(batch.id)) is not None:
            task.cancel()
        await self._save(batch)
        return shown

    def _start(self, batch: Batch) -> None:
        task = asyncio.get_running_loop().create_task(self._run(batch))
        self._running[batch.id] = task
        task.add_done_callback(lambda _: self._running.pop(batch.id))

    async def _run(self, batch: Batch) -> None:
        try:
            async with self._turn:
                if batch.status != "in_progress":
                    batch.enter("in_progress")
                await self._send_until_done(batch)
        except asyncio.CancelledError:
            if batch.status != "cancelling":
                raise  # the gateway stops
            await self._finish(batch, "cancelled")
        except Exception as error:
            if not isinstance(error, (RhapsodyError, OSError)):
                logger.exception("batch %s failed", batch.id)
            batch.fail(str(error))
            await self._finish(batch)
        else:
            batch.enter("finalizing")
            await self._finish(batch, "completed")

    async def _send_until_done(self, batch: Batch) -> None:
        """Send all requests; wait while there is no server for them."""
        pause = RETRY_SECONDS
        while True:
            try:
                return await self._send_all(batch)
            except ReplicaError as error:
                logger.warning("batch %s waits %g s: %s", batch.id, pause, error.reason)
                await asyncio.sleep(pause)
                pause = min(2 * pause, MAX_RETRY_SECONDS)

    async def _send_all(self, batch: Batch) -> None:
        fields = batch.fields
        if fields["_results"] is None:
            creating = asyncio.ensure_future(asyncio.to_thread(self._create_results, batch))
            try:
                fields["_results"] = await asyncio.shield(creating)
            except asyncio.CancelledError:
                fields["_results"] = await creating  # `_finish` removes them
                raise
        source = self._files.path(fields["input_file_id"])
        fields["request_counts"]["total"] = await count_requests(source)
        await self._save(batch)
        outputs = [self._files.path(file_id) for file_id in fields["_results"]]
        finished, counts = Finished(), fields["request_counts"]
        with ExitStack() as stack:
            opened = []
            for name, path in zip(("completed", "failed"), outputs, strict=True):
                results, counts[name] = await asyncio.to_thread(_open_results, path, finished)
                opened.append(stack.enter_context(closing(results)))
            done, failed = opened

            def write(line: str, is_error: bool) -> None:
                self._files.grow(fields["_results"][is_error], len(line))
                (failed if is_error else done).write(line)
                counts["failed" if is_error else "completed"] += 1

            run = BulkRun(
                self._target_for(batch.owner),
                write,
                finished,
                url=fields["endpoint"],
                at_once=self._at_once,
            )
            await run.run(read_lines(source))

    def _create_results(self, batch: Batch) -> list[str]:
        ids = []
        for kind in ("output", "error"):
            name = f"{batch.id}_{kind}.jsonl"
            file_id, file = self._files.create(batch.owner, name, "batch_output")
            file.close()
            self._files.keep(file_id)
            ids.append(file_id)
        return ids

    async def _finish(self, batch: Batch, status: str | None = None) -> None:
        """End a batch; if its files cannot be written, as failed."""
        try:
            await self._keep_results(batch)
            if status is not None:
                batch.enter(status)
            await self._save(batch)
        except OSError as error:
            logger.error("batch %s cannot be kept: %s", batch.id, error)
            batch.fail(str(error))

    async def _keep_results(self, batch: Batch) -> None:
        """Let the owner find the files of results that are not empty, and remove the others."""
        results = batch.fields["_results"] or ()
        for name, file_id in zip(("output", "error"), results, strict=False):
            path = self._files.path(file_id)
            if path.exists() and path.stat().st_size:
                batch.fields[f"{name}_file_id"] = file_id
                await asyncio.to_thread(self._files.keep, file_id)
            else:
                await asyncio.to_thread(self._files.remove, file_id)

    async def _save(self, batch: Batch) -> None:
        await asyncio.to_thread(batch.save, self._folder)


def _open_results(path: Path, finished: Finished) -> tuple[Results, int]:
    """Open a file of results, and return it with the number of those that it has."""
    number = 0

    def take(result: Result) -> bool:
        nonlocal number
        number += 1
        return finished.take(result)

    return Results(path, take), number
