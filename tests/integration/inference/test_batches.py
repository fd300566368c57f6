"""Files and batches, with the real `openai` client and the embedded model."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import openai
import pytest

from rhapsody.backends import DragonVllmInferenceBackend
from tests.support.inference import MODEL, slow
from tests.support.waiting import until

CHAT = "/v1/chat/completions"


def requests(number: int, **body: Any) -> bytes:
    messages = [{"role": "user", "content": "What is heat?"}]
    lines = [
        {"custom_id": f"r{n}", "method": "POST", "url": CHAT}
        | {"body": {"model": MODEL, "messages": messages, "max_tokens": 4, **body}}
        for n in range(number)
    ]
    return "".join(json.dumps(line) + "\n" for line in lines).encode()


def client_of(backend: DragonVllmInferenceBackend, key: str = "any") -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(
        base_url=f"{backend.get_endpoint()}/v1", api_key=key, max_retries=0, timeout=50
    )


@pytest.fixture
async def client(backend: DragonVllmInferenceBackend) -> AsyncIterator[openai.AsyncOpenAI]:
    async with client_of(backend) as client:
        yield client


async def ended(client: openai.AsyncOpenAI, batch_id: str) -> Any:
    found: list[Any] = []

    async def has_ended() -> bool:
        found.append(await client.batches.retrieve(batch_id))
        return found[-1].status in ("completed", "failed", "cancelled")

    await until(has_ended)
    return found[-1]


async def test_batch_runs_the_requests_of_a_file(client: openai.AsyncOpenAI) -> None:
    data = requests(40) + b"no json\n" + requests(1, model="other").replace(b"r0", b"other")
    uploaded = await client.files.create(file=("in.jsonl", data), purpose="batch")
    assert (uploaded.bytes, uploaded.filename) == (len(data), "in.jsonl")
    batch = await client.batches.create(
        input_file_id=uploaded.id,
        endpoint="/v1/chat/completions",
        completion_window="24h",
        metadata={"run": "3"},
    )
    batch = await ended(client, batch.id)
    assert (batch.status, batch.metadata) == ("completed", {"run": "3"})
    counts = batch.request_counts
    assert (counts.total, counts.completed, counts.failed) == (42, 40, 2)
    lines = [
        json.loads(one)
        for one in (await client.files.content(batch.output_file_id)).text.splitlines()
    ]
    assert {line["custom_id"] for line in lines} == {f"r{n}" for n in range(40)}
    assert lines[0]["response"]["body"]["choices"][0]["finish_reason"] == "length"
    errors = (await client.files.content(batch.error_file_id)).text
    assert "line 41 is not JSON" in errors
    assert "The model `other` does not exist" in errors
    assert '"code":"model_not_found"' in errors
    assert (await client.batches.list(limit=1)).data[0].id == batch.id
    await client.files.delete(uploaded.id)
    with pytest.raises(openai.NotFoundError, match="there is no file"):
        await client.files.retrieve(uploaded.id)


async def test_embeddings_run_in_a_batch(client: openai.AsyncOpenAI) -> None:
    line = {"custom_id": "a", "url": "/v1/embeddings", "body": {"input": ["heat", "light"]}}
    wrong = {"custom_id": "b", "url": "/v1/embeddings", "body": {"input": [3]}}
    data = f"{json.dumps(line)}\n{json.dumps(wrong)}\n".encode()
    uploaded = await client.files.create(file=("in.jsonl", data), purpose="batch")
    batch = await client.batches.create(
        input_file_id=uploaded.id, endpoint="/v1/embeddings", completion_window="24h"
    )
    batch = await ended(client, batch.id)
    output = json.loads((await client.files.content(batch.output_file_id)).text)
    assert len(output["response"]["body"]["data"]) == 2
    assert "'input' must be a text" in (await client.files.content(batch.error_file_id)).text


async def test_batch_is_cancelled_and_belongs_to_its_key(start: Any, tmp_path: Path) -> None:
    config = slow(tmp_path, 20, **{"max-num-seqs": 2})
    backend = await start(
        use_service=True, config_file=config, api_keys={"alice": "one", "bob": "two"}
    )
    async with client_of(backend, "one") as alice, client_of(backend, "two") as bob:
        uploaded = await alice.files.create(file=("in.jsonl", requests(300)), purpose="batch")
        options: Any = {"endpoint": CHAT, "completion_window": "24h"}
        with pytest.raises(openai.NotFoundError):
            await bob.batches.create(input_file_id=uploaded.id, **options)
        batch = await alice.batches.create(input_file_id=uploaded.id, **options)
        assert [one async for one in bob.batches.list()] == []
        with pytest.raises(openai.ConflictError, match="has not ended"):
            await alice.files.delete(uploaded.id)
        chat = await bob.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": "Hello"}], max_tokens=1
        )
        assert chat.choices  # it did not wait for the batch
        assert (await alice.batches.retrieve(batch.id)).status in ("validating", "in_progress")
        await alice.batches.cancel(batch.id)
        assert (await ended(alice, batch.id)).status == "cancelled"


PROGRAM = """
import asyncio, sys
from rhapsody.backends import DragonVllmInferenceBackend

async def main():
    backend = DragonVllmInferenceBackend(
        sys.argv[1], "tiny", engine="embedded", launcher="local", host="127.0.0.1", port=0,
        batch_dir=sys.argv[2],
    )
    await backend.initialize()
    print(backend.get_endpoint(), flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


async def test_batch_continues_after_a_kill(start: Any, tmp_path: Path) -> None:
    folder, config = tmp_path / "batches", slow(tmp_path, 20, **{"max-num-seqs": 2})
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, config, str(folder)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    try:
        url = process.stdout.readline().strip()
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="any") as client:
            uploaded = await client.files.create(file=("in.jsonl", requests(40)), purpose="batch")
            batch: Any = await client.batches.create(
                input_file_id=uploaded.id,
                endpoint="/v1/chat/completions",
                completion_window="24h",
            )

            async def has_begun() -> bool:
                counts = (await client.batches.retrieve(batch.id)).request_counts
                return counts is not None and counts.completed > 0

            await until(has_begun)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait(30)
        process.stdout.close()
    backend = await start(use_service=True, batch_dir=folder)
    async with client_of(backend) as client:
        batch = await ended(client, batch.id)
        assert batch.request_counts.completed == 40
        lines = (await client.files.content(batch.output_file_id)).text.splitlines()
    assert len({json.loads(line)["custom_id"] for line in lines}) == len(lines) == 40
