"""Large arguments and results on Dask clusters whose workers share this machine's memory."""

import asyncio
import gc
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio

from rhapsody.backends import DaskExecutionBackend
from rhapsody.backends.dask.client import DaskClient
from rhapsody.backends.data import store
from rhapsody.scratch import Scratch
from tests.support.arrays import LENGTH, add_one, change, make, make_async, same, total
from tests.support.on_dask import DaskRunner
from tests.support.waiting import until

pytestmark = [
    pytest.mark.dask,
    pytest.mark.timeout(120),
    pytest.mark.skipif(sys.platform != "linux", reason="needs the page map of Linux"),
]


def drop_values(task: dict[str, Any]) -> None:
    """Drop the arguments and the result of a task, which the record of reports keeps."""
    task.update(args=(), return_value=None, exception=None)


class Program:
    """A backend with a store for large data, and tasks for it."""

    def __init__(self, backend: DaskExecutionBackend) -> None:
        self.runner = DaskRunner(backend)

    @property
    def client(self) -> DaskClient:
        client = self.runner.backend._dask_client
        assert isinstance(client, DaskClient)
        return client

    async def run(self, function: Any, *args: Any, **options: Any) -> Any:
        [result] = await self.run_all((function, *args), **options)
        return result

    async def run_all(self, *calls: tuple[Any, ...], **options: Any) -> list[Any]:
        tasks = [self.runner.function(*call, **options) for call in calls]
        await self.runner.run(*tasks)
        results = [task.get("return_value", task.get("exception")) for task in tasks]
        for task in tasks:
            drop_values(task)
        return results

    @property
    def folders(self) -> tuple[str, str]:
        data = self.client._data
        assert data is not None
        return data.folders.memory, data.folders.disk

    def segments(self) -> list[str]:
        """The segments that exist."""
        return [
            name for folder in self.folders for name in os.listdir(folder) if name[-1].isdigit()
        ]

    async def is_empty(self) -> None:
        """Wait until no segment is in use, nor kept."""
        await until(lambda: gc.collect() < 0 or self.segments() == [])


@pytest_asyncio.fixture
async def program(cluster: Any, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Program]:
    monkeypatch.setattr(store, "KEEP_SECONDS", 0.05)
    async with DaskExecutionBackend(cluster=cluster) as backend:
        yield Program(backend)


async def test_result_is_an_array_that_the_program_may_change(program: Program) -> None:
    for function in (make, make_async):
        result = await program.run(function)
        assert program.segments()
        result += 1
        assert result.sum() == 2 * LENGTH
        assert await program.run(total, result) == 2 * LENGTH
        del result
    await program.is_empty()


async def test_chain_sends_no_data_through_dask(program: Program) -> None:
    from distributed.protocol import pickle as dask_pickle

    sizes: list[int] = []
    real = dask_pickle.dumps

    def dumps(*args: Any, **options: Any) -> bytes:
        data: bytes = real(*args, **options)
        sizes.append(len(data))
        return data

    value = await program.run(make)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dask_pickle, "dumps", dumps)
        for _ in range(4):
            value = await program.run(add_one, value)
    assert sizes
    assert max(sizes) < 100_000
    assert value[-1] == 5
    del value
    await program.is_empty()


@pytest.mark.parametrize(
    "value",
    [b"x" * 1_000_000, bytearray(1_000_000), "text" * 300_000, [b"y" * 100_000] * 5],
    ids=["bytes", "bytearray", "text", "list of bytes"],
)
async def test_large_values_of_other_types_come_back(program: Program, value: Any) -> None:
    assert await program.run(same, value) == value
    await program.is_empty()


async def test_many_arrays_in_one_value(program: Program) -> None:
    value = {n: [np.full(10_000, n)] for n in range(1000)}
    result = await program.run(same, value)
    assert [result[n][0][-1] for n in range(1000)] == list(range(1000))
    del result
    await program.is_empty()


async def test_task_that_changes_its_argument_changes_nobody_elses(program: Program) -> None:
    array = await program.run(make)
    assert (
        await program.run_all(*((f, array) for f in (change, total) * 3))
        == [
            -LENGTH,
            LENGTH,
        ]
        * 3
    )
    assert array.sum() == LENGTH
    assert await program.run(total, array) == LENGTH


async def test_segments_that_are_written_again_never_show_old_data(program: Program) -> None:
    for fill in range(12):
        array = await program.run(make, float(fill))
        assert await program.run_all((change, array), (total, array)) == [-LENGTH, fill * LENGTH]
        assert array.sum() == fill * LENGTH
        del array
    await program.is_empty()


async def test_untouched_argument_that_is_returned_stays_in_its_segment(program: Program) -> None:
    array = await program.run(make)
    again = await program.run(same, array)
    assert len(program.segments()) == 1
    again[0] = 5
    assert array[0] == 1
    del array, again
    await program.is_empty()


def keep(array: Any) -> None:
    np.kept = array[10:20]  # type: ignore[attr-defined]


def kept() -> Any:
    return np.kept.copy()  # type: ignore[attr-defined]


def forget() -> None:
    del np.kept  # type: ignore[attr-defined]


async def test_view_that_a_task_keeps_never_changes(program: Program, cluster: Any) -> None:
    where = {"workers": [cluster.workers[0].worker_address]}
    await program.run(keep, await program.run(make, 7.0), **where)
    for fill in range(10):
        await program.run(make, float(fill), **where)
    assert (await program.run(kept, **where)).tolist() == [7.0] * 10
    assert len(program.segments()) >= 1
    await program.run(forget, **where)
    await program.is_empty()


def keep_all(array: Any) -> None:
    np.kept = array  # type: ignore[attr-defined]


def give_up() -> Any:
    return vars(np).pop("kept")


async def test_kept_argument_that_is_returned_later_is_there(
    program: Program, cluster: Any
) -> None:
    where = {"workers": [cluster.workers[0].worker_address]}
    for fill in range(20):
        await program.run(keep_all, np.full(LENGTH, float(fill)), **where)
        result = await program.run(give_up, **where)
        assert result.sum() == fill * LENGTH
        del result
    await program.is_empty()


class CannotBeRebuilt:
    def __init__(self, by: type[BaseException] = ValueError) -> None:
        self.data, self.by = np.zeros(LENGTH), by

    def __setstate__(self, state: Any) -> None:
        raise state["by"]("it cannot be rebuilt")


async def test_many_arrays_below_the_threshold_are_sent_in_several_graphs(program: Program) -> None:
    array = np.ones(25_000)  # 200 kB; Dask warns of a graph of 10 MB
    assert await program.run_all(*[(total, array)] * 60) == [25_000] * 60


async def test_values_that_cannot_be_rebuilt_fail_their_task_only(program: Program) -> None:
    errors = await program.run_all(
        (CannotBeRebuilt,),
        (CannotBeRebuilt, SystemExit),
        (same, CannotBeRebuilt()),
    )
    assert ["cannot be rebuilt" in str(error) for error in errors] == [True] * 3
    assert (await program.run(make)).sum() == LENGTH
    del errors
    await program.is_empty()


def fail(array: Any) -> Any:
    try:
        return array.no_such_attribute
    except AttributeError as error:
        copy = array[1:]
        raise ValueError(f"cannot use {copy.shape}") from error


async def test_failed_tasks_drop_their_arguments(program: Program) -> None:
    array = await program.run(make)
    error = await program.run(fail, array)
    assert "cannot use (199999,)" in str(error)
    assert "no_such_attribute" in "".join(traceback.format_exception(error))
    del array, error
    await program.is_empty()


def hold_on(array: Any, started: Path, ended: Path) -> None:
    started.touch()
    while not ended.exists():
        time.sleep(0.01)


async def test_cancelled_tasks_drop_their_arguments(program: Program, tmp_path: Path) -> None:
    array = await program.run(make)
    started, ended = tmp_path / "started", tmp_path / "ended"
    runner = program.runner
    tasks = [runner.function(hold_on, array, started, ended) for _ in range(12)]
    await runner.backend.submit_tasks(tasks)
    await until(started.exists)
    for task in tasks:
        assert await runner.backend.cancel_task(task["uid"])
    assert [await runner.end(task) for task in tasks] == ["CANCELED"] * 12
    assert array.sum() == LENGTH
    ended.touch()
    for task in tasks:
        drop_values(task)
    del array
    await program.is_empty()


class CannotBePickled:
    __name__ = "cannot_be_pickled"

    def __call__(self, array: Any) -> None:
        raise AssertionError

    def __reduce__(self) -> Any:
        raise ValueError("it cannot be pickled")


async def test_tasks_that_are_not_submitted_drop_their_arguments(program: Program) -> None:
    error = await program.run(CannotBePickled(), np.ones(LENGTH))
    assert "it cannot be pickled" in str(error)
    runner = program.runner
    tasks = [runner.function(total, np.ones(LENGTH)) for _ in range(40)]
    await runner.backend.submit_tasks(tasks)
    for task in tasks:
        await runner.backend.cancel_task(task["uid"])
    for task in tasks:
        await runner.end(task)
        drop_values(task)
    await program.is_empty()


async def test_task_that_shares_its_key_sends_its_result_through_dask(program: Program) -> None:
    results = await program.run_all((make, 2.0), (make, 2.0), pure=True)
    assert program.segments() == []
    assert [result.sum() for result in results] == [2 * LENGTH] * 2


async def test_kept_result_stays_on_the_cluster(program: Program) -> None:
    kept = await program.run(make, keep_on_cluster=True)
    assert program.segments() == []
    assert await program.run(total, kept, np.ones(LENGTH)) == 2 * LENGTH
    del kept
    await program.is_empty()


async def test_workers_without_the_store_get_their_arguments_in_messages(
    program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = program.client._data
    assert data is not None
    assert data.takes_arguments
    some = next(iter(data._numbers))
    data.on_out_of_reach(some)
    assert not data.takes_arguments
    assert await program.run(total, np.ones(LENGTH)) == LENGTH
    assert program.segments() == []


def lose_store(dask_worker: Any, name: str) -> None:
    dask_worker.plugins[name].data = None


async def test_call_whose_worker_does_not_see_the_store_runs_again_without(
    program: Program, cluster: Any
) -> None:
    data = program.client._data
    assert data is not None
    await asyncio.to_thread(data._client.run, lose_store, name=program.client._plugin)
    array = np.ones(LENGTH)
    assert await program.run(total, array) == LENGTH
    assert (await program.run(add_one, array)).sum() == 2 * LENGTH
    await program.is_empty()


async def test_limit_of_zero_sends_data_through_dask(cluster: Any) -> None:
    async with DaskExecutionBackend(cluster=cluster, memory_limit=0) as backend:
        program = Program(backend)
        assert program.client._data is None
        assert (await program.run(add_one, make())).sum() == 2 * LENGTH


async def test_data_beyond_the_limit_goes_to_disk(
    cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "KEEP_SECONDS", 0.05)
    async with DaskExecutionBackend(cluster=cluster, memory_limit=4_000_000) as backend:
        program = Program(backend)
        results = [await program.run(make, float(fill)) for fill in range(5)]
        assert sum(name.startswith("disk") for name in program.segments()) >= 2
        sums = await program.run_all(*((total, result) for result in results))
        assert sums == [LENGTH * fill for fill in range(5)]
        results.clear()
        await program.is_empty()


async def test_results_outlive_the_backend(cluster: Any) -> None:
    async with DaskExecutionBackend(cluster=cluster) as backend:
        program = Program(backend)
        result = await program.run(make)
        folders = program.folders
    assert [os.path.exists(folder) for folder in folders] == [False, False]
    result += 1
    assert result.sum() == 2 * LENGTH


def die(array: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_once(array: Any, path: str) -> Any:
    if not Path(path).exists():
        Path(path).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return array + 1


async def test_killed_workers_leave_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "KEEP_SECONDS", 0.05)
    async with DaskExecutionBackend({"n_workers": 2, "threads_per_worker": 1}) as backend:
        program = Program(backend)
        array = await program.run(make)
        again = await program.run(die_once, array, str(tmp_path / "died"))
        assert again.sum() == 2 * LENGTH
        assert type(await program.run(die, array)).__name__ == "WorkerDied"
        # The new workers see the store, too.
        value = await program.run(add_one, again)
        assert len(program.segments()) >= 1
        assert value.sum() == 3 * LENGTH
        del array, again, value
        await program.is_empty()


KILLED = """
import asyncio, os, signal
import numpy as np
from rhapsody.backends import DaskExecutionBackend

async def main():
    async with DaskExecutionBackend({"n_workers": 1, "threads_per_worker": 1}) as backend:
        done = asyncio.Event()
        backend.register_callback(lambda task, state: state == "DONE" and done.set())
        task = {"uid": "task.1", "function": np.ones, "args": (500_000,)}
        await backend.submit_tasks([task])
        await done.wait()
        folders = backend._dask_client._data.folders
        print(folders.memory, folders.disk, len(os.listdir(folders.memory)), flush=True)
        os.kill(os.getpid(), signal.SIGKILL)

if __name__ == "__main__":
    asyncio.run(main())
"""


async def test_killed_program_leaves_nothing(tmp_path: Path) -> None:
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    ended = await asyncio.to_thread(
        subprocess.run, [sys.executable, str(script)], capture_output=True, text=True
    )
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    memory, disk, count = ended.stdout.split()
    assert int(count) >= 2
    await until(lambda: not os.path.exists(memory) and not os.path.exists(disk))
    Scratch("test").remove()  # removes the other directory that the program left behind
