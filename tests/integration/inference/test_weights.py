"""Weights of the embedded model, a text, replaced on its servers while they respond."""

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from asyncflow_ext import WorkflowEngine
from rhapsody import AITask, Session
from rhapsody.backends import ConcurrentExecutionBackend
from rhapsody.errors import ConfigurationError, ReplicaError
from tests.support.inference import at_work, slow
from tests.support.waiting import until

TEXT = "Penguins swim under the ice. " * 3
ASKED: dict[str, Any] = {"temperature": 0, "max_tokens": 40}


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "penguins.txt"
    path.write_text(TEXT)
    return path


def states(backend: Any) -> list[str]:
    return [replica["state"] for replica in backend.replicas]


async def test_responses_have_the_version_of_their_weights(start: Any, weights: Path) -> None:
    backend = await start(replicas=2, use_service=True)
    assert backend.model_version == "0"
    former = await backend.run_one({"prompt": "What is heat?", **ASKED})
    assert former["model_version"] == "0"
    assert await backend.reload_weights(weights) == backend.model_version == "1"
    async with Session([backend]) as session:
        one, several = AITask("heat", **ASKED), AITask(["heat", "cold"], **ASKED)
        vectors = AITask(["heat"], kind="embed")
        await session.submit_tasks([one, several, vectors])
        await session.wait_tasks([one, several, vectors])
        assert "enguins swim" in one.response
        assert (one.model_version, several.model_version) == ("1", ["1", "1"])
        assert vectors.model_version == ["1"]

        async with aiohttp.ClientSession(base_url=backend.get_endpoint()) as http:
            chat = {"messages": [{"role": "user", "content": "heat"}], **ASKED}
            async with http.post("/v1/chat/completions", json=chat) as response:
                assert response.headers["X-Rhapsody-Model-Version"] == "1"
            body = {"prompts": ["heat"], "max_tokens": 3}
            async with http.post("/generate", json=body) as response:
                assert (await response.json())["model_versions"] == ["1"]


async def test_restarted_server_has_the_weights(start: Any, weights: Path) -> None:
    backend = await start(health_interval=0.1)
    await backend.reload_weights(weights, version="penguins")
    pid = backend.replicas[0]["pid"]
    os.kill(pid, signal.SIGKILL)
    await until(lambda: states(backend) == ["READY"] and backend.replicas[0]["pid"] != pid)
    result = await backend.run_one({"prompt": "What is heat?", **ASKED})
    assert result["model_version"] == "penguins"
    assert "enguins swim" in result["response"]
    await backend.shutdown()
    result = await backend.run_one({"prompt": "What is heat?", **ASKED})
    assert result["model_version"] == "penguins"


async def test_server_that_dies_during_a_reload_gets_the_weights(start: Any, weights: Path) -> None:
    backend = await start(replicas=2, health_interval=0.1)
    pid = backend.replicas[1]["pid"]
    os.kill(pid, signal.SIGSTOP)
    reloading = asyncio.ensure_future(backend.reload_weights(weights))
    await until(lambda: backend.replicas[1]["state"] == "DRAINING")
    os.kill(pid, signal.SIGKILL)
    assert await reloading == "1"
    await until(lambda: states(backend) == ["READY"] * 2 and backend.replicas[1]["pid"] != pid)
    results = await asyncio.gather(
        *(backend.run_one({"prompt": "heat", "max_tokens": 3}) for _ in range(8))
    )
    assert {result["model_version"] for result in results} == {"1"}


async def start_at_work(start: Any, folder: Path) -> tuple[Any, asyncio.Future[Any]]:
    """Start a backend, and return it with the result of a prompt that it works on."""
    backend = await start(config_file=slow(folder, 5))
    running = asyncio.ensure_future(
        backend.run_one({"prompt": "heat", "max_tokens": 60, "ignore_eos": True})
    )
    await until(lambda: at_work(backend))
    return backend, running


async def test_prompts_in_progress_end_with_the_former_weights(
    start: Any, weights: Path, tmp_path: Path
) -> None:
    backend, running = await start_at_work(start, tmp_path)
    reloading = asyncio.ensure_future(backend.reload_weights(weights))
    await until(lambda: states(backend) == ["DRAINING"])
    later = asyncio.ensure_future(backend.run_one({"prompt": "heat", "max_tokens": 3}))
    assert (await running)["model_version"] == "0"
    assert (await later)["model_version"] == "1"
    assert await reloading == "1"


async def test_reload_ends_if_a_server_does_not_finish_its_requests_in_time(
    start: Any, weights: Path, tmp_path: Path
) -> None:
    backend, running = await start_at_work(start, tmp_path)
    with pytest.raises(ReplicaError, match=r"its requests in 0\.01 s; .*version '0'"):
        await backend.reload_weights(weights, drain_seconds=0.01)
    assert (await running)["model_version"] == "0"
    assert (states(backend), backend.replicas[0]["restarts"]) == (["READY"], 0)


async def test_chat_waits_for_the_only_server(start: Any, weights: Path, tmp_path: Path) -> None:
    backend = await start(config_file=slow(tmp_path, 5), use_service=True)
    asked = {"prompt": "heat", "max_tokens": 60, "ignore_eos": True}
    running = asyncio.ensure_future(backend.run_one(asked))
    await until(lambda: at_work(backend))
    reloading = asyncio.ensure_future(backend.reload_weights(weights))
    await until(lambda: states(backend) == ["DRAINING"])
    chat = {"messages": [{"role": "user", "content": "heat"}], "max_tokens": 3}
    async with (
        aiohttp.ClientSession(base_url=backend.get_endpoint()) as http,
        http.post("/v1/chat/completions", json=chat) as response,
    ):
        assert response.status == 200
        assert response.headers["X-Rhapsody-Model-Version"] == "1"
    await asyncio.gather(running, reloading)


async def test_refused_weights_change_nothing(start: Any, tmp_path: Path) -> None:
    backend = await start(replicas=2)
    empty = tmp_path / "empty.txt"
    empty.touch()
    with pytest.raises(ReplicaError, match=r"did not load the weights of .*version '0'"):
        await backend.reload_weights(empty)
    with pytest.raises(ConfigurationError, match="there are no weights at"):
        await backend.reload_weights(tmp_path / "none")
    assert (backend.model_version, states(backend)) == ("0", ["READY", "READY"])
    assert [replica["restarts"] for replica in backend.replicas] == [0, 0]


async def ask_during_reload(backend: Any, weights: Path, ask: Any) -> Any:
    """Ask for a response while the only server finishes a prompt before a reload."""
    asked = {"prompt": "heat", "max_tokens": 60, "ignore_eos": True}
    running = asyncio.ensure_future(backend.run_one(asked))
    await until(lambda: at_work(backend))
    reloading = asyncio.ensure_future(backend.reload_weights(weights))
    await until(lambda: states(backend) == ["DRAINING"])
    response = await ask()
    await asyncio.gather(running, reloading)
    return response


async def test_session_does_not_journal_a_response_of_later_weights(
    start: Any, weights: Path, tmp_path: Path
) -> None:
    async def ask() -> Any:
        task = AITask("What is heat?", **ASKED)
        await session.submit_tasks(task)
        return await task

    backend = await start(config_file=slow(tmp_path, 5))
    async with Session([backend], journal=tmp_path / "journal") as session:
        during = await ask_during_reload(backend, weights, ask)
    backend = await start()
    async with Session([backend], journal=tmp_path / "journal") as session:
        after = await ask()
    assert (during.model_version, after.model_version) == ("1", "0")
    assert after.from_journal is None


@pytest.mark.asyncflow
async def test_engine_does_not_journal_a_response_of_later_weights(
    start: Any, weights: Path, tmp_path: Path
) -> None:
    responses = []
    for reloads in (True, False):
        model = await start(config_file=slow(tmp_path, 5))
        backends = [ConcurrentExecutionBackend("thread"), model]
        async with WorkflowEngine.create(backend=backends, journal=tmp_path / "journal") as flow:

            @flow.ai_task(**ASKED)
            async def ask() -> str:
                return "What is heat?"

            asked = ask_during_reload(model, weights, ask) if reloads else ask()
            responses.append(await asked)
    assert ["enguins" in response for response in responses] == [True, False]


@pytest.mark.asyncflow
async def test_journal_asks_other_weights_again(start: Any, weights: Path, tmp_path: Path) -> None:
    answers = []
    for version in (None, "v2", "v2"):
        model = await start()
        if version:
            await model.reload_weights(weights, version)
        backends = [ConcurrentExecutionBackend("thread"), model]
        async with WorkflowEngine.create(backend=backends, journal=tmp_path / "journal") as flow:

            @flow.ai_task(**ASKED)
            async def ask() -> str:
                return "What is heat?"

            answers.append((await ask(), model.get_statistics()["batched_prompts"]))
    assert answers[0][0] != answers[1][0] == answers[2][0]
    assert [sent for _, sent in answers] == [1, 1, 0]
