"""Large data of calls, with workers that are simulated."""

import asyncio
import os
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest
import pytest_asyncio

from rhapsody.backends.dask.worker_data import WorkerData
from rhapsody.backends.data import store
from rhapsody.backends.data.packing import THRESHOLD, DataPickler, Packed
from tests.support.waiting import until

pytestmark = pytest.mark.dask

ARRAY = np.arange(THRESHOLD)
WORKER = "tcp://127.0.0.1:1"


class FakeClient:
    """Runs functions on one worker."""

    def __init__(self) -> None:
        self.worker: WorkerData | None = None
        self.is_lost = False

    async def run(self, function: Any, _: str, *args: Any, **options: Any) -> dict[str, Any]:
        if self.is_lost:
            raise OSError("the scheduler has gone")
        if not args:
            return {WORKER: 0 if self.worker is None else self.worker.number}
        number, orders = args
        if options["workers"] != [WORKER]:  # Dask tries to reach it
            await asyncio.Event().wait()
        assert self.worker is not None
        assert self.worker.number == number
        self.worker.follow(orders)
        return {}


class Program:
    """Shared data, and its worker."""

    def __init__(self) -> None:
        from rhapsody.backends.dask.shared_data import SharedData

        self.client: Any = FakeClient()
        self.data = SharedData(asyncio.get_running_loop(), self.client, "plugin", None)
        worker = self.client.worker = WorkerData.open(self.data.folders, None, lambda: None)
        assert worker is not None
        self.worker: WorkerData = worker

    def result(self) -> Packed:
        """A result of the worker."""
        packed = self.worker.pack(ARRAY)
        assert isinstance(packed, Packed)
        return packed

    def report(self) -> None:
        held, dropped = self.worker.take_report()
        event = {"worker": WORKER, "number": self.worker.number, "held": held}
        self.data.on_event({**event, "dropped": dropped})

    def segments(self) -> list[str]:
        return [name for name in os.listdir(self.data.folders.memory) if name[-1].isdigit()]


@pytest_asyncio.fixture
async def program(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Program]:
    monkeypatch.setattr(store, "KEEP_SECONDS", 0.02)
    made = Program()
    await made.data.find_workers()
    yield made
    made.worker.close()
    await made.data.close()


async def test_arguments_are_freed_with_their_call_and_their_worker(program: Program) -> None:
    packed = program.data.pack("call", ARRAY, DataPickler)
    assert isinstance(packed, Packed)
    await asyncio.sleep(0)
    array = program.worker.load(packed)
    program.report()
    program.data.release("call")
    await asyncio.sleep(0.1)
    assert program.segments()
    del array
    program.report()
    await until(lambda: program.segments() == [])


async def test_first_report_of_a_worker_counts(program: Program) -> None:
    event = {"worker": "tcp://127.0.0.1:2", "number": 2}
    packed = program.result()
    program.data.hold("call", packed.segments)
    program.data.on_event({**event, "held": sorted(packed.segments)})
    program.data.release("call")
    await asyncio.sleep(0.1)
    assert program.segments()
    program.data.on_event({**event, "dropped": [(name, True) for name in packed.segments]})
    await until(lambda: program.segments() == [])


async def test_result_is_freed_with_its_call_and_its_value(program: Program) -> None:
    packed = program.result()
    program.data.hold("call", packed.segments)
    program.data.hold_to_load(packed)
    array = await asyncio.to_thread(program.data.load, packed)
    program.data.release("call")
    program.data.release("call")
    await asyncio.sleep(0.1)
    assert program.segments()
    assert (array == ARRAY).all()
    del array
    await until(lambda: program.segments() == [])


async def test_result_that_its_worker_drops_in_the_same_report_stays(program: Program) -> None:
    packed = program.data.pack("earlier", ARRAY, DataPickler)
    assert isinstance(packed, Packed)
    await asyncio.sleep(0)
    worker = {"worker": WORKER, "number": program.worker.number}
    program.data.on_event({**worker, "held": sorted(packed.segments)})
    program.data.release("earlier")
    dropped = [(name, True) for name in packed.segments]
    program.data.on_event({**worker, "dropped": dropped}, [("call", packed.segments)])
    await asyncio.sleep(0.1)
    program.data.hold_to_load(packed)
    assert (program.data.load(packed) == ARRAY).all()
    program.data.release("call")
    await until(lambda: program.segments() == [])


async def test_segments_of_a_cancelled_call_are_not_written_again(program: Program) -> None:
    packed = program.data.pack("call", ARRAY, DataPickler)
    assert isinstance(packed, Packed)
    await asyncio.sleep(0)
    array = program.worker.load(packed)  # its report arrives after the end of the call
    program.data.release("call", reusable=False)
    await until(lambda: program.segments() == [])
    program.report()
    again = program.data.pack("later", ARRAY + 1, DataPickler)
    assert isinstance(again, Packed)
    assert not again.segments & packed.segments
    assert (array == ARRAY).all()
    del array
    program.report()
    assert (program.worker.load(again) == ARRAY + 1).all()


async def test_arguments_go_into_segments_only_if_all_workers_see_them(program: Program) -> None:
    assert program.data.takes_arguments
    program.data.on_event({"worker": "tcp://127.0.0.1:2", "number": 0})
    assert not program.data.takes_arguments
    gone = {"action": "remove-worker", "worker": "tcp://127.0.0.1:2"}
    program.data.on_cluster_event((0.0, gone))
    assert program.data.takes_arguments
    program.data.on_out_of_reach(WORKER)
    assert not program.data.takes_arguments


async def test_what_a_worker_leaves_behind_is_removed(program: Program) -> None:
    packed = program.result()
    program.data.hold("call", packed.segments)
    program.worker.pack(ARRAY)  # nobody has heard of this one
    assert len(program.segments()) == 2
    gone = {"action": "remove-worker", "worker": WORKER}
    program.data.on_cluster_event((0.0, gone))
    await until(lambda: program.segments() == list(packed.segments))
    program.data.hold_to_load(packed)
    assert (program.data.load(packed) == ARRAY).all()
    program.data.release("call")
    await until(lambda: program.segments() == [])


async def test_lost_scheduler_stops_no_order(program: Program) -> None:
    program.client.is_lost = True
    packed = program.result()
    program.data.hold("call", packed.segments)
    program.data.release("call")
    await until(lambda: not program.data._senders)
    program.client.is_lost = False
    program.data.hold("later", program.result().segments)
    program.data.release("later")
    await until(lambda: len(program.segments()) == 1)


async def test_worker_that_cannot_be_reached_delays_no_orders_of_others(program: Program) -> None:
    program.data.on_event({"worker": "tcp://127.0.0.1:2", "number": 2, "held": ["memory-2-1"]})
    program.data.on_event(
        {"worker": "tcp://127.0.0.1:2", "number": 2, "dropped": [("memory-2-1", True)]}
    )
    await until(lambda: 2 in program.data._senders)
    program.data.hold("call", program.result().segments)
    program.data.release("call")
    await until(lambda: program.segments() == [])
