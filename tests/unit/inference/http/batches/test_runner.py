"""Running batches, with a scripted target."""

import asyncio
import json
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from rhapsody.errors import PromptError, ReplicaError
from rhapsody.inference.http.batches import runner
from rhapsody.inference.http.batches.batch import Batch
from rhapsody.inference.http.batches.files import FileStore
from rhapsody.inference.http.batches.runner import Batches
from tests.support.waiting import until

CHAT = "/v1/chat/completions"
FIELDS = {"response": "a text", "finish_reason": "stop", "usage": {}}


class Model:
    """Answers each request, as soon as `open` is set; "bad" ones with an error."""

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.open.set()
        self.asked: list[str] = []
        self.losses = 0

    def model_for(self, name: Any) -> str:
        return "m"

    async def run(self, model: str, task: Mapping[str, Any]) -> Mapping[str, Any]:
        text = task["prompt"][0]["content"]
        if text != "first":
            await self.open.wait()
        self.asked.append(text)
        if self.losses:
            self.losses -= 1
            raise ReplicaError("the server was lost")
        if text == "bad":
            raise PromptError("it is bad", 400)
        return FIELDS


@pytest.fixture
def model() -> Model:
    return Model()


@pytest.fixture
def files(tmp_path: Path) -> FileStore:
    return FileStore(tmp_path)


def batches_of(tmp_path: Path, files: FileStore, model: Model) -> Batches:
    return Batches(tmp_path, files, lambda owner: model, at_once=4)


def new_batch(files: FileStore, *texts: str) -> Batch:
    file_id, file = files.create("alice", "in.jsonl", "batch")
    with file:
        for number, text in enumerate(texts):
            body = {"messages": [{"role": "user", "content": text}]}
            line = {"custom_id": f"r{number}", "url": CHAT, "body": body}
            file.write(json.dumps(line).encode() + b"\n")
    files.keep(file_id)
    return Batch.new("alice", CHAT, file_id, "24h", None)


def ids(files: FileStore, file_id: str | None) -> list[str]:
    assert file_id is not None
    lines = files.path(file_id).read_text().splitlines()
    return sorted(json.loads(line)["custom_id"] for line in lines)


async def test_results_and_errors_are_files_of_the_owner(
    tmp_path: Path, files: FileStore, model: Model
) -> None:
    batches, batch = batches_of(tmp_path, files, model), new_batch(files, "a", "bad", "b")
    await batches.create(batch)
    await until(lambda: batch.ended)
    assert batch.status == "completed"
    assert batch.fields["request_counts"] == {"total": 3, "completed": 2, "failed": 1}
    assert ids(files, batch.fields["output_file_id"]) == ["r0", "r2"]
    assert ids(files, batch.fields["error_file_id"]) == ["r1"]
    assert {file["purpose"] for file in files.all_of("alice")} == {"batch", "batch_output"}
    assert files.all_of("bob") == []


async def test_file_without_lines_is_not_kept(
    tmp_path: Path, files: FileStore, model: Model
) -> None:
    batches, batch = batches_of(tmp_path, files, model), new_batch(files, "a")
    await batches.create(batch)
    await until(lambda: batch.ended)
    assert batch.fields["error_file_id"] is None
    assert len(files.all_of("alice")) == 2


async def test_batch_whose_client_disconnects_runs(
    tmp_path: Path, files: FileStore, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches, batch = batches_of(tmp_path, files, model), new_batch(files, "a")
    save, saving, may_save = batch.save, threading.Event(), threading.Event()

    def slow_save(folder: Path) -> None:
        saving.set()
        may_save.wait(20)
        save(folder)

    monkeypatch.setattr(batch, "save", slow_save)
    creating = asyncio.ensure_future(batches.create(batch))
    await until(saving.is_set)
    creating.cancel()
    may_save.set()
    await until(lambda: batch.status == "completed")


async def test_batch_fails_if_its_results_cannot_be_kept(
    tmp_path: Path, files: FileStore, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    model.open.clear()
    batches, batch = batches_of(tmp_path, files, model), new_batch(files, "a")
    await batches.create(batch)
    await until(lambda: batch.fields["request_counts"]["total"] == 1)

    def keep(file_id: str) -> dict[str, Any]:
        raise OSError("no space left")

    monkeypatch.setattr(files, "keep", keep)
    model.open.set()
    await until(lambda: batch.ended)
    assert batch.status == "failed"
    assert batch.fields["errors"]["data"][0]["message"] == "no space left"
    assert not batches.uses(batch.fields["input_file_id"])


async def test_cancelled_batch_keeps_its_results(
    tmp_path: Path, files: FileStore, model: Model
) -> None:
    model.open.clear()
    batches, batch = batches_of(tmp_path, files, model), new_batch(files, "first", "b", "c")
    await batches.create(batch)
    await until(lambda: batch.fields["request_counts"]["completed"] == 1)
    assert batches.uses(batch.fields["input_file_id"])
    assert (await batches.cancel(batch))["status"] == "cancelling"
    await until(lambda: batch.ended)
    assert batch.status == "cancelled"
    assert ids(files, batch.fields["output_file_id"]) == ["r0"]
    assert not batches.uses(batch.fields["input_file_id"])


async def test_batch_continues_after_a_restart(
    tmp_path: Path, files: FileStore, model: Model
) -> None:
    model.open.clear()
    batches, batch = batches_of(tmp_path, files, model), new_batch(files, "first", "bad", "c")
    await batches.create(batch)
    await until(lambda: batch.fields["request_counts"]["completed"] == 1)
    await batches.stop()
    assert batch.status == "in_progress"
    model.open.set()
    again = batches_of(tmp_path, FileStore(tmp_path), model)
    await again.start()
    await until(lambda: again.find("alice", batch.id).ended)
    counts = again.find("alice", batch.id).fields["request_counts"]
    assert counts == {"total": 3, "completed": 2, "failed": 1}
    assert sorted(model.asked) == ["bad", "c", "first"]


async def test_blank_lines_are_not_counted(tmp_path: Path, files: FileStore, model: Model) -> None:
    batches, batch = batches_of(tmp_path, files, model), new_batch(files, "a", "b")
    with files.path(batch.fields["input_file_id"]).open("ab") as file:
        file.write(b"\n  \n")
    await batches.create(batch)
    await until(lambda: batch.ended)
    assert batch.fields["request_counts"] == {"total": 2, "completed": 2, "failed": 0}


async def test_cancel_of_a_batch_that_ends_has_no_effect(
    tmp_path: Path, files: FileStore, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches, batch = batches_of(tmp_path, files, model), new_batch(files, "a")
    remove, removing, may_remove = files.remove, threading.Event(), threading.Event()

    def slow_remove(file_id: str) -> None:
        removing.set()
        may_remove.wait(20)
        remove(file_id)

    monkeypatch.setattr(files, "remove", slow_remove)
    await batches.create(batch)
    await until(removing.is_set)
    assert (await batches.cancel(batch))["status"] == "finalizing"
    may_remove.set()
    await until(lambda: batch.ended)
    assert batch.status == "completed"


async def test_batch_that_ends_while_its_cancel_is_saved_ends_once(
    tmp_path: Path, files: FileStore, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    model.open.clear()
    batches, batch = batches_of(tmp_path, files, model), new_batch(files, "a")
    await batches.create(batch)
    await until(lambda: batch.fields["request_counts"]["total"] == 1)
    save, saving, may_save = batch.save, threading.Event(), threading.Event()

    def slow_save(folder: Path) -> None:
        saving.set()
        may_save.wait(20)
        save(folder)

    monkeypatch.setattr(batch, "save", slow_save)
    cancelling = asyncio.ensure_future(batches.cancel(batch))
    await until(saving.is_set)
    model.open.set()
    await asyncio.sleep(0)
    may_save.set()
    await cancelling
    await until(lambda: batch.ended)
    assert batch.status == "cancelled"


async def test_batch_that_is_cancelled_as_it_begins_leaves_no_files(
    tmp_path: Path, files: FileStore, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches, batch = batches_of(tmp_path, files, model), new_batch(files, "a")
    create, creating, may_create = files.create, threading.Event(), threading.Event()

    def slow_create(*arguments: str) -> tuple[str, BinaryIO]:
        creating.set()
        may_create.wait(20)
        return create(*arguments)

    monkeypatch.setattr(files, "create", slow_create)
    await batches.create(batch)
    await until(creating.is_set)
    cancelling = asyncio.ensure_future(batches.cancel(batch))
    await until(lambda: batch.status == "cancelling")
    await asyncio.sleep(0)
    may_create.set()
    await cancelling
    await until(lambda: batch.status == "cancelled")
    await until(lambda: len(files.all_of("alice")) == 1)


async def test_batch_whose_cancel_was_interrupted_keeps_its_results(
    tmp_path: Path, files: FileStore, model: Model
) -> None:
    model.open.clear()
    batches, batch = batches_of(tmp_path, files, model), new_batch(files, "first", "b")
    await batches.create(batch)
    await until(lambda: batch.fields["request_counts"]["completed"] == 1)
    await batches.stop()
    batch.enter("cancelling")
    batch.save(tmp_path)
    files.remove(batch.fields["_results"][1])  # as the interrupted cancel may have done
    files = FileStore(tmp_path)
    again = batches_of(tmp_path, files, model)
    await again.start()
    found = again.find("alice", batch.id)
    assert found.status == "cancelled"
    assert ids(files, found.fields["output_file_id"]) == ["r0"]
    assert found.fields["error_file_id"] is None


async def test_batch_waits_while_there_is_no_server(
    tmp_path: Path, files: FileStore, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "RETRY_SECONDS", 0.01)
    model.losses = 2
    batches, batch = batches_of(tmp_path, files, model), new_batch(files, "a", "b")
    await batches.create(batch)
    await until(lambda: batch.ended)
    assert batch.status == "completed"
    assert batch.fields["request_counts"] == {"total": 2, "completed": 2, "failed": 0}


async def test_full_folder_fails_the_batch(tmp_path: Path, model: Model) -> None:
    files = FileStore(tmp_path, max_client_bytes=1)
    batches, batch = batches_of(tmp_path, files, model), new_batch(files, "a")
    await batches.create(batch)
    await until(lambda: batch.ended)
    assert batch.status == "failed"
    assert "may have 1 bytes together" in batch.fields["errors"]["data"][0]["message"]


async def test_batch_is_found_by_its_owner_only(
    tmp_path: Path, files: FileStore, model: Model
) -> None:
    batches, batch = batches_of(tmp_path, files, model), new_batch(files, "a")
    await batches.create(batch)
    assert batches.all_of("bob") == []
    with pytest.raises(PromptError, match="there is no batch"):
        batches.find("bob", batch.id)
    with pytest.raises(PromptError, match="there is no file"):
        await batches.create(Batch.new("bob", CHAT, batch.fields["input_file_id"], "24h", None))
    await until(lambda: batch.ended)
