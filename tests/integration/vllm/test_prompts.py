"""Prompts on a real vLLM server: parameters, shapes, streams, structured output, bad prompts."""

import asyncio
from typing import Any

import aiohttp
import pydantic
import pytest
from radical.asyncflow import WorkflowEngine

from asyncflow_ext import extend
from rhapsody import AITask, Session
from rhapsody.api.errors import PromptError, TaskCancelledError
from rhapsody.backends import DragonVllmInferenceBackend as Backend
from tests.support.inference import until
from tests.support.vllm_servers import ENDLESS, GREEDY

QUESTION = "What is heat?"


class Choice(pydantic.BaseModel):
    """Every field is bounded: a model with random weights knows no end."""

    good: bool
    kind: str = pydantic.Field(pattern="^(red|green)$")


ONE_LINE: dict[str, Any] = {"temperature": 0, "max_tokens": 200}


async def chat(http: aiohttp.ClientSession, **body: Any) -> dict[str, Any]:
    async with http.get("/v1/models") as answer:
        model = (await answer.json())["data"][0]["id"]
    async with http.post("/v1/chat/completions", json={"model": model, **body}) as answer:
        answered: dict[str, Any] = await answer.json()
        assert answer.status == 200, answered
    return answered


@pytest.mark.parametrize("system_prompt", [None, "Be brief."])
async def test_the_batch_route_and_the_chat_route_say_the_same(
    served: Backend, http: aiohttp.ClientSession, system_prompt: str | None
) -> None:
    messages = [{"role": "user", "content": QUESTION}]
    if system_prompt:
        messages.insert(0, {"role": "system", "content": system_prompt})
    [ours] = await served.generate(QUESTION, system_prompt=system_prompt, **GREEDY)
    theirs = await chat(http, messages=messages, **GREEDY)
    assert ours == theirs["choices"][0]["message"]["content"]


async def test_the_models_own_defaults_hold_for_both_routes(
    served: Backend, http: aiohttp.ClientSession
) -> None:
    """The model's generation_config.json asks for a temperature of 0.7 and top_p of 0.95."""
    sampling = {"seed": 7, "max_tokens": 20}
    [ours] = await served.generate(QUESTION, **sampling)
    theirs = await chat(http, messages=[{"role": "user", "content": QUESTION}], **sampling)
    assert ours == theirs["choices"][0]["message"]["content"]


async def test_without_max_tokens_there_is_the_whole_context(served: Backend) -> None:
    task = AITask(QUESTION, temperature=0, ignore_eos=True)
    fields = await served.answer(task)
    assert fields["usage"]["total_tokens"] == 1024


async def test_a_task_tells_tokens_and_why_it_ended(served: Backend) -> None:
    fields = await served.answer(AITask(QUESTION, **GREEDY, ignore_eos=True))
    assert fields["finish_reason"] == "length"
    usage = fields["usage"]
    assert usage["completion_tokens"] == 12
    assert usage["total_tokens"] == usage["prompt_tokens"] + 12


async def test_every_prompt_has_its_own_parameters(served: Backend) -> None:
    asked = (served.answer(AITask(QUESTION, max_tokens=n, ignore_eos=True)) for n in range(1, 20))
    answered = await asyncio.gather(*asked)
    assert [a["usage"]["completion_tokens"] for a in answered] == list(range(1, 20))


async def test_n_responses_to_one_prompt(served: Backend) -> None:
    [texts] = await served.generate(QUESTION, n=3, max_tokens=5, seed=1)
    assert len(texts) == 3


async def test_the_same_seed_says_the_same(served: Backend) -> None:
    texts = await served.generate([QUESTION] * 2, seed=5, max_tokens=20, temperature=1.5)
    assert texts[0] == texts[1]


async def test_a_stop_string_ends_the_response(served: Backend) -> None:
    [whole] = await served.generate(QUESTION, **GREEDY)
    stop = whole.split()[1]
    [cut] = await served.generate(QUESTION, **GREEDY, stop=[stop])
    assert cut == whole[: whole.index(stop)]


async def test_logprobs(served: Backend) -> None:
    fields = await served.answer(AITask(QUESTION, **GREEDY, logprobs=2, ignore_eos=True))
    tokens = fields["response_logprobs"]
    assert len(tokens) == 12
    assert all(entry["logprob"] <= 0 and len(entry["top_logprobs"]) == 2 for entry in tokens)
    assert tokens[0]["token"] in fields["response"]


async def test_a_stream_joins_to_the_plain_response(served: Backend) -> None:
    [plain] = await served.generate(QUESTION, **GREEDY)
    pieces = [piece async for piece in served.stream(QUESTION, **GREEDY)]
    assert len(pieces) > 1
    assert "".join(pieces) == plain


@pytest.mark.parametrize("prompt", [QUESTION, [{"role": "user", "content": QUESTION}]])
@pytest.mark.parametrize("stop", [None, 5])
async def test_the_text_of_a_task_joins_to_its_response(
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


async def test_cancelling_a_stream_aborts_in_the_engine(
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


async def test_a_structured_response_is_streamed_and_parsed(served: Backend) -> None:
    session = Session([served])
    texts: list[str] = []
    task = AITask(QUESTION, response_format=Choice, on_text=texts.append, **ONE_LINE)
    await session.submit_tasks(task)
    await task
    assert Choice.model_validate_json("".join(texts)) == task.parsed
    del session


async def test_an_ai_task_of_the_stock_engine_is_streamed(served: Backend) -> None:
    flow = extend(await WorkflowEngine.create(backend=served))
    texts: list[str] = []

    @flow.ai_task(on_text=texts.append, **GREEDY)
    async def ask() -> str:
        return QUESTION

    assert await ask() == "".join(texts)
    await flow.shutdown(skip_execution_backend=True)


async def test_a_session_runs_lists_and_chats(served: Backend) -> None:
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
        (QUESTION, {"max_tokens": "many"}, "max_tokens='many' is of the wrong type"),
        (QUESTION, {"logit_bias": {"1": "x"}}, ""),
        (QUESTION, {"response_format": {"type": "xml"}}, "response_format must be"),
    ],
)
async def test_a_bad_prompt_fails_alone(
    served: Backend, bad: str, sampling: dict[str, Any], says: str
) -> None:
    asked = [served.generate(QUESTION, **GREEDY) for _ in range(5)]
    asked.insert(2, served.generate(bad, return_exceptions=True, **{**GREEDY, **sampling}))
    answered = await asyncio.gather(*asked)
    [error] = answered.pop(2)
    assert isinstance(error, PromptError)
    assert error.code == 400
    assert says in str(error)
    assert all(isinstance(text, str) for [text] in answered)


async def test_a_class_gives_an_instance_of_it(served: Backend) -> None:
    [made] = await served.generate("A light", response_format=Choice, **ONE_LINE)
    assert isinstance(made, Choice)
    assert made.kind in ("red", "green")


async def test_a_task_has_the_text_and_the_object(served: Backend) -> None:
    task = AITask(["One", "Two"], response_format=Choice, **ONE_LINE)
    fields = await served.answer(task)
    assert [type(made) for made in fields["parsed"]] == [Choice, Choice]
    assert fields["parsed"][0] == Choice.model_validate_json(fields["response"][0])


async def test_a_schema_gives_what_json_says(served: Backend) -> None:
    schema = {"type": "json_schema", "json_schema": {"name": "c", "schema": {"enum": ["a", "b"]}}}
    fields = await served.answer(AITask("One", response_format=schema, **ONE_LINE))
    assert fields["parsed"] in ("a", "b")


async def test_a_text_that_was_cut_is_an_error_that_says_so(served: Backend) -> None:
    [error] = await served.generate(
        "A light", response_format=Choice, max_tokens=2, return_exceptions=True
    )
    assert isinstance(error, PromptError)
    assert "it was cut at max_tokens" in str(error)


async def test_an_ai_task_of_a_workflow_is_of_the_class(served: Backend) -> None:
    flow = extend(await WorkflowEngine.create(backend=served))

    @flow.ai_task(response_format=Choice, **ONE_LINE)
    async def choose(light: str) -> str:
        return f"Choose for {light}"

    assert isinstance(await choose("the left one"), Choice)
    await flow.shutdown(skip_execution_backend=True)


async def test_a_cancelled_prompt_is_aborted_in_the_engine(
    served: Backend, http: aiohttp.ClientSession
) -> None:
    answering = asyncio.ensure_future(served.generate([QUESTION] * 20, **ENDLESS))
    await until(lambda: running(http, at_least=10))
    answering.cancel()
    await asyncio.wait([answering])
    await until(lambda: running(http, at_most=0), 5)


async def test_a_client_that_leaves_aborts_its_request(
    served: Backend, http: aiohttp.ClientSession, url: str
) -> None:
    messages = [{"role": "user", "content": QUESTION}]
    body = {"model": served.model_name, "messages": messages, "stream": True, **ENDLESS}
    async with http.post("/v1/chat/completions", json=body) as answer:
        await answer.content.readline()
        assert await running(http, at_least=1)
        answer.close()
    await until(lambda: running(http, at_most=0), 5)


async def running(
    http: aiohttp.ClientSession, *, at_least: int = 0, at_most: int = 1_000_000
) -> bool:
    """Ask the engine itself how many requests it works on."""
    async with http.get("/metrics") as answer:
        lines = (await answer.text()).splitlines()
    [line] = [line for line in lines if line.startswith("vllm:num_requests_running{")]
    return at_least <= float(line.rpartition(" ")[2]) <= at_most
