"""Worker processes that die."""

import asyncio
import functools
import sys
from collections.abc import Callable
from concurrent.futures import (
    ProcessPoolExecutor,
)
from pathlib import Path

import pytest

from rhapsody.api.errors import (
    WorkerDied,
)
from rhapsody.backends import ConcurrentExecutionBackend
from tests.support import functions
from tests.support.concurrent_runner import Runner


@pytest.mark.parametrize("ending", [functools.partial(functions.leave, 3), functions.kill_oneself])
async def test_the_task_that_ran_fails_and_the_pool_is_of_use(
    ending: Callable[[], None], processes: Runner
) -> None:
    with pytest.raises(WorkerDied, match="died while this task ran"):
        await processes.call(ending)
    assert await processes.call(functions.add, 1) == 2


async def test_tasks_that_had_not_started_run_in_the_next_pool(processes: Runner) -> None:
    tasks = [processes.function(functions.leave, 1)]
    tasks += [processes.function(functions.add, n) for n in range(6)]
    states = await processes.run(*tasks)
    assert states == ["FAILED", *["DONE"] * 6]
    assert [task["return_value"] for task in tasks[1:]] == [1, 2, 3, 4, 5, 6]


async def test_tasks_survive_any_number_of_pools_that_others_break(processes: Runner) -> None:
    breakers = [processes.function(functions.leave, 1) for _ in range(5)]
    last = processes.function(functions.add, 1)
    states = await processes.run(*breakers, last)
    assert states == [*["FAILED"] * 5, "DONE"]
    assert {type(task["exception"]) for task in breakers} == {WorkerDied}


async def test_a_pool_that_dies_before_any_task_starts_is_given_up(tmp_path: Path) -> None:
    script = tmp_path / "unguarded.py"
    script.write_text(
        "import asyncio\n"
        "from rhapsody.backends import ConcurrentExecutionBackend\n"
        "async def main():\n"
        "    backend = ConcurrentExecutionBackend('process', max_workers=1)\n"
        "    ended = asyncio.Event()\n"
        "    backend.register_callback(lambda task, state: ended.set())\n"
        "    task = {'uid': 'task.1', 'function': print}\n"
        "    await backend.submit_tasks([task])\n"
        "    await ended.wait()\n"
        "    print(task['exception'])\n"
        "    await backend.shutdown()\n"
        "asyncio.run(main())\n"
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(script),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    said, _ = await asyncio.wait_for(process.communicate(), 50)
    assert b"if __name__ == '__main__'" in said


async def test_a_callers_broken_pool_fails_its_tasks() -> None:
    with ProcessPoolExecutor(1) as executor:
        async with ConcurrentExecutionBackend(executor) as backend:
            runner = Runner(backend)
            for _ in range(2):
                with pytest.raises(WorkerDied):
                    await runner.call(functions.leave, 1)
