"""Prompts on a real vLLM server: parameters, streams, structured output, invalid prompts."""

import asyncio
from typing import Any

import aiohttp
import pydantic
import pytest
from radical.asyncflow import WorkflowEngine

from asyncflow_ext import extend
from rhapsody import AITask, Session, image_part
from rhapsody.backends import DragonVllmInferenceBackend as Backend
from rhapsody.errors import PartialFailureError, PromptError, TaskCancelledError
from tests.support.images import png
from tests.support.vllm_servers import ENDLESS, GREEDY
from tests.support.waiting import until

QUESTION = "What is heat?"


class Choice(pydantic.BaseModel):
    """Every field is bounded, since a model with random weights may never end a text."""

    good: bool
    kind: str = pydantic.Field(pattern="^(red|green)$")


ONE_LINE: dict[str, Any] = {"temperature": 0, "max_tokens": 200}


async def chat(http: aiohttp.ClientSession, **request: Any) -> dict[str, Any]:
    async with http.get("/v1/models") as response:
        model = (await response.json())["data"][0]["id"]
    async with http.post("/v1/chat/completions", json={"model": model, **request}) as response:
        body: dict[str, Any] = await response.json()
        assert response.status == 200, body
    return body


@pytest.mark.parametrize("system_prompt", [None, "Be brief."])
async def test_batch_route_and_chat_route_return_the_same_text(
    served: Backend, http: aiohttp.ClientSession, system_prompt: str | None
) -> None:
    messages = [{"role": "user", "content": QUESTION}]
    if system_prompt:
        messages.insert(0, {"role": "system", "content": system_prompt})
    [ours] = await served.generate(QUESTION, system_prompt=system_prompt, **GREEDY)
    theirs = await chat(http, messages=messages, **GREEDY)
    assert ours == theirs["choices"][0]["message"]["content"]


async def test_model_defaults_apply_to_both_routes(
    served: Backend, http: aiohttp.ClientSession
) -> None:
    """The model's generation_config.json sets a temperature of 0.7 and a top_p of 0.95."""
    sampling: dict[str, Any] = {"seed": 7, "max_tokens": 20}
    [ours] = await served.generate(QUESTION, **sampling)
    theirs = await chat(http, messages=[{"role": "user", "content": QUESTION}], **sampling)
    assert ours == theirs["choices"][0]["message"]["content"]


async def test_default_max_tokens_is_the_remaining_context(served: Backend) -> None:
    task = AITask(QUESTION, temperature=0, ignore_eos=True)
    fields = await served.run_one(task)
    assert fields["usage"]["total_tokens"] == 1024


async def test_task_has_usage_and_finish_reason(served: Backend) -> None:
    fields = await served.run_one(AITask(QUESTION, **GREEDY, ignore_eos=True))
    assert fields["finish_reason"] == "length"
    usage = fields["usage"]
    assert usage["completion_tokens"] == 12
    assert usage["total_tokens"] == usage["prompt_tokens"] + 12


async def test_prompts_have_separate_parameters(served: Backend) -> None:
    calls = (served.run_one(AITask(QUESTION, max_tokens=n, ignore_eos=True)) for n in range(1, 20))
    results = await asyncio.gather(*calls)
    assert [one["usage"]["completion_tokens"] for one in results] == list(range(1, 20))


async def test_n_returns_several_responses(served: Backend) -> None:
    [texts] = await served.generate(QUESTION, n=3, max_tokens=5, seed=1)
    assert len(texts) == 3


async def test_same_seed_gives_same_text(served: Backend) -> None:
    texts = await served.generate([QUESTION] * 2, seed=5, max_tokens=20, temperature=1.5)
    assert texts[0] == texts[1]


async def test_stop_string_ends_the_response(served: Backend) -> None:
    [whole] = await served.generate(QUESTION, **GREEDY)
    stop = whole.split()[1]
    [cut] = await served.generate(QUESTION, **GREEDY, stop=[stop])
    assert cut == whole[: whole.index(stop)]


async def test_logprobs(served: Backend) -> None:
    fields = await served.run_one(AITask(QUESTION, **GREEDY, logprobs=2, ignore_eos=True))
    tokens = fields["response_logprobs"]
    assert len(tokens) == 12
    assert all(entry["logprob"] <= 0 and len(entry["top_logprobs"]) == 2 for entry in tokens)
    assert tokens[0]["token"] in fields["response"]


async def test_stream_joins_to_the_plain_response(served: Backend) -> None:
    [plain] = await served.generate(QUESTION, **GREEDY)
    pieces = [piece async for piece in served.stream(QUESTION, **GREEDY)]
    assert len(pieces) > 1
    assert "".join(pieces) == plain


@pytest.mark.parametrize("prompt", [QUESTION, [{"role": "user", "content": QUESTION}]])
@pytest.mark.parametrize("stop", [None, 5])
async def test_on_text_pieces_join_to_the_response(
    served: Backend, prompt: Any, stop: int | None
) -> None:
    [plain] = await served.generate(prompt, **GREEDY, ignore_eos=True)
    options = {**GREEDY, "ignore_eos": True, "stop": [plain[stop : stop + 2]] if stop else None}
    [plain] = await served.generate(prompt, **options)
    session = Session([served])
    texts: list[str] = []
    task = AITask(prompt, **options, on_text=texts.append)
    await session.submit_tasks(task)
    await task
    again = AITask(prompt, **options)
    pieces = [piece async for piece in session.stream(again)]
    assert "".join(texts) == "".join(pieces) == task.response == again.response == plain
    assert len(pieces) > 1 or stop
    assert task.finish_reason == ("stop" if stop else "length")
    assert task.usage["completion_tokens"] > 1
    del session


async def test_cancelled_stream_is_aborted_in_the_engine(
    served: Backend, http: aiohttp.ClientSession
) -> None:
    session = Session([served])
    task = AITask(QUESTION, **ENDLESS)
    stream = session.stream(task)
    await anext(stream)
    assert await session.cancel(task)
    with pytest.raises(TaskCancelledError):
        [piece async for piece in stream]
    await until(lambda: running(http, at_most=0), 5)
    del session


async def test_structured_response_is_streamed_and_parsed(served: Backend) -> None:
    session = Session([served])
    texts: list[str] = []
    task = AITask(QUESTION, response_format=Choice, on_text=texts.append, **ONE_LINE)
    await session.submit_tasks(task)
    await task
    assert Choice.model_validate_json("".join(texts)) == task.parsed
    del session


async def test_ai_task_of_the_stock_engine_is_streamed(served: Backend) -> None:
    flow = extend(await WorkflowEngine.create(backend=served))
    texts: list[str] = []

    @flow.ai_task(on_text=texts.append, **GREEDY)
    async def ask() -> str:
        return QUESTION

    assert await ask() == "".join(texts)
    await flow.shutdown(skip_execution_backend=True)


async def test_session_runs_lists_and_chats(served: Backend) -> None:
    # The session ends with its backends: this one is shared, so it is not closed.
    session = Session([served])
    tasks = [
        AITask([QUESTION, "What is energy?"], **GREEDY),
        AITask([{"role": "user", "content": QUESTION}], **GREEDY),
    ]
    await session.submit_tasks(tasks)
    await asyncio.gather(*tasks)
    assert tasks[0].response[0] == tasks[1].response
    del session


@pytest.mark.parametrize(
    ("bad", "sampling", "says"),
    [
        ("x " * 3000, {}, "maximum"),
        (QUESTION, {"temperature": -1}, "temperature"),
        (QUESTION, {"top_p": 3}, "top_p"),
        (QUESTION, {"max_tokens": "many"}, "max_tokens must be an integer, got 'many'"),
        (QUESTION, {"logit_bias": {"1": "x"}}, ""),
        (QUESTION, {"response_format": {"type": "xml"}}, "response_format must be"),
    ],
)
async def test_invalid_prompt_fails_alone(
    served: Backend, bad: str, sampling: dict[str, Any], says: str
) -> None:
    calls = [served.generate(QUESTION, **GREEDY) for _ in range(5)]
    calls.insert(2, served.generate(bad, return_exceptions=True, **{**GREEDY, **sampling}))
    results = await asyncio.gather(*calls)
    [error] = results.pop(2)
    assert isinstance(error, PromptError)
    assert error.code == 400
    assert says in str(error)
    assert all(isinstance(text, str) for [text] in results)


async def test_response_format_class_returns_an_instance(served: Backend) -> None:
    [made] = await served.generate("A light", response_format=Choice, **ONE_LINE)
    assert isinstance(made, Choice)
    assert made.kind in ("red", "green")


async def test_task_has_text_and_parsed_object(served: Backend) -> None:
    task = AITask(["One", "Two"], response_format=Choice, **ONE_LINE)
    fields = await served.run_one(task)
    assert [type(made) for made in fields["parsed"]] == [Choice, Choice]
    assert fields["parsed"][0] == Choice.model_validate_json(fields["response"][0])


async def test_response_format_schema_returns_parsed_json(served: Backend) -> None:
    schema = {"type": "json_schema", "json_schema": {"name": "c", "schema": {"enum": ["a", "b"]}}}
    fields = await served.run_one(AITask("One", response_format=schema, **ONE_LINE))
    assert fields["parsed"] in ("a", "b")


async def test_truncated_structured_text_is_an_error(served: Backend) -> None:
    [error] = await served.generate(
        "A light", response_format=Choice, max_tokens=2, return_exceptions=True
    )
    assert isinstance(error, PromptError)
    assert "it was cut at max_tokens" in str(error)


async def test_ai_task_of_a_workflow_returns_an_instance(served: Backend) -> None:
    flow = extend(await WorkflowEngine.create(backend=served))

    @flow.ai_task(response_format=Choice, **ONE_LINE)
    async def choose(light: str) -> str:
        return f"Choose for {light}"

    assert isinstance(await choose("the left one"), Choice)
    await flow.shutdown(skip_execution_backend=True)


async def test_cancelled_prompt_is_aborted_in_the_engine(
    served: Backend, http: aiohttp.ClientSession
) -> None:
    generating = asyncio.ensure_future(served.generate([QUESTION] * 20, **ENDLESS))
    await until(lambda: running(http, at_least=10))
    generating.cancel()
    await asyncio.wait([generating])
    await until(lambda: running(http, at_most=0), 5)


async def test_disconnect_aborts_the_request(
    served: Backend, http: aiohttp.ClientSession, url: str
) -> None:
    messages = [{"role": "user", "content": QUESTION}]
    body = {"model": served.model_name, "messages": messages, "stream": True, **ENDLESS}
    async with http.post("/v1/chat/completions", json=body) as response:
        await response.content.readline()
        assert await running(http, at_least=1)
        response.close()
    await until(lambda: running(http, at_most=0), 5)


async def test_model_that_reads_text_only_refuses_images(served: Backend) -> None:
    content = [{"type": "text", "text": QUESTION}, image_part(png(4, 3))]
    chats: list[Any] = [
        [{"role": "user", "content": content}],
        [{"role": "user", "content": QUESTION}],
    ]
    with pytest.raises(PartialFailureError) as caught:
        await served.generate(chats, **GREEDY)
    refused, completed = caught.value.errors
    assert "messages[0].content[1] is of type 'image_url', but the model reads text only" in str(
        refused
    )
    assert completed is None


async def running(
    http: aiohttp.ClientSession, *, at_least: int = 0, at_most: int = 1_000_000
) -> bool:
    """Return whether the engine's number of running requests is within limits."""
    async with http.get("/metrics") as response:
        lines = (await response.text()).splitlines()
    [line] = [line for line in lines if line.startswith("vllm:num_requests_running{")]
    return at_least <= float(line.rpartition(" ")[2]) <= at_most
