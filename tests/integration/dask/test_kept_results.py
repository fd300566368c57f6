"""Results that stay on the Dask cluster, and tasks that use them."""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from rhapsody.backends import DaskExecutionBackend
from rhapsody.errors import BackendError, UnsupportedTaskError
from tests.support.on_dask import SMALL, DaskRunner
from tests.support.waiting import until

pytestmark = pytest.mark.dask


def first_numbers(count: int) -> list[int]:
    return list(range(count))


@dataclass
class Box:
    content: Any


async def test_tasks_accept_kept_result(on_processes: DaskRunner) -> None:
    from distributed import Future

    kept = on_processes.function(first_numbers, 4, keep_on_cluster=True)
    assert await on_processes.run(kept) == ["DONE"]
    assert isinstance(kept["return_value"], Future)
    total = on_processes.function(sum, kept["return_value"])
    assert await on_processes.run(total) == ["DONE"]
    assert total["return_value"] == 6


async def test_kept_results_are_found_in_nested_arguments_and_closures(
    on_processes: DaskRunner,
) -> None:
    kept = [on_processes.function(first_numbers, n, keep_on_cluster=True) for n in (1, 2, 3)]
    await on_processes.run(*kept)
    a, b, c = (task["return_value"] for task in kept)

    def lengths(first: Any, second: Any) -> list[int]:
        return [len(first["a"][0]), len(second.content), len(c)]

    task = on_processes.function(lengths, {"a": [a]}, Box(b))
    assert await on_processes.run(task) == ["DONE"]
    assert task["return_value"] == [1, 2, 3]


async def test_gather_fetches_kept_results(on_processes: DaskRunner) -> None:
    kept = [on_processes.function(first_numbers, n, keep_on_cluster=True) for n in (1, 2)]
    await on_processes.run(*kept)
    futures = [task["return_value"] for task in kept]
    assert await on_processes.backend.gather(futures) == [[0], [0, 1]]
    assert await on_processes.backend.gather(futures[1]) == [0, 1]


async def test_future_of_given_client_is_accepted(cluster: Any) -> None:
    from distributed import Client

    with Client(cluster, set_as_default=False) as client:
        async with DaskExecutionBackend(client=client) as backend:
            runner = DaskRunner(backend)
            task = runner.function(sum, client.scatter([1, 2, 3]))
            assert await runner.run(task) == ["DONE"]
            assert task["return_value"] == 6


async def test_kept_result_is_freed_with_its_last_reference(cluster: Any) -> None:
    from distributed import Client

    async with DaskExecutionBackend(cluster=cluster) as backend:
        runner = DaskRunner(backend)
        task = runner.function(first_numbers, 4, keep_on_cluster=True, key="kept-numbers")
        await runner.run(task)
        with Client(cluster, set_as_default=False) as client:
            assert any("kept-numbers" in keys for keys in client.has_what().values())
            del task["return_value"], task
            runner.reports.log.clear()
            await until(
                lambda: not any("kept-numbers" in keys for keys in client.has_what().values())
            )


async def test_kept_result_ends_with_its_backend() -> None:
    backend = await DaskExecutionBackend(SMALL)
    runner = DaskRunner(backend)
    kept = runner.function(first_numbers, 4, keep_on_cluster=True)
    await runner.run(kept)
    future = kept["return_value"]
    await backend.shutdown()
    with pytest.raises(BackendError, match="not running"):
        await backend.gather(future)
    later = runner.function(sum, future)
    assert await runner.run(later) == ["FAILED"]
    assert isinstance(later["exception"], UnsupportedTaskError)
    assert "not on this backend's cluster" in str(later["exception"])
    await backend.shutdown()


async def test_executable_with_keep_on_cluster_is_refused(on_threads: DaskRunner) -> None:
    task = on_threads.executable("true", keep_on_cluster=True)
    assert await on_threads.run(task) == ["FAILED"]
    assert "'keep_on_cluster' is an option of functions only" in str(task["exception"])


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
def test_kept_arrays_do_not_pass_through_the_client(tmp_path: Path) -> None:
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
    assert int(done.stdout.split()[-1]) < 50, "growth of client and scheduler in MiB"
