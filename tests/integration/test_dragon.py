"""Runs each module of tests/under_dragon in a Dragon runtime of its own, and whole programs."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from rhapsody.backends import DragonExecutionBackendV3
from rhapsody.errors import BackendError
from tests.support.on_dragon import under_dragon

pytestmark = pytest.mark.dragon

HERE = Path(__file__).parents[1] / "under_dragon"
LIMIT_S = 420
HANG_S = 150
"""A single test that takes longer hangs, also in its teardown: print all stacks, and exit."""


@pytest.mark.timeout(LIMIT_S + 60)
@pytest.mark.parametrize("module", sorted(path.stem for path in HERE.glob("test_*.py")))
def test_under_dragon(module: str, tmp_path: Path) -> None:
    log = tmp_path / "log"
    pytest_itself = Path(sys.executable).with_name("pytest")
    with (
        log.open("w") as output,
        under_dragon(
            str(pytest_itself),
            *("-p", "no:cacheprovider", "-v", "-o", f"faulthandler_timeout={HANG_S}"),
            str(HERE / f"{module}.py"),
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=HERE.parents[1],
        ) as launcher,
    ):
        try:
            result = f"ended with {launcher.wait(LIMIT_S)}"
        except subprocess.TimeoutExpired:
            result = f"still runs after {LIMIT_S} s"
    said = log.read_text(errors="replace")
    assert result == "ended with 0", f"pytest under dragon {result}:\n{said[-20_000:]}"
    assert re.search(r"\d+ passed", said), said[-2000:]


def test_error_without_the_runtime_says_how_to_launch() -> None:
    assert "DRAGON_MY_PUID" not in os.environ
    with pytest.raises(BackendError, match=r"launch it with `dragon script.py`"):
        DragonExecutionBackendV3(num_workers=4)


PROGRAM = """
import asyncio
import multiprocessing as mp
import sys

from radical.asyncflow import WorkflowEngine as Stock

from asyncflow_ext import WorkflowEngine as Ours
from rhapsody import ComputeTask, Session
from rhapsody.backends import DragonExecutionBackendV3


async def workflows(engine):
    backend = await DragonExecutionBackendV3()
    flow = await engine.create(backend=backend)

    @flow.function_task
    async def first(*args):
        return sum(range(1000))

    @flow.function_task
    async def second(*args):
        return [x for x in range(1000) if x % 2 == 0]

    @flow.function_task
    async def third(*args):
        total, even = args
        return total + len(even)

    async def one():
        a = first()
        return await third(a, second(a))

    results = await asyncio.gather(*(one() for _ in range(1000)))
    assert set(results) == {500_000}, set(results)
    await flow.shutdown()


async def main():
    if sys.argv[1] == "set":
        mp.set_start_method("dragon")
    for engine in (Ours, Stock):
        await workflows(engine)
    async with Session([await DragonExecutionBackendV3(num_workers=4)]) as session:
        task = ComputeTask(executable="/usr/bin/echo", arguments=["Hello from Dragon!"])
        await session.submit_tasks([task])
        await task
        print(task.return_value, end="")


if __name__ == "__main__":
    asyncio.run(main())
"""


@pytest.mark.asyncflow
@pytest.mark.timeout(180)
@pytest.mark.parametrize("start_method", ["set", "left alone"])
def test_program_of_1000_workflows_runs(start_method: str, tmp_path: Path) -> None:
    script = tmp_path / "program.py"
    script.write_text(PROGRAM)
    with under_dragon(
        str(script), start_method, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=tmp_path
    ) as launcher:
        said, _ = launcher.communicate(timeout=150)
    assert launcher.returncode == 0, said
    assert "Hello from Dragon!\n" in said
