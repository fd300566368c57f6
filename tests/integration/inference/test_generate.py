"""`generate`, `stream` and prompt tasks, on the embedded model."""

import asyncio
from contextlib import aclosing
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from rhapsody import AITask, Session
from rhapsody.errors import (
    PartialFailureError,
    PromptError,
    TaskTimeoutError,
    UnsupportedTaskError,
)
from tests.support.inference import ENDLESS, MODEL, at_work, embedded, slow
from tests.support.waiting import until

GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 24}
CHAT = [{"role": "user", "content": "What is heat?"}]
TOO_LONG = "word " * 20_000


async def test_generate_returns_responses_in_order(backend: Any) -> None:
    prompts = ["What is AI?", "Explain machine learning"]
    one_by_one = [(await backend.generate(prompt, **GREEDY))[0] for prompt in prompts]
    assert await backend.generate(prompts=prompts, timeout=300, **GREEDY) == one_by_one


async def test_generate_starts_the_backend() -> None:
    async with embedded() as backend:
        await backend.shutdown()
        assert len(await backend.generate(["hi"], max_tokens=4)) == 1


async def test_chat_is_one_prompt(backend: Any) -> None:
    [alone] = await backend.generate(CHAT, **GREEDY)
    assert await backend.generate([CHAT, CHAT], **GREEDY) == [alone, alone]


async def test_texts_and_chats_can_be_mixed(backend: Any) -> None:
    text, chat = await backend.generate(["What is heat?", CHAT], **GREEDY)
    assert text == chat


async def test_several_responses_are_a_list(backend: Any) -> None:
    [responses] = await backend.generate("hi", n=3, max_tokens=8)
    assert len(responses) == 3


async def test_system_prompt_is_the_first_message(backend: Any) -> None:
    [by_parameter] = await backend.generate("hi", system_prompt="Speak of rivers.", **GREEDY)
    chat = [{"role": "system", "content": "Speak of rivers."}, {"role": "user", "content": "hi"}]
    assert await backend.generate(chat, **GREEDY) == [by_parameter]


async def test_partial_failure_has_results_and_errors_in_order(backend: Any) -> None:
    with pytest.raises(PartialFailureError) as failed:
        await backend.generate(["hi", TOO_LONG, "ho"], max_tokens=4)
    assert [result is None for result in failed.value.results] == [False, True, False]
    assert [error is None for error in failed.value.errors] == [True, False, True]
    assert isinstance(failed.value.errors[1], PromptError)
    assert "the first is prompt 1" in str(failed.value)


async def test_return_exceptions_keeps_the_order(backend: Any) -> None:
    good, bad = await backend.generate(["hi", TOO_LONG], return_exceptions=True, max_tokens=4)
    assert isinstance(good, str)
    assert isinstance(bad, PromptError)
    assert bad.code == 400


async def test_unserializable_prompt_fails_alone(backend: Any) -> None:
    bad = [{"role": "user", "content": {"a", "set"}}]
    good, error = await backend.generate([CHAT, bad], return_exceptions=True, max_tokens=4)
    assert isinstance(good, str)
    assert isinstance(error, PromptError)


async def test_generate_timeout_names_prompts_and_seconds(start: Any, tmp_path: Path) -> None:
    slowly = await start(config_file=slow(tmp_path))
    with pytest.raises(asyncio.TimeoutError, match=r"2 prompts .* timeout of 0\.2 s"):
        await slowly.generate(["a", "b"], timeout=0.2, **ENDLESS)
    await until(lambda: _idle(slowly))


async def test_batch_over_the_size_of_a_request(backend: Any) -> None:
    prompts = ["Say something. " + "x" * 1_500_000 + f" {i}" for i in range(14)]
    outcomes = await backend.generate(prompts, return_exceptions=True, max_tokens=4)
    assert len(outcomes) == 14
    assert all(isinstance(outcome, (str, PromptError)) for outcome in outcomes)


async def test_text_prompt_matches_chat_completions(
    backend: Any, http: aiohttp.ClientSession
) -> None:
    [response] = await backend.generate("What is heat?", temperature=0)
    body = {"model": MODEL, "messages": CHAT, "temperature": 0}
    async with http.post("/v1/chat/completions", json=body) as served:
        choice = (await served.json())["choices"][0]
    assert response == choice["message"]["content"]


async def test_stream_joins_to_the_plain_response(backend: Any) -> None:
    [whole] = await backend.generate("What is heat?", **GREEDY)
    pieces = [piece async for piece in backend.stream("What is heat?", **GREEDY)]
    assert len(pieces) > 1
    assert "".join(pieces) == whole


async def test_stream_yields_before_the_response_is_complete(start: Any, tmp_path: Path) -> None:
    slowly = await start(config_file=slow(tmp_path))
    async with aclosing(slowly.stream("hi", **ENDLESS)) as stream:
        assert await asyncio.wait_for(anext(stream), 10)
        assert await at_work(slowly) == 1


async def test_closing_a_stream_stops_the_work(start: Any, tmp_path: Path) -> None:
    slowly = await start(config_file=slow(tmp_path))
    async with aclosing(slowly.stream("hi", **ENDLESS)) as stream:
        await anext(stream)
    await until(lambda: _idle(slowly))
    assert slowly.get_statistics()["pending_prompts"] == 0


async def test_cancelling_the_reader_stops_the_work(start: Any, tmp_path: Path) -> None:
    slowly = await start(config_file=slow(tmp_path))

    async def read() -> None:
        async with aclosing(slowly.stream("hi", **ENDLESS)) as stream:
            async for _ in stream:
                reading.set()

    reading = asyncio.Event()
    task = asyncio.create_task(read())
    await asyncio.wait_for(reading.wait(), 10)
    task.cancel()
    await asyncio.wait([task])
    await until(lambda: _idle(slowly))


async def test_stream_of_refused_prompt_raises(backend: Any) -> None:
    with pytest.raises(PromptError):
        await anext(backend.stream(TOO_LONG))


@pytest.mark.parametrize(("prompt", "options"), [(["a", "b"], {}), ("a", {"n": 2})])
async def test_stream_needs_one_prompt_and_one_response(
    backend: Any, prompt: Any, options: dict[str, int]
) -> None:
    with pytest.raises(UnsupportedTaskError, match="requires a single prompt with n=1"):
        await anext(backend.stream(prompt, **options))


async def test_task_has_response_usage_and_reason() -> None:
    async with Session([embedded()]) as session:
        task = AITask(prompt="hi", max_tokens=4, temperature=0)
        await session.submit_tasks(task)
        await task
    assert isinstance(task.response, str)
    assert task.stdout is task.response
    assert task.return_value is task.response
    assert task.finish_reason == "length"
    assert task.usage["completion_tokens"] == 4


async def test_list_task_has_lists_and_total_usage() -> None:
    async with Session([embedded()]) as session:
        task = AITask(prompt=["a", "b"], max_tokens=4, ignore_eos=True)
        await session.submit_tasks(task)
        await task
    assert len(task.response) == len(task.finish_reason) == 2
    assert task.usage["completion_tokens"] == 8


async def test_list_task_with_failed_prompt_fails_with_all_outcomes() -> None:
    async with Session([embedded()]) as session:
        task = AITask(prompt=["hi", TOO_LONG])
        await session.submit_tasks(task)
        await session.wait_tasks([task], timeout=20)
    assert task.state == "FAILED"
    assert isinstance(task.exception, PartialFailureError)
    assert isinstance(task.exception.results[0], str)


async def test_each_task_has_its_own_timeout(tmp_path: Path) -> None:
    slowly = embedded(config_file=slow(tmp_path))
    async with Session([slowly]) as session:
        short = AITask(prompt="a", timeout=0.3, **ENDLESS)
        long = AITask(prompt="b", timeout=30, max_tokens=20, ignore_eos=True)
        await session.submit_tasks([short, long])
        await session.wait_tasks([short, long], timeout=20)
        assert isinstance(short.exception, TaskTimeoutError)
        assert long.state == "DONE"
        await until(lambda: _idle(slowly))


async def test_cancelling_a_task_stops_the_work(tmp_path: Path) -> None:
    slowly = embedded(config_file=slow(tmp_path))
    async with Session([slowly]) as session:
        task = AITask(prompt=["a", "b", "c"], **ENDLESS)
        await session.submit_tasks(task)
        await until(lambda: _busy(slowly, 3))
        assert await session.cancel(task)
        await until(lambda: _idle(slowly))
    assert task.state == "CANCELED"


async def test_cancelling_generate_at_any_time_stops_the_work(start: Any, tmp_path: Path) -> None:
    slowly = await start(config_file=slow(tmp_path, 5))
    for pauses in range(0, 40, 4):
        generating = asyncio.create_task(slowly.generate(["hi"] * 300, **ENDLESS))
        await asyncio.sleep(pauses / 1000)
        generating.cancel()
        await asyncio.wait([generating])
    await until(lambda: _idle(slowly))
    assert slowly.get_statistics()["pending_prompts"] == 0
    await until(lambda: _nothing_in_flight(slowly))


async def _idle(backend: Any) -> bool:
    return await at_work(backend) == 0


async def _nothing_in_flight(backend: Any) -> bool:
    return all(replica["in_flight"] == 0 for replica in backend.replicas)


async def _busy(backend: Any, number: int) -> bool:
    return await at_work(backend) == number
