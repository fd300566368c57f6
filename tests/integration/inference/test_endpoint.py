"""The endpoint backend on the HTTP servers of other backends."""

from typing import Any

import pytest

from rhapsody import AITask, Session
from rhapsody.backends import EndpointInferenceBackend
from rhapsody.errors import PromptError, ReplicaError
from tests.support.inference import MODEL, slow
from tests.support.waiting import until

SHORT: dict[str, Any] = {"max_tokens": 30, "ignore_eos": True}


async def test_response_equals_the_server_s_own(start: Any) -> None:
    server = await start(use_service=True)
    backend = EndpointInferenceBackend(f"{server.get_endpoint()}/v1")
    sampling: dict[str, Any] = {"temperature": 0, "max_tokens": 20, "seed": 1}
    try:
        ours = await backend.generate(["Why is the sky blue?"] * 3, **sampling)
        assert ours == await server.generate(["Why is the sky blue?"] * 3, **sampling)
        assert backend.model_name == MODEL
    finally:
        await backend.shutdown()


async def test_overlong_prompt_fails_alone(start: Any) -> None:
    server = await start(use_service=True)
    backend = EndpointInferenceBackend(f"{server.get_endpoint()}/v1")
    prompts = ["hi", "word " * 100_000, "hi"]
    try:
        first, second, third = await backend.generate(prompts, return_exceptions=True, **SHORT)
    finally:
        await backend.shutdown()
    assert isinstance(first, str)
    assert isinstance(third, str)
    assert isinstance(second, PromptError)


async def test_wrong_key_fails_the_start(start: Any) -> None:
    server = await start(use_service=True, api_key="right")
    backend = EndpointInferenceBackend(f"{server.get_endpoint()}/v1", api_key="wrong")
    with pytest.raises(ReplicaError, match="it refuses the key") as caught:
        await backend.generate("hi")
    assert "wrong" not in str(caught.value).replace("wrong key", "")
    await backend.shutdown()


async def test_server_that_ends_loses_no_prompt(start: Any, tmp_path: Any) -> None:
    servers = [await start(use_service=True, config_file=slow(tmp_path, 5)) for _ in range(2)]
    urls = [f"{server.get_endpoint()}/v1" for server in servers]
    backend = EndpointInferenceBackend(urls, MODEL, max_concurrency=16)
    async with Session([backend]) as session:
        tasks = [AITask(prompt="hi", **SHORT) for _ in range(200)]
        await session.submit_tasks(tasks)
        await tasks[0]
        await servers[0].shutdown()
        await session.wait_tasks(tasks, timeout=50)
        assert {task.state for task in tasks} == {"DONE"}


async def test_cancelled_task_stops_its_request(start: Any, tmp_path: Any) -> None:
    server = await start(use_service=True, config_file=slow(tmp_path, 50))
    backend = EndpointInferenceBackend(f"{server.get_endpoint()}/v1")
    async with Session([backend]) as session:
        task = AITask(prompt="hi", max_tokens=1500, ignore_eos=True)
        await session.submit_tasks(task)
        await until(lambda: task.state == "RUNNING")
        await session.cancel(task)
        await session.wait_tasks([task], timeout=10)
        assert task.state == "CANCELED"
        assert backend.replicas[0]["in_flight"] == 0


async def test_other_kinds_equal_the_server_s_own(start: Any) -> None:
    server = await start(use_service=True)
    endpoint = EndpointInferenceBackend(f"{server.get_endpoint()}/v1", name="endpoint")
    prompts: dict[str, Any] = {
        "embed": ["heat", "", "tea"],
        "score": ("heat", ["heat", "tea"]),
        "classify": ["a story", "physics"],
    }
    async with Session([server, endpoint]) as session:
        for kind, prompt in prompts.items():
            tasks = [AITask(prompt, kind=kind, backend=b.name) for b in (server, endpoint)]
            await session.submit_tasks(tasks)
            await session.wait_tasks(tasks)
            if kind == "embed":  # the empty text fails alone
                found = [task.exception.results for task in tasks]
                assert [row is None for row in found[1]] == [False, True, False]
                assert found[0][0].tolist() == found[1][0].tolist()
            elif kind == "score":
                assert tasks[0].response.tolist() == tasks[1].response.tolist()
            else:
                assert tasks[0].response == tasks[1].response
                assert tasks[0].usage == tasks[1].usage
