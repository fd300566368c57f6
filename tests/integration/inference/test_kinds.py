"""Tasks that embed, score and classify, on the embedded model."""

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from openai import AsyncOpenAI

from asyncflow_ext import WorkflowEngine
from rhapsody import AITask, Session
from rhapsody.backends import ConcurrentExecutionBackend
from rhapsody.errors import (
    PartialFailureError,
    PromptError,
    TaskTimeoutError,
    UnsupportedTaskError,
)
from tests.support.inference import MODEL, at_work, slow
from tests.support.waiting import until

TOO_LONG = "word " * 20_000


async def run(session: Session, *tasks: AITask) -> None:
    await session.submit_tasks(tasks)
    await session.wait_tasks(tasks)


async def test_all_kinds_run_in_one_session(start: Any) -> None:
    async with Session([await start()]) as session:
        one, many = AITask("heat", kind="embed"), AITask(["tea", "heat"], kind="embed")
        score, scores = (
            AITask(("heat", "heat"), kind="score"),
            AITask(("heat", ["heat", "tea"]), kind="score"),
        )
        classes = AITask(["a story", "physics"], kind="classify")
        text = AITask("hi", max_tokens=4)
        await run(session, one, many, score, scores, classes, text)
        assert (len(one.response), len(many.response)) == (256, 2)
        assert many.response[1].tolist() == one.response.tolist()
        assert one.return_value is one.response is one.stdout
        assert many.usage["prompt_tokens"] == 2
        assert score.response == pytest.approx(1)
        assert scores.response.tolist()[0] == pytest.approx(1)
        assert [found.label for found in classes.response] == ["story", "physics"]
        assert isinstance(text.response, str)


async def test_bad_input_fails_alone(start: Any) -> None:
    async with Session([await start()]) as session:
        empty, texts = AITask("", kind="embed"), AITask(["tea", "", TOO_LONG], kind="embed")
        long, good = AITask(TOO_LONG, kind="classify"), AITask("tea", kind="embed")
        await run(session, empty, texts, long, good)
        assert isinstance(empty.exception, UnsupportedTaskError)
        assert isinstance(long.exception, PromptError)
        assert good.state == "DONE"
        failed = texts.exception
        assert isinstance(failed, PartialFailureError)
        assert [error is None for error in failed.errors] == [True, False, False]
        assert len(failed.results[0]) == 256


async def test_timeout_and_cancel_end_waiting_tasks(start: Any, tmp_path: Path) -> None:
    config = slow(tmp_path, 60_000, **{"max-num-seqs": 1})
    async with Session([await start(config_file=config)]) as session:
        first = AITask("hi", kind="embed")
        late, cancelled = AITask("tea", kind="embed", timeout=0.1), AITask("tea", kind="embed")
        await session.submit_tasks(first)
        await first  # the server pauses after it
        await session.submit_tasks([late, cancelled])
        await session.wait_tasks(late)
        assert isinstance(late.exception, TaskTimeoutError)
        assert await session.cancel(cancelled)
        assert cancelled.state == "CANCELED"


async def test_inputs_of_a_dead_server_are_sent_again(start: Any, tmp_path: Path) -> None:
    backend = await start(config_file=slow(tmp_path, 20, **{"max-num-seqs": 4}))
    async with Session([backend]) as session:
        task = AITask([f"text {number}" for number in range(300)], kind="embed")
        await session.submit_tasks(task)

        async def busy() -> bool:
            return await at_work(backend) > 4  # some of them wait

        await until(busy)
        os.kill(backend.replicas[0]["pid"], signal.SIGKILL)
        await task
        assert task.response.shape == (300, 256)


async def test_openai_client_embeds(url: str) -> None:
    async with AsyncOpenAI(base_url=f"{url}/v1", api_key="any") as client:
        found = await client.embeddings.create(model=MODEL, input=["heat", "tea"])
    assert [len(one.embedding) for one in found.data] == [256, 256]


@pytest.mark.asyncflow
async def test_workflow_embeds_parts_of_a_document(start: Any, tmp_path: Path) -> None:
    backend = await start()
    for expected in (False, True):
        async with WorkflowEngine.create(
            backend=[ConcurrentExecutionBackend("thread"), backend], journal=tmp_path / "journal"
        ) as flow:

            @flow.function_task
            async def split(document: str) -> list[str]:
                return document.split(". ")

            @flow.ai_task(kind="embed")
            async def embed(parts: list[str]) -> list[str]:
                return parts

            @flow.ai_task(kind="score")
            async def score(query: str, parts: list[str]) -> Any:
                return query, parts

            parts = split("Heat is energy. Tea is hot. Rain falls")
            vectors, scores = embed(parts), score("tea", parts)
            found, ranked = await asyncio.gather(vectors, scores)
            assert found.shape == (3, 256)
            assert ranked.tolist().index(max(ranked)) == 1
            assert vectors.task.get("from_journal", False) is expected
