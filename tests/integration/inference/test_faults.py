"""Faults: servers that die or hang, shutdown under load, and the killed program."""

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
from rhapsody.errors import PartialFailureError, ReplicaError
from tests.support.inference import ENDLESS, at_work, embedded, slow
from tests.support.waiting import until

PROMPTS = 500
SHORT: dict[str, Any] = {"max_tokens": 30, "ignore_eos": True}


async def until_busy(backend: Any) -> None:
    async def busy() -> bool:
        return await at_work(backend) > 50

    await until(busy)


@pytest.mark.parametrize("replicas", [1, 2])
async def test_killed_server_loses_no_prompt(start: Any, tmp_path: Path, replicas: int) -> None:
    backend = await start(num_gpus=replicas, config_file=slow(tmp_path, 10))
    generating = asyncio.create_task(backend.generate(["hi"] * PROMPTS, timeout=50, **SHORT))
    await until_busy(backend)
    os.kill(backend.replicas[0]["pid"], signal.SIGKILL)
    responses = await generating
    assert len(responses) == PROMPTS
    assert all(isinstance(response, str) for response in responses)
    await until(lambda: backend.replicas[0]["state"] == "READY")
    assert [replica["restarts"] for replica in backend.replicas] == [1, 0][:replicas]


async def test_tasks_fail_with_reason_when_no_server_is_left(tmp_path: Path) -> None:
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
                async with http.request(method, path, json=body) as response:
                    assert response.status == 503


async def test_dead_server_fails_a_stream(start: Any, tmp_path: Path) -> None:
    backend = await start(config_file=slow(tmp_path))
    stream = backend.stream("hi", **ENDLESS)
    await anext(stream)
    os.kill(backend.replicas[0]["pid"], signal.SIGKILL)
    with pytest.raises(ReplicaError, match="in the middle of the stream"):
        await _read_all(stream)


async def test_dead_server_ends_http_stream_in_error_event(start: Any, tmp_path: Path) -> None:
    backend = await start(use_service=True, config_file=slow(tmp_path))
    chat = {"messages": [{"role": "user", "content": "hi"}], "stream": True, **ENDLESS}
    async with (
        aiohttp.ClientSession(base_url=backend.get_endpoint()) as http,
        http.post("/v1/chat/completions", json=chat) as response,
    ):
        await response.content.readline()
        os.kill(backend.replicas[0]["pid"], signal.SIGKILL)
        lines = [line async for line in response.content if line.strip()]
    assert b"the model server went away" in lines[-1]


async def test_dead_server_leaves_no_process(start: Any) -> None:
    backend = await start()
    server = psutil.Process(backend.replicas[0]["pid"])
    server.kill()
    await until(lambda: backend.replicas[0]["restarts"] == 1)
    await until(lambda: not server.is_running())


async def test_hanging_server_is_replaced(start: Any, tmp_path: Path) -> None:
    backend = await start(health_interval=0.1, hang_timeout=1, config_file=slow(tmp_path, 5))
    hanging = backend.replicas[0]["pid"]
    generating = asyncio.create_task(backend.generate(["hi"] * 100, timeout=40, **SHORT))
    await until_busy(backend)
    os.kill(hanging, signal.SIGSTOP)
    assert len(await generating) == 100
    assert backend.replicas[0]["pid"] != hanging


async def test_shutdown_ends_hanging_server(start: Any) -> None:
    backend = await start()
    server = psutil.Process(backend.replicas[0]["pid"])
    os.kill(server.pid, signal.SIGSTOP)
    await asyncio.wait_for(backend.shutdown(), 15)
    assert not server.is_running()


async def test_shutdown_with_pending_prompts_takes_seconds(tmp_path: Path) -> None:
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


async def test_shutdown_fails_prompts_awaiting_admission(start: Any, tmp_path: Path) -> None:
    backend = await start(max_pending=20, config_file=slow(tmp_path))
    generating = asyncio.create_task(backend.generate(["hi"] * 100, **ENDLESS))
    await until(lambda: backend.get_statistics()["pending_prompts"] == 20)
    await backend.shutdown()
    with pytest.raises(PartialFailureError, match="100 of 100 prompts failed"):
        await asyncio.wait_for(generating, 5)


async def test_backend_starts_again_after_shutdown(start: Any) -> None:
    backend = await start(use_service=True)
    await backend.shutdown()
    assert backend.get_endpoint() is None
    await backend.initialize()
    assert backend.get_endpoint() is not None
    assert len(await backend.generate("hi", max_tokens=4)) == 1


async def test_backend_starts_again_after_losing_its_servers(start: Any) -> None:
    backend = await start(max_restarts=0)
    os.kill(backend.replicas[0]["pid"], signal.SIGKILL)
    await until(lambda: backend.replicas[0]["state"] == "FAILED")
    with pytest.raises(PartialFailureError, match="no model server is left"):
        await backend.generate("hi")
    await backend.shutdown()
    assert len(await backend.generate("hi", max_tokens=4)) == 1


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


async def wait_ended(pids: list[int]) -> None:
    await until(lambda: not any(psutil.pid_exists(pid) for pid in pids))


async def test_servers_exit_when_the_program_is_killed(tmp_path: Path) -> None:
    other = tmp_path / "other-file"
    other.touch()
    with run_script("await asyncio.sleep(60)", tmp_path) as process:
        assert process.stdout is not None
        pids = eval(await asyncio.to_thread(process.stdout.readline))
        assert all(psutil.pid_exists(pid) for pid in pids)
        process.kill()
        await asyncio.to_thread(process.wait)
        await wait_ended(pids)
    assert other.exists()
    assert not list(tmp_path.glob("rhapsody-*/*.sock"))


@pytest.mark.parametrize("then", ["pass", "raise SystemExit", "1 / 0"])
async def test_program_without_shutdown_leaves_nothing(tmp_path: Path, then: str) -> None:
    with run_script(then, tmp_path) as process:
        assert process.stdout is not None
        pids = eval(await asyncio.to_thread(process.stdout.readline))
        await asyncio.to_thread(process.wait, 20)
        await wait_ended(pids)
    assert list(tmp_path.glob("rhapsody-*")) == []


async def _read_all(stream: Any) -> None:
    async for _ in stream:
        pass
