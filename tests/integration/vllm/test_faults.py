"""Faults of a real vLLM server: engine killed or stopped, failed start, killed program."""

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import openai
import psutil
import pytest

from rhapsody.backends import DragonVllmInferenceBackend as Backend
from rhapsody.backends.core.service_loop import service_loop
from rhapsody.errors import ConfigurationError, ReplicaError, UnsupportedTaskError
from rhapsody.testing.tiny_llama import make_tiny_llama
from tests.support.processes import wait_gone
from tests.support.vllm_servers import (
    GREEDY,
    make_adapter,
    set_environment,
    tiny_llama,
    vllm_backend,
)
from tests.support.waiting import until, until_blocking

SECRET = "hf_0123456789secret"


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    set_environment(monkeypatch)


@pytest.fixture(scope="module")
def drilled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backend]:
    """One server for all tests that restart it, with an adapter."""
    folder = tmp_path_factory.mktemp("lora")
    config = folder / "config.yaml"
    config.write_text("enforce-eager: true\nenable-lora: true\nmax-lora-rank: 8\n")
    with pytest.MonkeyPatch.context() as patch:
        set_environment(patch)
        backend = vllm_backend(
            config_file=config, health_interval=0.5, hang_timeout=3, use_service=True
        )
        adapter = make_adapter(folder / "tuned")
        service_loop().run_blocking(backend.load_adapter("tuned", adapter))
        yield backend
        service_loop().run_blocking(backend.shutdown())


def engine_of(backend: Backend) -> psutil.Process:
    server = psutil.Process(backend.replicas[0]["pid"])
    [engine] = [p for p in server.children(recursive=True) if "EngineCore" in str(p.cmdline())]
    return engine


async def complete_through(backend: Backend, number: int, sent: int) -> None:
    """Send a signal to the engine while it works on prompts; check that all complete."""
    server, restarts = backend.replicas[0]["pid"], backend.replicas[0]["restarts"]
    generating = asyncio.ensure_future(
        backend.generate(["hi"] * number, timeout=280, max_tokens=60, ignore_eos=True)
    )
    await until(lambda: backend.replicas[0]["in_flight"] > 0)
    os.kill(engine_of(backend).pid, sent)
    assert len(await generating) == number
    assert backend.replicas[0]["restarts"] == restarts + 1
    assert backend.replicas[0]["pid"] != server
    assert wait_gone(server) == []


async def test_prompts_complete_after_the_engine_is_killed(drilled: Backend) -> None:
    await complete_through(drilled, 300, signal.SIGKILL)


async def test_hanging_engine_is_replaced(drilled: Backend) -> None:
    await complete_through(drilled, 100, signal.SIGSTOP)


async def test_restarted_server_has_its_adapters(drilled: Backend, tmp_path: Path) -> None:
    if not drilled.replicas[0]["restarts"]:
        await complete_through(drilled, 10, signal.SIGKILL)
    task = {"prompt": "What is heat?", **GREEDY}
    plain = await drilled.run_one(task)
    tuned = await drilled.run_one({**task, "adapter": "tuned"})
    assert tuned["response"] != plain["response"]

    url = f"{drilled.get_endpoint()}/v1"
    async with openai.AsyncOpenAI(base_url=url, api_key="any", max_retries=0) as client:
        assert "tuned" in [model.id async for model in client.models.list()]
        chat = await client.chat.completions.create(
            model="tuned", messages=[{"role": "user", "content": "What is heat?"}], **GREEDY
        )
    assert chat.choices[0].message.content == tuned["response"]

    with pytest.raises(UnsupportedTaskError, match="no adapter 'other', it has 'tuned'"):
        await drilled.run_one({**task, "adapter": "other"})
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ReplicaError, match="did not load the adapter 'broken'"):
        await drilled.load_adapter("broken", tmp_path)
    assert list(drilled.adapters or ()) == ["tuned"]
    with pytest.raises(ConfigurationError, match="the name 'tuned' is taken"):
        await drilled.load_adapter("tuned", tmp_path)
    await drilled.unload_adapter("tuned")
    assert not drilled.adapters


async def test_weights_are_replaced_and_kept_over_a_restart(
    drilled: Backend, tmp_path: Path
) -> None:
    task = {"prompt": "What is heat?", **GREEDY}
    other = make_tiny_llama(tmp_path / "other", seed=1)
    former = await drilled.run_one(task)
    assert former["model_version"] == drilled.model_version == "0"
    assert await drilled.reload_weights(other, version="trained") == "trained"
    trained = await drilled.run_one(task)
    assert trained["response"] != former["response"]
    assert trained["model_version"] == "trained"

    pid = drilled.replicas[0]["pid"]
    os.kill(pid, signal.SIGKILL)
    again = await drilled.run_one(task)
    assert (again["response"], again["model_version"]) == (trained["response"], "trained")

    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ReplicaError, match=r"has no weights .*; the model keeps its weights of ve"):
        await drilled.reload_weights(empty)
    damaged = tmp_path / "damaged"
    shutil.copytree(other, damaged)
    (damaged / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(ReplicaError, match="keeps its weights of version 'trained'"):
        await drilled.reload_weights(damaged)
    again = await drilled.run_one(task)
    assert (again["response"], again["model_version"]) == (trained["response"], "trained")

    assert await drilled.reload_weights(tiny_llama()) == "1"
    assert (await drilled.run_one(task))["response"] == former["response"]


async def test_failed_start_gives_the_reason_without_secrets(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(f"hf-token: {SECRET}\nmax-model-len: 999999999\n")
    backend = vllm_backend(config_file=config)
    began = time.monotonic()
    with pytest.raises(ReplicaError, match="exited with code 1 while it started") as raised:
        await backend.initialize()
    assert "max_model_len" in raised.value.log_tail
    assert SECRET not in str(raised.value)
    assert time.monotonic() - began < 120
    assert backend.state() == "FAILED"


SCRIPT = """
import asyncio
from tests.support.vllm_servers import vllm_backend
from tests.support.waiting import until

async def main():
    backend = vllm_backend()
    starting = asyncio.ensure_future(backend.initialize())
    await until(lambda: backend.replicas and backend.replicas[0]["pid"])
    print(backend.replicas[0]["pid"], flush=True)
    await starting

asyncio.run(main())
"""


def test_starting_server_ends_with_the_killed_program(tmp_path: Path) -> None:
    tiny_llama()
    with subprocess.Popen(
        [sys.executable, "-c", SCRIPT],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    ) as program:
        assert program.stdout is not None
        server = int(program.stdout.readline())
        # Kill the program once the server has children, or after the time that usually takes.
        with contextlib.suppress(AssertionError):
            until_blocking(lambda: psutil.Process(server).children(), 25)
        children = [child.pid for child in psutil.Process(server).children(recursive=True)]
        program.kill()
        program.wait()
    assert wait_gone(server, *children) == []
