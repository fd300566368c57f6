"""Drills on a real vLLM server: its engine killed or stopped, a start that fails, our own death."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from rhapsody.api.errors import ReplicaError
from rhapsody.backends import DragonVllmInferenceBackend as Backend
from rhapsody.backends.service import service_loop
from tests.support.inference import until
from tests.support.processes import wait_gone
from tests.support.vllm_servers import set_environment, tiny_llama, vllm_backend

SECRET = "hf_0123456789secret"


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    set_environment(monkeypatch)


@pytest.fixture(scope="module")
def drilled() -> Iterator[Backend]:
    """One server for both drills, each of which restarts it."""
    with pytest.MonkeyPatch.context() as patch:
        set_environment(patch)
        backend = vllm_backend(health_interval=0.5, hang_timeout=3)
        service_loop().run_blocking(backend.initialize())
        yield backend
        service_loop().run_blocking(backend.shutdown())


def engine_of(backend: Backend) -> psutil.Process:
    server = psutil.Process(backend.replicas[0]["pid"])
    [engine] = [p for p in server.children(recursive=True) if "EngineCore" in str(p.cmdline())]
    return engine


async def answered_through(backend: Backend, number: int, sent: int) -> None:
    """Send prompts, have a signal hit the engine while it works on them, get them all answered."""
    server, restarts = backend.replicas[0]["pid"], backend.replicas[0]["restarts"]
    asking = asyncio.ensure_future(
        backend.generate(["hi"] * number, timeout=280, max_tokens=60, ignore_eos=True)
    )
    await until(lambda: backend.replicas[0]["in_flight"] > 0)
    os.kill(engine_of(backend).pid, sent)
    assert len(await asking) == number
    assert backend.replicas[0]["restarts"] == restarts + 1
    assert backend.replicas[0]["pid"] != server
    assert wait_gone(server) == []


async def test_every_prompt_is_answered_though_the_engine_is_killed(drilled: Backend) -> None:
    await answered_through(drilled, 300, signal.SIGKILL)


async def test_an_engine_that_hangs_is_noticed_and_replaced(drilled: Backend) -> None:
    await answered_through(drilled, 100, signal.SIGSTOP)


async def test_a_start_that_fails_says_why_and_no_secret(tmp_path: Path) -> None:
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

async def main():
    backend = vllm_backend()
    starting = asyncio.ensure_future(backend.initialize())
    while not backend.replicas or backend.replicas[0]["pid"] is None:
        await asyncio.sleep(0.02)
    print(backend.replicas[0]["pid"], flush=True)
    await starting

asyncio.run(main())
"""


def test_a_server_that_is_starting_does_not_survive_our_death(tmp_path: Path) -> None:
    tiny_llama()
    with subprocess.Popen(
        [sys.executable, "-c", SCRIPT],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    ) as program:
        assert program.stdout is not None
        server = int(program.stdout.readline())
        # Until it has children of its own, or a little longer than it takes to be that far.
        end = time.monotonic() + 25
        while not psutil.Process(server).children() and time.monotonic() < end:
            time.sleep(0.05)
        children = [child.pid for child in psutil.Process(server).children(recursive=True)]
        program.kill()
        program.wait()
    assert wait_gone(server, *children) == []
