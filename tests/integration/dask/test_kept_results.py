"""Results that stay on the cluster, and what then goes through the client: nothing."""

import asyncio
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from rhapsody.api.errors import BackendError, UnsupportedTaskError
from rhapsody.backends import DaskExecutionBackend
from tests.support.on_dask import SMALL, Runner

pytestmark = pytest.mark.dask


def numbers(count: int) -> list[int]:
    return list(range(count))


@dataclass
class Holder:
    inside: Any


async def test_a_kept_result_is_a_future_that_later_tasks_take(on_processes: Runner) -> None:
    from distributed import Future

    kept = on_processes.function(numbers, 4, keep_on_cluster=True)
    assert await on_processes.run(kept) == ["DONE"]
    assert isinstance(kept["return_value"], Future)
    total = on_processes.function(sum, kept["return_value"])
    assert await on_processes.run(total) == ["DONE"]
    assert total["return_value"] == 6


async def test_it_is_found_wherever_it_stands(on_processes: Runner) -> None:
    kept = [on_processes.function(numbers, n, keep_on_cluster=True) for n in (1, 2, 3)]
    await on_processes.run(*kept)
    a, b, c = (task["return_value"] for task in kept)

    def lengths(first: Any, second: Any) -> list[int]:
        return [len(first["a"][0]), len(second.inside), len(c)]

    task = on_processes.function(lengths, {"a": [a]}, Holder(b))
    assert await on_processes.run(task) == ["DONE"]
    assert task["return_value"] == [1, 2, 3]


async def test_it_can_be_brought_here(on_processes: Runner) -> None:
    kept = [on_processes.function(numbers, n, keep_on_cluster=True) for n in (1, 2)]
    await on_processes.run(*kept)
    futures = [task["return_value"] for task in kept]
    assert await on_processes.backend.gather(futures) == [[0], [0, 1]]
    assert await on_processes.backend.gather(futures[1]) == [0, 1]


async def test_a_callers_own_future_is_taken_too(cluster: Any) -> None:
    from distributed import Client

    with Client(cluster, set_as_default=False) as client:
        async with DaskExecutionBackend(client=client) as backend:
            runner = Runner(backend)
            task = runner.function(sum, client.scatter([1, 2, 3]))
            assert await runner.run(task) == ["DONE"]
            assert task["return_value"] == 6


async def test_it_is_freed_when_nobody_holds_it(cluster: Any) -> None:
    from distributed import Client

    async with DaskExecutionBackend(cluster=cluster) as backend:
        runner = Runner(backend)
        task = runner.function(numbers, 4, keep_on_cluster=True, key="kept-numbers")
        await runner.run(task)
        with Client(cluster, set_as_default=False) as client:
            assert any("kept-numbers" in keys for keys in client.has_what().values())
            del task["return_value"], task
            runner.reports.log.clear()
            deadline = time.monotonic() + 10
            while any("kept-numbers" in keys for keys in client.has_what().values()):
                assert time.monotonic() < deadline
                await asyncio.sleep(0.02)


async def test_it_ends_with_the_backend_that_kept_it() -> None:
    backend = await DaskExecutionBackend(SMALL)
    runner = Runner(backend)
    kept = runner.function(numbers, 4, keep_on_cluster=True)
    await runner.run(kept)
    future = kept["return_value"]
    await backend.shutdown()
    with pytest.raises(BackendError, match="does not run"):
        await backend.gather(future)
    later = runner.function(sum, future)
    assert await runner.run(later) == ["FAILED"]
    assert isinstance(later["exception"], UnsupportedTaskError)
    assert "not on this backend's cluster" in str(later["exception"])
    await backend.shutdown()


async def test_executables_have_nothing_to_keep(on_threads: Runner) -> None:
    task = on_threads.executable("true", keep_on_cluster=True)
    assert await on_threads.run(task) == ["FAILED"]
    assert "'keep_on_cluster' is for functions" in str(task["exception"])


PROGRAM = """
import asyncio, resource
from radical.asyncflow import WorkflowEngine
from rhapsody.backends import DaskExecutionBackend

KEEP = {"keep_on_cluster": True}

async def main():
    backend = await DaskExecutionBackend({"n_workers": 2, "threads_per_worker": 1})
    flow = await WorkflowEngine.create(backend=backend)

    @flow.function_task
    async def make(value, task_description=KEEP):
        return bytes([value]) * (100 * 1024 * 1024)

    @flow.function_task
    async def add(left, right, task_description=KEEP):
        return bytes([left[0] + right[0]]) + left[1:]

    @flow.function_task
    async def first(array):
        return array[0]

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    total = add(add(make(1), make(2)), make(3))
    assert await first(total) == 6
    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
    await flow.shutdown()

if __name__ == "__main__":
    asyncio.run(main())
"""


@pytest.mark.asyncflow
def test_arrays_of_100_mib_pass_the_client_by(tmp_path: Path) -> None:
    script = tmp_path / "program.py"
    script.write_text(PROGRAM)
    done = subprocess.run(
        [sys.executable, str(script)],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-1]) < 50, "MiB by which client and scheduler have grown"
