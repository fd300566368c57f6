"""The text of tasks as it is generated, on the embedded model."""

import asyncio
import os
import signal
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pydantic
import pytest

from rhapsody import AITask, Session
from rhapsody.backends.core.service_loop import service_loop
from rhapsody.errors import (
    PromptError,
    ReplicaError,
    TaskCancelledError,
    TaskTimeoutError,
    TaskValidationError,
    UnsupportedTaskError,
)
from tests.support.inference import ENDLESS, at_work, embedded, slow
from tests.support.waiting import until

GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 24}
CHAT = [{"role": "user", "content": "What is heat?"}]
TOO_LONG = "word " * 20_000


@pytest.fixture
async def session() -> AsyncIterator[Session]:
    async with Session([embedded()]) as session:
        yield session


@pytest.fixture
async def slow_backend(tmp_path: Path) -> Any:
    return embedded(config_file=slow(tmp_path))


@pytest.fixture
async def slow_session(slow_backend: Any) -> AsyncIterator[Session]:
    async with Session([slow_backend]) as session:
        yield session


async def first_text(session: Session, **fields: Any) -> tuple[AITask, list[str]]:
    """Submit a task that does not end by itself, and wait for its first text."""
    started, texts = asyncio.Event(), []

    def on_text(text: str) -> None:
        texts.append(text)
        started.set()

    task = AITask("hi", on_text=on_text, **{**ENDLESS, **fields})
    await session.submit_tasks(task)
    await asyncio.wait_for(started.wait(), 20)
    return task, texts


async def end_of(session: Session, *tasks: AITask) -> None:
    await session.wait_tasks(tasks, timeout=20)


@pytest.mark.parametrize("prompt", ["What is heat?", CHAT], ids=["text", "chat"])
@pytest.mark.parametrize("stop", [None, "heat", "."])
async def test_pieces_join_to_the_response(session: Session, prompt: Any, stop: Any) -> None:
    texts: list[str] = []
    plain, streamed = (
        AITask(prompt, stop=stop, system_prompt="Be brief.", **GREEDY, on_text=on_text)
        for on_text in (None, texts.append)
    )
    await session.submit_tasks([plain, streamed])
    await asyncio.gather(plain, streamed)
    assert "".join(texts) == streamed.response == plain.response
    assert (streamed.usage, streamed.finish_reason) == (plain.usage, plain.finish_reason)


async def test_streamed_task_has_its_result(session: Session) -> None:
    task = AITask("What is heat?", **GREEDY)
    pieces = [piece async for piece in session.stream(task)]
    assert len(pieces) > 1
    assert "".join(pieces) == task.response
    assert task.state == "DONE"
    assert task.usage["completion_tokens"] > 1
    assert "on_text" not in task


async def test_dict_can_be_streamed(session: Session) -> None:
    task = {"prompt": "What is heat?", **GREEDY}
    assert "".join([piece async for piece in session.stream(task)]) == task["response"]


async def test_concurrent_streams_do_not_mix(session: Session) -> None:
    async def stream(number: int) -> tuple[str, str]:
        task = AITask(f"What is number {number}?", **GREEDY)
        return "".join([piece async for piece in session.stream(task)]), task.response

    streamed = await asyncio.gather(*map(stream, range(100)))
    assert all(text == response for text, response in streamed)


async def test_text_arrives_before_the_response_is_complete(
    slow_session: Session, slow_backend: Any
) -> None:
    task, _ = await first_text(slow_session)
    assert task.state == "RUNNING"
    assert await at_work(slow_backend) == 1


async def test_callback_runs_on_the_submitting_loop(session: Session) -> None:
    threads = set()
    task = AITask("hi", on_text=lambda _: threads.add(threading.get_ident()), **GREEDY)
    await session.submit_tasks(task)
    await task
    assert threads == {threading.get_ident()}


def test_callback_runs_in_the_blocking_thread() -> None:
    threads, texts = set(), []

    def on_text(text: str) -> None:
        threads.add(threading.get_ident())
        texts.append(text)

    with Session([embedded()]) as session:
        [task] = session.run([AITask("What is heat?", on_text=on_text, **GREEDY)])
    assert threads == {threading.get_ident()}
    assert "".join(texts) == task["response"]


async def test_cancel_ends_the_stream_and_the_work(
    slow_session: Session, slow_backend: Any
) -> None:
    task = AITask("hi", **ENDLESS)
    stream = slow_session.stream(task)
    await anext(stream)
    assert await slow_session.cancel(task)
    with pytest.raises(TaskCancelledError):
        [piece async for piece in stream]
    await until(lambda: _idle(slow_backend))


async def test_closing_a_stream_cancels_the_task(slow_session: Session, slow_backend: Any) -> None:
    task = AITask("hi", **ENDLESS)
    async with aclosing(slow_session.stream(task)) as stream:
        await anext(stream)
    assert task.state == "CANCELED"
    await until(lambda: _idle(slow_backend))


async def test_unreferenced_stream_cancels_the_task(
    slow_session: Session, slow_backend: Any
) -> None:
    task = AITask("hi", **ENDLESS)
    async for _ in slow_session.stream(task):
        break
    await until(lambda: task.state == "CANCELED")
    await until(lambda: _idle(slow_backend))


async def test_no_text_arrives_after_the_end(slow_session: Session) -> None:
    task, texts = await first_text(slow_session)
    await slow_session.cancel(task)
    before = len(texts)
    other = AITask("hi", max_tokens=5, ignore_eos=True)
    await slow_session.submit_tasks(other)
    await other
    assert len(texts) == before


async def test_stream_raises_the_exception_of_its_task(session: Session) -> None:
    task = AITask(TOO_LONG)
    with pytest.raises(PromptError) as refused:
        await anext(session.stream(task))
    assert refused.value is task.exception


async def test_timeout_ends_a_stream(slow_session: Session, slow_backend: Any) -> None:
    task, _ = await first_text(slow_session, timeout=0.5)
    with pytest.raises(TaskTimeoutError):
        await task
    await until(lambda: _idle(slow_backend))


async def test_dead_server_after_first_text_fails_the_task(
    slow_session: Session, slow_backend: Any
) -> None:
    task, texts = await first_text(slow_session)
    os.kill(slow_backend.replicas[0]["pid"], signal.SIGKILL)
    await end_of(slow_session, task)
    assert isinstance(task.exception, ReplicaError)
    assert "in the middle of the stream" in str(task.exception)
    before = list(texts)
    other = AITask("hi", max_tokens=5, ignore_eos=True)
    await slow_session.submit_tasks(other)
    await other  # on the restarted server
    assert texts == before


async def test_dead_server_before_first_text_is_retried(
    start: Callable[..., Any],
) -> None:
    backend = await start()
    texts: list[str] = []
    task = AITask("What is heat?", **GREEDY, on_text=texts.append)
    [replica] = backend.replicas
    os.kill(replica["pid"], signal.SIGSTOP)
    running = asyncio.ensure_future(backend.run_one(task))
    await until(lambda: backend.replicas[0]["in_flight"] == 1)
    os.kill(replica["pid"], signal.SIGKILL)
    fields = await running
    assert backend.replicas[0]["restarts"] == 1
    assert "".join(texts) == fields["response"]


async def test_blocking_callback_does_not_block_others(
    session: Session, start: Callable[..., Any]
) -> None:
    other = await start()
    responses: list[Any] = []

    def on_text(text: str) -> None:
        if not responses:  # the service loop runs while this loop is blocked
            responses.append(service_loop().run_blocking(other.generate("hi", timeout=20)))

    task = AITask("What is heat?", on_text=on_text, **GREEDY)
    await session.submit_tasks(task)
    await task
    assert len(responses) == 1


def test_blocking_callback_in_a_script_does_not_block_others() -> None:
    responses: list[Any] = []
    other = embedded()

    def on_text(text: str) -> None:
        if not responses:
            responses.append(service_loop().run_blocking(other.generate("hi", timeout=20)))

    with Session([embedded()]) as session:
        [task] = session.run([AITask("What is heat?", on_text=on_text, **GREEDY)])
    service_loop().run_blocking(other.shutdown())
    assert (task["state"], len(responses)) == ("DONE", 1)


async def test_raising_callback_does_not_fail_the_task(
    session: Session, caplog: pytest.LogCaptureFixture
) -> None:
    def boom(text: str) -> None:
        raise ValueError("intended")

    task = AITask("What is heat?", on_text=boom, **GREEDY)
    await session.submit_tasks(task)
    await task
    assert len(task.response) > 0
    assert [r.message for r in caplog.records if "on_text" in r.message] == [
        f"on_text of task {task.uid} failed and is not called again"
    ]


@pytest.mark.parametrize("fields", [{"prompt": ["a", "b"]}, {"prompt": "a", "n": 2}])
async def test_stream_needs_one_prompt_and_one_response(
    session: Session, fields: dict[str, Any]
) -> None:
    with pytest.raises(UnsupportedTaskError, match="requires a single prompt with n=1"):
        await anext(session.stream(AITask(**fields)))


async def test_task_with_callback_cannot_be_streamed(session: Session) -> None:
    with pytest.raises(TaskValidationError, match="it has an 'on_text'"):
        await anext(session.stream(AITask("hi", on_text=print)))


async def test_unparsable_response_fails_the_task(session: Session) -> None:
    class Verdict(pydantic.BaseModel):
        answer: str

    texts: list[str] = []
    task = AITask("hi", response_format=Verdict, max_tokens=3, on_text=texts.append)
    await session.submit_tasks(task)
    await end_of(session, task)
    assert isinstance(task.exception, PromptError)


async def _idle(backend: Any) -> bool:
    return await at_work(backend) == 0
