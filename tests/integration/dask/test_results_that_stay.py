"""Results that stay on Dask workers of other machines while only tasks there want them."""

import os
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from asyncflow_ext import WorkflowEngine
from asyncflow_ext.component import Stage
from rhapsody.backends import ConcurrentExecutionBackend, DaskExecutionBackend
from rhapsody.errors import TaskExecutionError
from tests.support.waiting import until

pytestmark = [pytest.mark.dask, pytest.mark.asyncflow, pytest.mark.timeout(120)]

LENGTH = 200_000


class Traced:
    """An array, and the processes that it was rebuilt in."""

    def __init__(self) -> None:
        self.array = np.ones(LENGTH)
        self.places = [os.getpid()]

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.places = [*self.places, os.getpid()]


@pytest.fixture
async def backend(cluster: Any) -> AsyncIterator[DaskExecutionBackend]:
    # Without shared memory, as on workers of other machines.
    async with DaskExecutionBackend(cluster=cluster, memory_limit=0) as made:
        yield made


@pytest.fixture
async def flow(backend: Any) -> AsyncIterator[Any]:
    backends = [backend, ConcurrentExecutionBackend(name="threads")]
    async with WorkflowEngine.create(backend=backends) as engine:
        yield engine


def steps(flow: Any) -> tuple[Any, Any, Any]:
    @flow.function_task
    def make() -> Any:
        return Traced()

    @flow.function_task
    def change(traced: Any) -> Any:
        traced.array += 1
        return traced

    @flow.function_task
    def look(traced: Any) -> tuple[float, list[int]]:
        return float(traced.array.sum()), traced.places

    return make, change, look


async def test_chain_moves_nothing_through_the_program(flow: Any) -> None:
    make, change, look = steps(flow)
    total, places = await look(change(change(make())))
    assert total == 3 * LENGTH
    assert len(places) >= 4
    assert os.getpid() not in places


async def test_result_comes_when_the_program_wants_it(flow: Any) -> None:
    make, change, look = steps(flow)
    made = make()
    await until(lambda: made.stage is Stage.KEPT)
    value = await made
    assert value.array.sum() == LENGTH
    assert value.places[-1] == os.getpid()
    value.array += 1  # it is the program's own
    assert (await look(value))[0] == 2 * LENGTH

    @flow.function_task(backend="threads")
    def here(traced: Any) -> int:
        return int(traced.places[-1])

    assert await here(change(make())) == os.getpid()


async def test_task_that_changes_its_argument_changes_nobody_elses(flow: Any) -> None:
    make, change, look = steps(flow)
    made = make()
    changed = [change(made) for _ in range(4)]
    assert [(await look(one))[0] for one in (made, *changed)] == [LENGTH] + [2 * LENGTH] * 4
    assert (await made).array.sum() == LENGTH


async def test_program_that_changes_a_result_changes_nobody_elses(tmp_path: Path) -> None:
    # Its workers are threads of this process, between which Dask copies nothing.
    options = {"n_workers": 1, "threads_per_worker": 1, "processes": False}
    backend = await DaskExecutionBackend(options, memory_limit=0)
    async with WorkflowEngine.create(backend=backend) as flow:
        make, _, look = steps(flow)
        changed = tmp_path / "changed"

        @flow.function_task
        def block() -> None:
            while not changed.exists():
                time.sleep(0.01)

        made = make()
        await until(lambda: made.stage is Stage.KEPT)
        blocker = block()
        await until(lambda: blocker.state == "RUNNING")
        later = look(made)
        await until(lambda: later.stage is Stage.SUBMITTED)
        value = await made
        value.array += 1
        changed.touch()
        assert (await later)[0] == LENGTH
        await blocker


async def test_results_stay_if_only_some_workers_share_memory(cluster: Any) -> None:
    # Otherwise a worker that computes a kept result again might put it into shared memory.
    backend = await DaskExecutionBackend(cluster=cluster)
    data = backend._dask_client._data  # type: ignore[union-attr]
    assert data is not None
    data.on_out_of_reach("tcp://another-host:1")
    async with WorkflowEngine.create(backend=backend) as flow:
        make, change, look = steps(flow)
        made = make()
        total, places = await look(change(made))
        assert total == 2 * LENGTH
        assert os.getpid() not in places
        assert made.stage is Stage.KEPT
        names = os.listdir(data.folders.memory)
        assert not [name for name in names if name[-1].isdigit()]


async def test_small_results_come_at_once(flow: Any) -> None:
    @flow.function_task
    def small() -> Any:
        return np.ones(10)

    one = small()
    await until(lambda: one.stage is Stage.DONE)
    assert one.result().sum() == 10


async def test_result_that_cannot_be_pickled_fails_its_task(flow: Any) -> None:
    @flow.function_task
    def generator() -> Any:
        return [np.ones(LENGTH), (n for n in range(3))]

    with pytest.raises(TaskExecutionError, match="cannot be pickled"):
        await generator()


async def test_cluster_frees_what_nobody_refers_to(flow: Any, cluster: Any) -> None:
    make, change, look = steps(flow)
    last = look(change(make()))
    assert (await last)[0] == 2 * LENGTH
    await until(lambda: not cluster.scheduler.tasks)
    assert last.done()


async def test_shutdown_fetches_what_the_program_refers_to(backend: Any) -> None:
    async with WorkflowEngine.create(backend=backend) as flow:
        make, _, _ = steps(flow)
        made = make()
        await until(lambda: made.stage is Stage.KEPT)
    assert made.result().array.sum() == LENGTH


async def test_result_that_is_lost_with_its_worker_is_computed_again(tmp_path: Path) -> None:
    options = {"n_workers": 2, "threads_per_worker": 1}
    backend = await DaskExecutionBackend(options, memory_limit=0)
    async with WorkflowEngine.create(backend=backend) as flow:
        runs = tmp_path / "runs"

        @flow.function_task
        def make() -> Any:
            with runs.open("a") as file:
                file.write(f"{os.getpid()}\n")
            return np.ones(LENGTH)

        @flow.function_task
        def total(array: Any) -> float:
            return float(array.sum())

        made = make()
        await until(lambda: made.stage is Stage.KEPT)
        os.kill(int(runs.read_text()), signal.SIGKILL)
        assert await total(made) == LENGTH
        assert (await made).sum() == LENGTH
        assert len(runs.read_text().split()) == 2
