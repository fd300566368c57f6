"""The text of a task while it is written, on the embedded model."""

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
from rhapsody.api.errors import (
    PromptError,
    ReplicaError,
    TaskCancelledError,
    TaskTimeoutError,
    TaskValidationError,
    UnsupportedTaskError,
)
from rhapsody.backends.service import service_loop
from tests.support.inference import ENDLESS, at_work, embedded, slow, until

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
    """Submit a task without an end, and wait for the first text of it."""
    begun, texts = asyncio.Event(), []

    def on_text(text: str) -> None:
        texts.append(text)
        begun.set()

    task = AITask("hi", on_text=on_text, **{**ENDLESS, **fields})
    await session.submit_tasks(task)
    await asyncio.wait_for(begun.wait(), 20)
    return task, texts


async def end_of(session: Session, *tasks: AITask) -> None:
    await session.wait_tasks(tasks, timeout=20)


# -- what comes -------------------------------------------------------------------------------


@pytest.mark.parametrize("prompt", ["What is heat?", CHAT], ids=["text", "chat"])
@pytest.mark.parametrize("stop", [None, "heat", "."])
async def test_the_pieces_joined_are_the_response(session: Session, prompt: Any, stop: Any) -> None:
    texts: list[str] = []
    plain, streamed = (
        AITask(prompt, stop=stop, system_prompt="Be brief.", **GREEDY, on_text=on_text)
        for on_text in (None, texts.append)
    )
    await session.submit_tasks([plain, streamed])
    await asyncio.gather(plain, streamed)
    assert "".join(texts) == streamed.response == plain.response
    assert (streamed.usage, streamed.finish_reason) == (plain.usage, plain.finish_reason)


async def test_a_stream_of_a_task_fills_the_task(session: Session) -> None:
    task = AITask("What is heat?", **GREEDY)
    pieces = [piece async for piece in session.stream(task)]
    assert len(pieces) > 1
    assert "".join(pieces) == task.response
    assert task.state == "DONE"
    assert task.usage["completion_tokens"] > 1
    assert "on_text" not in task


async def test_a_task_may_be_a_dict(session: Session) -> None:
    task = {"prompt": "What is heat?", **GREEDY}
    assert "".join([piece async for piece in session.stream(task)]) == task["response"]


async def test_many_streams_at_once_do_not_mix(session: Session) -> None:
    async def stream(number: int) -> tuple[str, str]:
        task = AITask(f"What is number {number}?", **GREEDY)
        return "".join([piece async for piece in session.stream(task)]), task.response

    streamed = await asyncio.gather(*map(stream, range(100)))
    assert all(text == response for text, response in streamed)


async def test_text_comes_while_the_rest_is_still_being_written(
    slow_session: Session, slow_backend: Any
) -> None:
    task, _ = await first_text(slow_session)
    assert task.state == "RUNNING"
    assert await at_work(slow_backend) == 1


async def test_callbacks_are_called_on_the_loop_that_submitted(session: Session) -> None:
    threads = set()
    task = AITask("hi", on_text=lambda _: threads.add(threading.get_ident()), **GREEDY)
    await session.submit_tasks(task)
    await task
    assert threads == {threading.get_ident()}


def test_callbacks_are_called_in_the_thread_that_blocks() -> None:
    threads, texts = set(), []

    def on_text(text: str) -> None:
        threads.add(threading.get_ident())
        texts.append(text)

    with Session([embedded()]) as session:
        [task] = session.run([AITask("What is heat?", on_text=on_text, **GREEDY)])
    assert threads == {threading.get_ident()}
    assert "".join(texts) == task["response"]


# -- ends -------------------------------------------------------------------------------------


async def test_cancelling_the_task_ends_its_stream_and_the_work(
    slow_session: Session, slow_backend: Any
) -> None:
    task = AITask("hi", **ENDLESS)
    stream = slow_session.stream(task)
    await anext(stream)
    assert await slow_session.cancel(task)
    with pytest.raises(TaskCancelledError):
        [piece async for piece in stream]
    await until(lambda: _idle(slow_backend))


async def test_leaving_a_stream_cancels_the_task_and_the_work(
    slow_session: Session, slow_backend: Any
) -> None:
    task = AITask("hi", **ENDLESS)
    async with aclosing(slow_session.stream(task)) as stream:
        await anext(stream)
    assert task.state == "CANCELED"
    await until(lambda: _idle(slow_backend))


async def test_an_abandoned_stream_is_ended_too(slow_session: Session, slow_backend: Any) -> None:
    task = AITask("hi", **ENDLESS)
    async for _ in slow_session.stream(task):
        break
    await until(lambda: task.state == "CANCELED")
    await until(lambda: _idle(slow_backend))


async def test_no_text_comes_after_the_end(slow_session: Session) -> None:
    task, texts = await first_text(slow_session)
    await slow_session.cancel(task)
    before = len(texts)
    other = AITask("hi", max_tokens=5, ignore_eos=True)
    await slow_session.submit_tasks(other)
    await other
    assert len(texts) == before


async def test_a_task_that_fails_raises_the_same_from_its_stream(session: Session) -> None:
    task = AITask(TOO_LONG)
    with pytest.raises(PromptError) as refused:
        await anext(session.stream(task))
    assert refused.value is task.exception


async def test_a_timeout_ends_a_stream(slow_session: Session, slow_backend: Any) -> None:
    task, _ = await first_text(slow_session, timeout=0.5)
    with pytest.raises(TaskTimeoutError):
        await task
    await until(lambda: _idle(slow_backend))


async def test_a_server_that_dies_after_the_first_text_fails_the_task(
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
    await other  # by the server that was started again
    assert texts == before


async def test_a_server_that_dies_before_the_first_text_costs_only_time(
    start: Callable[..., Any],
) -> None:
    backend = await start()
    texts: list[str] = []
    task = AITask("What is heat?", **GREEDY, on_text=texts.append)
    [replica] = backend.replicas
    os.kill(replica["pid"], signal.SIGSTOP)
    answering = asyncio.ensure_future(backend.answer(task))
    await until(lambda: backend.replicas[0]["in_flight"] == 1)
    os.kill(replica["pid"], signal.SIGKILL)
    fields = await answering
    assert backend.replicas[0]["restarts"] == 1
    assert "".join(texts) == fields["response"]


# -- consumers --------------------------------------------------------------------------------


async def test_a_callback_that_blocks_holds_up_nobody_else(
    session: Session, start: Callable[..., Any]
) -> None:
    other = await start()
    answers: list[Any] = []

    def on_text(text: str) -> None:
        if not answers:  # the service loop answers while this loop stands still
            answers.append(service_loop().run_blocking(other.generate("hi", timeout=20)))

    task = AITask("What is heat?", on_text=on_text, **GREEDY)
    await session.submit_tasks(task)
    await task
    assert len(answers) == 1


def test_a_callback_that_blocks_a_script_holds_up_nobody_else() -> None:
    answers: list[Any] = []
    other = embedded()

    def on_text(text: str) -> None:
        if not answers:
            answers.append(service_loop().run_blocking(other.generate("hi", timeout=20)))

    with Session([embedded()]) as session:
        [task] = session.run([AITask("What is heat?", on_text=on_text, **GREEDY)])
    service_loop().run_blocking(other.shutdown())
    assert (task["state"], len(answers)) == ("DONE", 1)


async def test_a_callback_that_raises_does_not_lose_the_task(
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


# -- what is refused --------------------------------------------------------------------------


@pytest.mark.parametrize("fields", [{"prompt": ["a", "b"]}, {"prompt": "a", "n": 2}])
async def test_a_stream_is_one_response_to_one_prompt(
    session: Session, fields: dict[str, Any]
) -> None:
    with pytest.raises(UnsupportedTaskError, match="one response to one prompt"):
        await anext(session.stream(AITask(**fields)))


async def test_a_task_with_a_callback_is_not_streamed_twice(session: Session) -> None:
    with pytest.raises(TaskValidationError, match="it has an 'on_text'"):
        await anext(session.stream(AITask("hi", on_text=print)))


async def test_a_response_that_does_not_parse_fails_after_all_its_text(session: Session) -> None:
    class Verdict(pydantic.BaseModel):
        answer: str

    texts: list[str] = []
    task = AITask("hi", response_format=Verdict, on_text=texts.append)
    await session.submit_tasks(task)
    await end_of(session, task)
    assert isinstance(task.exception, PromptError)


async def _idle(backend: Any) -> bool:
    return await at_work(backend) == 0
