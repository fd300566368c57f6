"""The scaler: replicas are added to a pool and drained, and none of their prompts is lost."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any, cast

import pytest

from rhapsody.errors import ReplicaError
from rhapsody.gpus import GpuLedger
from rhapsody.inference.prompts import PromptRequest
from rhapsody.inference.replicas import pool as pool_module
from rhapsody.inference.replicas import scaler as scaler_module
from rhapsody.inference.replicas.pool import ReplicaPool
from rhapsody.inference.replicas.replica import Replica
from rhapsody.inference.replicas.scaler import Scaler
from rhapsody.inference.replicas.scaling import Scaling, ScalingPolicy
from tests.support.replicas import FakeReplica, pool_of
from tests.support.waiting import until


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_module, "BACKOFF_SECONDS", 0)
    monkeypatch.setattr(scaler_module, "INTERVAL_SECONDS", 0.01)


class Source:
    """Makes fake replicas with a GPU each, of a ledger that tasks share.

    Args:
        gpus: How many GPUs there are.
    """

    def __init__(self, gpus: int = 8) -> None:
        self.ledger = GpuLedger()
        self.gpus = gpus
        self.made: list[FakeReplica] = []
        self.failing_starts = 0
        self.starts_at_once = True
        self._used: dict[int, list[tuple[str, Any]]] = {}

    @property
    def tasks_wait(self) -> bool:
        return self.ledger.is_short

    def another(self, on_room: Callable[[], None]) -> Replica | None:
        for gpu in range(self.gpus):
            if self.ledger.take([("node", gpu)]):
                break
        else:
            return None
        replica = ManualReplica(len(self.made), state="STARTING")
        replica.can_start = asyncio.Event()
        if self.starts_at_once:
            replica.can_start.set()
        replica.on_room = on_room
        if self.failing_starts:
            replica.failing_starts = self.failing_starts
        self.made.append(replica)
        self._used[replica.index] = [("node", gpu)]
        return cast("Replica", replica)

    def release(self, replica: Replica) -> None:
        self.ledger.release(self._used.pop(replica.index))

    @property
    def used(self) -> int:
        return len(self._used)


class ManualReplica(FakeReplica):
    """A fake replica that starts and completes prompts when a test lets it."""

    can_start: asyncio.Event

    async def start(self, timeout: float) -> None:
        await self.can_start.wait()
        await super().start(timeout)


class Elastic:
    """A pool with a scaler."""

    def __init__(self, fewest: int, most: int, source: Source, **times: float) -> None:
        self.source = source
        self.pool: ReplicaPool = pool_of(scaling=Scaling(fewest, most))
        up, down = times.get("up", 0.0), times.get("down", 0.05)
        self.scaler = Scaler(self.pool, ScalingPolicy(fewest, most, up, down), source)

    @property
    def scaling(self) -> Scaling:
        assert self.pool.scaling is not None
        return self.pool.scaling

    async def start(self) -> "Elastic":
        await self.pool.start()
        self.scaler.start()
        return self

    async def stop(self) -> None:
        await self.scaler.stop()
        await self.pool.stop()


@pytest.fixture
async def elastic() -> AsyncIterator[Callable[..., Any]]:
    started: list[Elastic] = []

    async def start(fewest: int, most: int, source: Source | None = None, **times: float) -> Any:
        one = await Elastic(fewest, most, source or Source(), **times).start()
        started.append(one)
        return one

    yield start
    for one in started:
        await one.stop()


async def completed(pool: ReplicaPool) -> str:
    request = PromptRequest("hi")
    pool.put(request)
    try:
        return str((await asyncio.wait_for(request.completion(), 20)).response)
    finally:
        request.close()


async def test_first_prompt_starts_a_replica_and_waits(elastic: Any) -> None:
    one = await elastic(0, 2)
    assert one.pool.replicas == []
    assert await completed(one.pool) == "from 0"
    assert one.scaling.up == 1


async def test_idle_pool_ends_at_zero_and_gives_its_gpus_back(elastic: Any) -> None:
    one = await elastic(0, 2)
    await completed(one.pool)
    await until(lambda: not one.pool.replicas and not one.source.used)
    assert one.scaling.down == 1
    assert one.source.made[0].state == "STOPPED"
    assert await completed(one.pool) == "from 1"


async def test_request_that_is_forwarded_starts_a_replica(elastic: Any) -> None:
    one = await elastic(0, 1)
    await asyncio.wait_for(one.pool.wait_ready(), 20)
    assert one.pool.least_loaded() is not None


async def test_load_adds_replicas_up_to_the_most(elastic: Any) -> None:
    one = await elastic(1, 3)
    await until(lambda: len(one.pool.ready) == 1)
    one.source.made[0].in_flight = 500
    await until(lambda: len(one.pool.ready) == 3)
    assert one.scaling.wanted == 3
    one.source.made[0].in_flight = 0
    await until(lambda: len(one.pool.replicas) == 1)


async def test_draining_replica_finishes_its_prompts_first(elastic: Any) -> None:
    one = await elastic(0, 1)
    await completed(one.pool)
    [replica] = one.source.made
    replica.in_flight = 1
    await until(lambda: one.scaling.wanted == 1)
    replica.draining = True
    draining = asyncio.ensure_future(one.pool.drain(cast("Replica", replica)))
    await asyncio.sleep(0)
    assert one.pool.ready == []
    assert not draining.done()
    replica.in_flight = 0
    replica.on_room()
    assert await draining
    assert replica.state == "STOPPED"


async def test_paused_replica_is_not_stopped(elastic: Any) -> None:
    one = await elastic(0, 1)
    await completed(one.pool)
    [replica] = one.source.made
    async with one.pool.paused(cast("Replica", replica)):
        replica.draining = True
        draining = asyncio.ensure_future(one.pool.drain(cast("Replica", replica)))
        await asyncio.sleep(0.01)
        assert replica.state == "READY"
    assert await draining
    assert replica.state == "STOPPED"


async def test_draining_replica_takes_prompts_again_if_it_is_needed(elastic: Any) -> None:
    one = await elastic(0, 1, down=0.0)
    await completed(one.pool)
    [replica] = one.source.made
    replica.in_flight = 1
    one.scaler._shrink([replica], 1)
    assert replica.draining
    assert await completed(one.pool) == "from 0"
    assert len(one.source.made) == 1
    replica.in_flight = 0
    await until(lambda: not one.pool.replicas)


async def test_prompt_that_comes_while_a_drained_replica_stops_starts_another(
    elastic: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = await elastic(0, 1, Source(gpus=1), down=0.0)
    stopping, may_stop = asyncio.Event(), asyncio.Event()

    async def stop(self: FakeReplica, state: str = "DEAD") -> None:
        stopping.set()
        await may_stop.wait()
        self.state = state

    monkeypatch.setattr(FakeReplica, "stop", stop)
    await completed(one.pool)
    await asyncio.wait_for(stopping.wait(), 20)
    completing = asyncio.ensure_future(completed(one.pool))
    await until(lambda: one.scaling.wanted == 1)
    may_stop.set()
    assert await completing == "from 1"
    await until(lambda: not one.pool.replicas and not one.source.used)


async def test_replica_that_dies_while_it_drains_is_not_restarted(elastic: Any) -> None:
    one = await elastic(0, 1)
    await completed(one.pool)
    [replica] = one.source.made
    replica.in_flight = 1
    one.scaler._shrink([replica], 1)
    replica.die()
    await until(lambda: replica.state == "DEAD")
    replica.in_flight = 0  # its prompts have gone back to the queue
    replica.on_room()
    await until(lambda: not one.pool.replicas and not one.source.used)
    assert replica.starts == 1


async def test_replica_that_is_not_needed_any_more_is_stopped_while_it_starts(
    elastic: Any,
) -> None:
    source = Source()
    source.starts_at_once = False
    one = await elastic(0, 1, source)
    request = PromptRequest("hi")
    one.pool.put(request)
    await until(lambda: source.made)
    one.pool.cancel(request)
    request.close()
    await until(lambda: not one.pool.replicas and not source.used)
    assert source.made[0].state == "STOPPED"


async def test_failing_starts_pause_and_do_not_storm(
    elastic: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("PAUSE_SECONDS", "MAX_PAUSE_SECONDS"):
        monkeypatch.setattr(scaler_module, name, 3600.0)
    source = Source()
    one = await elastic(1, 3, source)
    await until(lambda: len(one.pool.ready) == 1)
    source.failing_starts = 100
    source.made[0].in_flight = 500
    await until(lambda: one.scaling.failed == 2 and source.used == 1)
    assert one.scaler._not_before > asyncio.get_running_loop().time()
    one.scaler._step()
    assert [replica.starts for replica in source.made] == [1, 3, 3], "max_restarts=2, then a pause"
    assert len(one.pool.replicas) == 1
    source.failing_starts = 0
    one.scaler._not_before = 0.0
    await until(lambda: len(one.pool.ready) == 3)
    source.made[0].in_flight = 0


async def test_first_replica_that_cannot_start_fails_the_prompts(elastic: Any) -> None:
    source = Source()
    source.failing_starts = 100
    one = await elastic(0, 2, source)
    with pytest.raises(ReplicaError, match="no model server is left"):
        await completed(one.pool)
    assert source.made[0].starts == 3


async def test_spare_that_cannot_start_again_leaves_an_empty_pool_open(
    elastic: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scaler_module, "PAUSE_SECONDS", 0)
    made = await elastic(0, 2)
    spare = made.source.another(made.pool.on_room)
    spare.spare = True
    made.pool.add(spare)
    await until(lambda: spare.state == "READY")
    spare.failing_starts = 1000
    spare.die()
    await until(lambda: spare not in made.pool.replicas)
    assert await completed(made.pool) == "from 1"


async def test_spare_that_is_given_up_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scaler_module, "PAUSE_SECONDS", 0)
    one = Elastic(0, 2, Source())
    spare: Any = one.source.another(one.pool.on_room)
    spare.spare = True
    one.pool.replicas.append(spare)
    await one.start()
    spare.failing_starts = 1000
    spare.die()
    await until(lambda: len(one.source.made) == 2 and spare not in one.pool.replicas)
    (replacement,) = one.source.made[1:]
    await until(lambda: replacement.state == "READY")
    assert replacement.spare
    assert one.scaling.up == 0
    assert one.source.used == 1
    await one.stop()


async def test_replica_waits_for_gpus_that_tasks_use(elastic: Any) -> None:
    source = Source(gpus=1)
    tasks = [("node", 0)]
    assert source.ledger.take(tasks)
    one = await elastic(0, 1, source)
    completing = asyncio.ensure_future(completed(one.pool))
    await until(lambda: one.scaling.wanted == 1)
    assert not source.made
    source.ledger.release(tasks)
    assert await completing == "from 0"


async def test_waiting_tasks_get_the_gpus_of_idle_replicas(elastic: Any) -> None:
    source = Source(gpus=1)
    one = await elastic(0, 1, source, down=3600.0)
    await completed(one.pool)
    assert not source.ledger.take([("node", 0)])
    source.ledger.set_short(one, True)
    await until(lambda: source.ledger.take([("node", 0)]))


async def test_most_prompts_wait_in_the_queue_for_replicas_that_are_added() -> None:
    replica = FakeReplica(0)
    pool = pool_of(replica, scaling=Scaling(1, 2))
    assert pool.capacity() == 2 * replica.limit
    replica.in_flight = 2 * replica.limit
    assert pool.capacity() is None


async def test_stop_while_a_replica_starts_and_another_drains() -> None:
    source = Source()
    one = await Elastic(1, 2, source).start()
    await until(lambda: len(one.pool.ready) == 1)
    source.starts_at_once = False
    source.made[0].in_flight = 500
    await until(lambda: len(source.made) == 2)
    one.scaler._shrink([cast("Replica", source.made[0])], 1)
    await one.stop()
    assert [replica.state for replica in source.made] == ["STOPPED"] * 2
