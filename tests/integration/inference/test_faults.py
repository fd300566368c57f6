"""Drills: servers that die or hang, shutdown in the middle, our own process killed."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest

from rhapsody import AITask, Session
from rhapsody.api.errors import PartialFailureError, ReplicaError
from tests.support.inference import ENDLESS, at_work, embedded, slow, until

PROMPTS = 500
SHORT = {"max_tokens": 30, "ignore_eos": True}


async def until_busy(backend: Any) -> None:
    async def busy() -> bool:
        return await at_work(backend) > 50

    await until(busy)


# -- killed -----------------------------------------------------------------------------------


@pytest.mark.parametrize("replicas", [1, 2])
async def test_every_prompt_is_answered_though_a_server_is_killed(
    start: Any, tmp_path: Path, replicas: int
) -> None:
    backend = await start(num_gpus=replicas, config_file=slow(tmp_path, 10))
    generating = asyncio.create_task(backend.generate(["hi"] * PROMPTS, timeout=50, **SHORT))
    await until_busy(backend)
    os.kill(backend.replicas[0]["pid"], signal.SIGKILL)
    responses = await generating
    assert len(responses) == PROMPTS
    assert all(isinstance(response, str) for response in responses)
    await until(lambda: backend.replicas[0]["state"] == "READY")
    assert [replica["restarts"] for replica in backend.replicas] == [1, 0][:replicas]


async def test_without_restarts_every_task_fails_with_the_reason(tmp_path: Path) -> None:
    backend = embedded(use_service=True, max_restarts=0, config_file=slow(tmp_path, 10))
    async with Session([backend]) as session:
        tasks = [AITask(prompt="hi", **SHORT) for _ in range(PROMPTS)]
        await session.submit_tasks(tasks)
        await until(lambda: backend.replicas)
        await until_busy(backend)
        os.kill(backend.replicas[0]["pid"], signal.SIGKILL)
        await session.wait_tasks(tasks, timeout=20)
        assert {task.state for task in tasks} == {"FAILED"}
        assert all(isinstance(task.exception, ReplicaError) for task in tasks)
        assert "exited with code -9, and max_restarts=0 is used up" in str(tasks[0].exception)

        late = AITask(prompt="too late")
        await session.submit_tasks(late)
        await session.wait_tasks([late], timeout=5)
        assert isinstance(late.exception, ReplicaError)

        async with aiohttp.ClientSession(base_url=backend.get_endpoint()) as http:
            for method, path, body in (
                ("GET", "/health", None),
                ("POST", "/generate", {"prompts": ["hi"]}),
                ("GET", "/v1/models", None),
            ):
                async with http.request(method, path, json=body) as answer:
                    assert answer.status == 503


async def test_a_stream_cut_by_a_dead_server_ends_in_an_error(start: Any, tmp_path: Path) -> None:
    backend = await start(config_file=slow(tmp_path))
    stream = backend.stream("hi", **ENDLESS)
    await anext(stream)
    os.kill(backend.replicas[0]["pid"], signal.SIGKILL)
    with pytest.raises(ReplicaError, match="in the middle of the stream"):
        await _drain(stream)


async def test_an_http_stream_cut_by_a_dead_server_ends_in_an_error_event(
    start: Any, tmp_path: Path
) -> None:
    backend = await start(use_service=True, config_file=slow(tmp_path))
    chat = {"messages": [{"role": "user", "content": "hi"}], "stream": True, **ENDLESS}
    async with (
        aiohttp.ClientSession(base_url=backend.get_endpoint()) as http,
        http.post("/v1/chat/completions", json=chat) as answer,
    ):
        await answer.content.readline()
        os.kill(backend.replicas[0]["pid"], signal.SIGKILL)
        lines = [line async for line in answer.content if line.strip()]
    assert b"the model server went away" in lines[-1]


async def test_a_dead_server_leaves_no_process_behind(start: Any) -> None:
    backend = await start()
    server = psutil.Process(backend.replicas[0]["pid"])
    server.kill()
    await until(lambda: backend.replicas[0]["restarts"] == 1)
    await until(lambda: not server.is_running())


# -- hanging ----------------------------------------------------------------------------------


async def test_a_server_that_hangs_is_noticed_and_replaced(start: Any, tmp_path: Path) -> None:
    backend = await start(health_interval=0.1, config_file=slow(tmp_path, 5))
    hanging = backend.replicas[0]["pid"]
    generating = asyncio.create_task(backend.generate(["hi"] * 100, timeout=40, **SHORT))
    await until_busy(backend)
    os.kill(hanging, signal.SIGSTOP)
    assert len(await generating) == 100
    assert backend.replicas[0]["pid"] != hanging


async def test_shutdown_ends_a_server_that_hangs(start: Any) -> None:
    backend = await start()
    server = psutil.Process(backend.replicas[0]["pid"])
    os.kill(server.pid, signal.SIGSTOP)
    await asyncio.wait_for(backend.shutdown(), 15)
    assert not server.is_running()


# -- shutdown ---------------------------------------------------------------------------------


async def test_shutdown_in_the_middle_ends_everything_in_seconds(tmp_path: Path) -> None:
    backend = embedded(use_service=True, max_pending=200, config_file=slow(tmp_path))
    async with Session([backend]) as session:
        tasks = [AITask(prompt="hi", **ENDLESS) for _ in range(PROMPTS)]
        await session.submit_tasks(tasks)
        await until(lambda: backend.replicas)
        generating = asyncio.create_task(backend.generate(["hi"] * 10, **ENDLESS))
        await until_busy(backend)
        began = time.monotonic()
        await backend.shutdown()
        await session.wait_tasks(tasks, timeout=5)
        with pytest.raises(PartialFailureError, match="was shut down"):
            await asyncio.wait_for(generating, 5)
    assert time.monotonic() - began < 10
    assert {task.state for task in tasks} == {"CANCELED"}


async def test_prompts_that_wait_to_be_let_in_end_with_the_service(
    start: Any, tmp_path: Path
) -> None:
    backend = await start(max_pending=20, config_file=slow(tmp_path))
    generating = asyncio.create_task(backend.generate(["hi"] * 100, **ENDLESS))
    await until(lambda: backend.get_statistics()["pending_prompts"] == 20)
    await backend.shutdown()
    with pytest.raises(PartialFailureError, match="100 of 100 prompts failed"):
        await asyncio.wait_for(generating, 5)


async def test_it_can_be_started_again_after_its_end(start: Any) -> None:
    backend = await start(use_service=True)
    await backend.shutdown()
    assert backend.get_endpoint() is None
    await backend.initialize()
    assert backend.get_endpoint() is not None
    assert len(await backend.generate("hi", max_tokens=4)) == 1


async def test_after_its_servers_are_lost_a_new_start_helps(start: Any) -> None:
    backend = await start(max_restarts=0)
    os.kill(backend.replicas[0]["pid"], signal.SIGKILL)
    await until(lambda: backend.replicas[0]["state"] == "FAILED")
    with pytest.raises(PartialFailureError, match="no model server is left"):
        await backend.generate("hi")
    await backend.shutdown()
    assert len(await backend.generate("hi", max_tokens=4)) == 1


# -- our own process --------------------------------------------------------------------------

SCRIPT = """
import asyncio, json, sys
from tests.support.inference import embedded

async def main():
    backend = embedded(num_gpus=2)
    await backend.initialize()
    print(json.dumps([replica["pid"] for replica in backend.replicas]), flush=True)
    {then}

asyncio.run(main())
"""


def run_script(then: str, folder: Path) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT.format(then=then)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(folder)},
    )


async def ended(pids: list[int]) -> None:
    await until(lambda: not any(psutil.pid_exists(pid) for pid in pids))


async def test_servers_end_by_themselves_when_our_process_is_killed(tmp_path: Path) -> None:
    other = tmp_path / "somebody-elses"
    other.touch()
    with run_script("await asyncio.sleep(60)", tmp_path) as process:
        assert process.stdout is not None
        pids = eval(await asyncio.to_thread(process.stdout.readline))
        assert all(psutil.pid_exists(pid) for pid in pids)
        process.kill()
        await asyncio.to_thread(process.wait)
        await ended(pids)
    assert other.exists()
    assert not list(tmp_path.glob("rhapsody-*/*.sock"))


@pytest.mark.parametrize("then", ["pass", "raise SystemExit", "1 / 0"])
async def test_a_program_that_ends_without_shutdown_leaves_nothing(
    tmp_path: Path, then: str
) -> None:
    with run_script(then, tmp_path) as process:
        assert process.stdout is not None
        pids = eval(await asyncio.to_thread(process.stdout.readline))
        await asyncio.to_thread(process.wait, 20)
        await ended(pids)
    assert list(tmp_path.glob("rhapsody-*")) == []


async def _drain(stream: Any) -> None:
    async for _ in stream:
        pass
