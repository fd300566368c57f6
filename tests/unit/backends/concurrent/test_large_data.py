"""Large arguments and results of worker processes."""

import asyncio
import gc
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio

from rhapsody.backends.concurrent.local_workers import LocalWorkers
from rhapsody.backends.core.attachment import Attachment, ignore
from rhapsody.backends.core.work import Work
from rhapsody.backends.data import mappings, store
from rhapsody.backends.workers.manager import Limits
from rhapsody.backends.workers.worker_state import CONCURRENT, EXCLUSIVE
from rhapsody.errors import TaskExecutionError, WorkerDied
from tests.support.arrays import LENGTH, add_one, change, make, make_async, same, total
from tests.support.waiting import until

pytestmark = pytest.mark.timeout(120)

linux = pytest.mark.skipif(sys.platform != "linux", reason="needs the page map of Linux")


def mode_of(work: Work) -> str:
    return CONCURRENT if asyncio.iscoroutinefunction(work.task.get("function")) else EXCLUSIVE


class Reports:
    """The ends of tasks, each until it was taken."""

    def __init__(self) -> None:
        self.ends: dict[str, Any] = {}

    def report_running(self, work: Work, place: str = "") -> None:
        """Do nothing."""

    def report_done(self, work: Work, fields: dict[str, Any]) -> bool:
        self.ends[work.uid] = fields["return_value"]
        return True

    def report_failed(self, work: Work, error: BaseException) -> bool:
        self.ends[work.uid] = error
        return True

    def report_cancelled(self, work: Work) -> bool:
        self.ends[work.uid] = "cancelled"
        return True


class Program:
    """The workers of a backend with a store for large data, and tasks for them."""

    def __init__(self, workers: int = 2, memory: int | None = 1 << 28) -> None:
        self.reports = Reports()
        limits = Limits(workers, 8, 0.5, memory)
        self.manager = LocalWorkers("processes", limits, mode_of, self.reports)
        self._attachment = Attachment(ignore)
        self._last_uid = 0

    def work(self, function: Any, *args: Any) -> Work:
        """Submit a task."""
        self._last_uid += 1
        uid = f"task.{self._last_uid}"
        work = Work({"uid": uid, "function": function, "args": args}, self._attachment, "")
        self.manager.scheduler.submit([(work, mode_of(work))])
        return work

    def submit(self, function: Any, *args: Any) -> str:
        return self.work(function, *args).uid

    async def end(self, uid: str) -> Any:
        await until(lambda: uid in self.reports.ends)
        return self.reports.ends.pop(uid)

    async def run(self, function: Any, *args: Any) -> Any:
        end = await self.end(self.submit(function, *args))
        if isinstance(end, Exception):
            raise end
        return end

    def segments(self) -> list[str]:
        """The segments that exist."""
        data = self.manager._data
        assert data is not None
        folders = (data.folders.memory, data.folders.disk)
        return [name for folder in folders for name in os.listdir(folder) if name[-1].isdigit()]

    async def is_empty(self) -> None:
        """Wait until no segment is in use, nor kept."""
        await until(lambda: gc.collect() < 0 or self.segments() == [])


@pytest_asyncio.fixture
async def program(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Program]:
    monkeypatch.setattr(store, "KEEP_SECONDS", 0.05)
    made = Program()
    await made.manager.start()
    yield made
    await made.manager.stop()


async def test_result_is_an_array_that_the_program_may_change(program: Program) -> None:
    result = await program.run(make)
    result += 1
    assert result.sum() == 2 * LENGTH
    assert await program.run(total, result) == 2 * LENGTH
    del result
    await program.is_empty()


async def test_async_functions_share_large_data(program: Program) -> None:
    result = await program.run(make_async)
    assert await program.run(total, result) == LENGTH
    del result
    await program.is_empty()


class _FreedAfter:
    """Is not freed before a file exists, or a few seconds have passed; writes which."""

    def __init__(self, path: str) -> None:
        self._path = path

    def __reduce__(self) -> Any:
        return dict, ()

    def __del__(self) -> None:
        deadline = time.monotonic() + 5
        while not os.path.exists(self._path) and time.monotonic() < deadline:
            time.sleep(0.01)
        Path(f"{self._path}.freed").write_text(str(os.path.exists(self._path)))


def _make_with(path: str) -> Any:
    return np.ones(LENGTH), _FreedAfter(path)


async def _make_async_with(path: str) -> Any:
    return _make_with(path)


@pytest.mark.parametrize("function", [_make_with, _make_async_with], ids=["sync", "async"])
async def test_result_arrives_before_the_worker_has_freed_it(
    program: Program, tmp_path: Path, function: Any
) -> None:
    path = tmp_path / "received"
    await program.run(function, str(path))
    path.touch()
    freed = Path(f"{path}.freed")
    await until(freed.exists)
    await until(freed.read_text)
    assert freed.read_text() == "True"
    await program.is_empty()


def _waiting_callbacks() -> int:
    """In a worker: the callbacks of its event loop."""
    (loop,) = (each for each in gc.get_objects() if isinstance(each, asyncio.BaseEventLoop))
    return len(loop._ready)  # type: ignore[attr-defined]


async def test_worker_of_sync_functions_gathers_no_callbacks(program: Program) -> None:
    array = await program.run(make)
    for _ in range(20):
        await program.run(total, array)
    counts = await asyncio.gather(*[program.run(_waiting_callbacks) for _ in range(4)])
    assert max(counts) < 3
    del array
    await program.is_empty()


@pytest.mark.parametrize(
    "value",
    [b"x" * 1_000_000, bytearray(1_000_000), "text" * 300_000, [b"y" * 100_000] * 5],
    ids=["bytes", "bytearray", "text", "list of bytes"],
)
async def test_large_values_of_other_types_come_back(program: Program, value: Any) -> None:
    assert await program.run(same, value) == value
    await program.is_empty()


async def test_containers_keep_their_structure(program: Program) -> None:
    value = {"a": (make(1), [make(2)]), "b": "text"}
    result = await program.run(same, value)
    assert [result["a"][0][0], result["a"][1][0][0], result["b"]] == [1, 2, "text"]


async def test_task_that_changes_its_argument_changes_nobody_elses(program: Program) -> None:
    array = await program.run(make)
    tasks = [program.submit(function, array) for function in (change, total) * 3]
    assert [await program.end(task) for task in tasks] == [-LENGTH, LENGTH] * 3
    assert array.sum() == LENGTH
    assert await program.run(total, array) == LENGTH


async def test_segments_that_are_written_again_never_show_old_data(program: Program) -> None:
    for fill in range(12):
        array = await program.run(make, float(fill))
        ends = [program.submit(change, array), program.submit(total, array)]
        assert [await program.end(uid) for uid in ends] == [-LENGTH, fill * LENGTH]
        assert array.sum() == fill * LENGTH
        del array
    await program.is_empty()


@linux
async def test_untouched_argument_that_is_returned_stays_in_its_segment(program: Program) -> None:
    array = await program.run(make)
    again = await program.run(same, array)
    assert len(program.segments()) == 1
    again[0] = 5
    assert array[0] == 1
    del array, again
    await program.is_empty()


async def test_chain_leaves_nothing(program: Program) -> None:
    value = await program.run(make)
    for _ in range(5):
        value = await program.run(add_one, value)
    assert value[-1] == 6
    del value
    await program.is_empty()


def keep(array: Any) -> None:
    np.kept = array[10:20]  # type: ignore[attr-defined]


def kept() -> Any:
    return np.kept.copy(), os.getpid()  # type: ignore[attr-defined]


def forget() -> None:
    del np.kept  # type: ignore[attr-defined]


async def test_view_that_a_task_keeps_never_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "KEEP_SECONDS", 0.05)
    program = Program(workers=1)
    await program.manager.start()
    await program.run(keep, await program.run(make, 7.0))
    for fill in range(10):
        await program.run(make, float(fill))
    view, _ = await program.run(kept)
    assert view.tolist() == [7.0] * 10
    assert len(program.segments()) >= 1
    await program.run(forget)
    await program.is_empty()
    await program.manager.stop()


def close_it(array: Any) -> None:
    base = array
    while getattr(base, "base", None) is not None:
        base = base.base
    (view,) = base.obj._objects.values()
    view.obj.close()


async def test_task_that_closes_its_argument_fails_and_nothing_else(program: Program) -> None:
    array = await program.run(make)
    with pytest.raises(BufferError):
        await program.run(close_it, array)
    assert await program.run(total, array) == LENGTH


def fork_and_sum(array: Any, path: str) -> None:
    if os.fork():
        return
    while not os.path.exists(f"{path}.go"):
        time.sleep(0.01)
    with open(path, "w") as file:
        file.write(str(array.sum()))
    os._exit(0)


async def test_forked_child_keeps_what_its_parent_has_dropped(
    program: Program, tmp_path: Path
) -> None:
    path = str(tmp_path / "sum")
    await program.run(fork_and_sum, await program.run(make, 3.0), path)
    for fill in range(6):
        await program.run(make, float(fill))
    Path(f"{path}.go").touch()
    await until(lambda: os.path.exists(path) and Path(path).read_text())
    assert float(Path(path).read_text()) == 3.0 * LENGTH


class CannotBeRebuilt:
    def __init__(self) -> None:
        self.data = np.zeros(LENGTH)

    def __setstate__(self, state: object) -> None:
        raise ValueError("it cannot be rebuilt")


async def test_values_that_cannot_be_rebuilt_fail_their_task_only(program: Program) -> None:
    for function, *args in ((CannotBeRebuilt,), (same, CannotBeRebuilt())):
        with pytest.raises(TaskExecutionError, match="cannot be rebuilt"):
            await program.run(function, *args)
    assert (await program.run(make)).sum() == LENGTH
    await program.is_empty()


def die(array: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_while_writing() -> Any:
    class Fatal:
        def __reduce__(self) -> Any:
            real = os.pwrite

            def pwrite(file: int, data: Any, offset: int) -> int:
                real(file, bytes(1000), offset)
                os.kill(os.getpid(), signal.SIGKILL)
                return 0

            os.pwrite = pwrite
            return int, ()

    return Fatal(), np.ones(LENGTH)


async def test_worker_killed_with_its_argument_or_its_result_leaves_nothing(
    program: Program,
) -> None:
    array = await program.run(make)
    for function, args in ((die, (array,)), (die_while_writing, ())):
        with pytest.raises(WorkerDied):
            await program.run(function, *args)
    assert await program.run(total, array) == LENGTH
    del array
    await program.is_empty()


def _drop_slowly(arrays: list[Any], path: str) -> None:
    keep = mappings.Mappings._keep

    def keep_slowly(*args: Any) -> None:
        Path(path).touch()
        time.sleep(0.2)
        keep(*args)

    mappings.Mappings._keep = keep_slowly  # type: ignore[assignment,method-assign]
    try:
        arrays.clear()
        Path(f"{path}.dropped").touch()
        time.sleep(30)
    finally:
        mappings.Mappings._keep = keep  # type: ignore[method-assign]


async def test_interrupt_waits_until_an_argument_is_dropped(
    program: Program, tmp_path: Path
) -> None:
    array = await program.run(make)
    await asyncio.gather(program.run(os.getpid), program.run(os.getpid))
    path = tmp_path / "dropping"
    pids = program.manager.scheduler.pids()
    work = program.work(_drop_slowly, [array], str(path))
    await until(path.exists)
    assert program.manager.scheduler.cancel(work)
    assert await program.end(work.uid) == "cancelled"
    assert Path(f"{path}.dropped").exists()
    assert set(pids) <= set(program.manager.scheduler.pids())
    del array, work
    await program.is_empty()


async def test_cancelled_tasks_drop_their_arguments(program: Program) -> None:
    array = await program.run(make)
    works = []
    for _ in range(6):
        program._last_uid += 1
        task = {"uid": f"task.{program._last_uid}", "function": hold_on, "args": (array,)}
        works.append(Work(task, program._attachment, ""))
    program.manager.scheduler.submit([(work, EXCLUSIVE) for work in works])
    del array, task
    for work in works:
        work.interrupted = True
        assert program.manager.scheduler.cancel(work)
    assert [await program.end(work.uid) for work in works] == ["cancelled"] * 6
    works.clear()
    del work
    await program.is_empty()


def hold_on(array: Any) -> None:
    time.sleep(60)


async def test_data_beyond_the_limit_goes_to_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "KEEP_SECONDS", 0.05)
    program = Program(memory=4_000_000)
    await program.manager.start()
    results = [await program.run(make, float(fill)) for fill in range(5)]
    assert sum(name.startswith("disk") for name in program.segments()) >= 2
    assert [await program.run(total, result) for result in results] == [
        LENGTH * fill for fill in range(5)
    ]
    results.clear()
    await program.is_empty()
    await program.manager.stop()


async def test_limit_of_zero_copies_data_through_sockets() -> None:
    program = Program(memory=0)
    await program.manager.start()
    assert program.manager._data is None
    assert (await program.run(add_one, make())).sum() == 2 * LENGTH
    await program.manager.stop()


async def test_results_outlive_the_backend() -> None:
    program = Program()
    await program.manager.start()
    result = await program.run(make)
    data = program.manager._data
    assert data is not None
    await program.manager.stop()
    assert not os.path.exists(data.folders.memory)
    result += 1
    assert result.sum() == 2 * LENGTH


@linux
async def test_worker_killed_while_it_reads_its_argument_leaves_nothing(program: Program) -> None:
    array = await program.run(make)
    uids = [program.submit(read_for_ever, array) for _ in range(2)]
    await until(lambda: len(program.manager.scheduler.pids()) == 2)
    await until(lambda: all(_runs(program, uid) for uid in uids))
    for pid in program.manager.scheduler.pids():
        os.kill(pid, signal.SIGKILL)
    for uid in uids:
        assert isinstance(await program.end(uid), WorkerDied)
    assert await program.run(total, array) == LENGTH
    del array
    await program.is_empty()


def _runs(program: Program, uid: str) -> bool:
    placed = program.manager.scheduler._placed
    return any(
        work.uid == uid and call_id in worker.running for work, (worker, call_id) in placed.items()
    )


def read_for_ever(array: Any) -> None:
    while True:
        array.sum()
