"""The replica pool: which replica gets a prompt, and what happens when a server dies."""

import asyncio
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Protocol, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rhapsody.errors import ReplicaError
from rhapsody.inference.prompts import PromptRequest
from rhapsody.inference.replicas import pool as pool_module
from rhapsody.inference.replicas.replica import Replica
from tests.support.replicas import FakeReplica, pool_of
from tests.support.waiting import until


@pytest.fixture(autouse=True)
def no_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_module, "BACKOFF_SECONDS", 0)


class Prompts(Protocol):
    """Makes prompts."""

    def __call__(self, number: int, priority: int = 0) -> list[PromptRequest]: ...


@pytest.fixture
def prompts() -> Iterator[Prompts]:
    made: list[PromptRequest] = []

    def make(number: int, priority: int = 0) -> list[PromptRequest]:
        made.extend(PromptRequest(f"prompt {i}", priority=priority) for i in range(number))
        return made[-number:]

    yield make
    for request in made:
        request.close()


@given(loads=st.lists(st.integers(0, 20), min_size=1, max_size=6), number=st.integers(1, 60))
def test_dispatch_evens_out_loads(loads: list[int], number: int) -> None:
    async def play() -> None:
        replicas = [FakeReplica(index, load) for index, load in enumerate(loads)]
        batch = [PromptRequest("hi") for _ in range(number)]
        sending = pool_of(*replicas).dispatch(batch)
        after = [replica.in_flight for replica in replicas]
        assert sum(after) == sum(loads) + number
        for replica, before in zip(replicas, loads, strict=True):
            if replica.in_flight > before:
                assert replica.in_flight <= min(after) + 1
        reserved = [request for replica in replicas for request in replica.reserved]
        assert sorted(reserved, key=batch.index) == batch
        for replica in replicas:  # consecutive prompts go to one replica, in order
            places = [batch.index(request) for request in replica.reserved]
            assert all(b == a + 1 for a, b in pairwise(places))
        await sending

    asyncio.run(play())


async def test_dispatch_reserves_room_before_it_returns(prompts: Prompts) -> None:
    pool = pool_of(FakeReplica(0))
    assert pool.capacity() == 8
    sending = pool.dispatch(prompts(3))
    assert pool.capacity() == 5
    await sending
    assert pool.capacity() == 8


async def test_only_ready_servers_get_prompts(prompts: Prompts) -> None:
    replicas = [FakeReplica(0, state="STARTING"), FakeReplica(1, 7), FakeReplica(2, state="DEAD")]
    await pool_of(*replicas).dispatch(prompts(4))
    assert [len(replica.reserved) for replica in replicas] == [0, 4, 0]


async def test_capacity_is_none_without_ready_server() -> None:
    assert pool_of(FakeReplica(0, state="STARTING")).capacity() is None
    assert pool_of(FakeReplica(0, in_flight=9)).capacity() == 0


async def test_least_loaded_ignores_unready_servers() -> None:
    idle, busy = FakeReplica(0, 1), FakeReplica(1, 5)
    assert pool_of(busy, idle).least_loaded() is cast("Replica", idle)
    assert pool_of(FakeReplica(0, state="DEAD")).least_loaded() is None


async def test_put_prompts_are_sent_together(prompts: Prompts) -> None:
    replica = FakeReplica(0)
    pool = pool_of(replica)
    batch = prompts(3)
    for request in batch:
        pool.put(request)
    assert [(await request.completion()).response for request in batch] == ["from 0"] * 3
    assert replica.reserved == batch


async def test_prompts_wait_until_a_server_has_room(prompts: Prompts) -> None:
    replica = FakeReplica(0, state="STARTING")
    pool = pool_of(replica)
    [request] = prompts(1)
    pool.put(request)
    await asyncio.sleep(0)
    assert replica.reserved == []
    await replica.start(1)
    await request.completion()


async def test_cancel_takes_waiting_prompt_out_of_queue(prompts: Prompts) -> None:
    replica = FakeReplica(0, state="STARTING")
    pool = pool_of(replica)
    cancelled, kept = prompts(2)
    pool.put(cancelled)
    pool.put(kept)
    pool.cancel(cancelled)
    await replica.start(1)
    await kept.completion()
    assert replica.reserved == [kept]
    assert replica.cancelled == []


async def test_cancel_of_sent_prompt_reaches_its_server(prompts: Prompts) -> None:
    replica = FakeReplica(0)
    pool = pool_of(replica)
    [request] = prompts(1)
    sending = pool.dispatch([request])
    pool.cancel(request)
    assert replica.cancelled == [request.id]
    await sending


class BusyReplica(FakeReplica):
    """Ends no prompt."""

    async def send(self, requests: Sequence[PromptRequest]) -> list[PromptRequest]:
        await asyncio.Event().wait()
        return []


async def test_urgent_prompt_is_sent_to_a_kept_slot_while_others_wait(prompts: Prompts) -> None:
    replica = BusyReplica(0)
    replica.limit = 16
    pool = pool_of(replica)
    [first] = prompts(1, 1)
    pool.put(first)
    many = prompts(30)
    for request in many:
        pool.put(request)
    await until(lambda: len(replica.reserved) == 16)
    replica.in_flight -= 1  # the first urgent prompt ends, and its slot stays free
    pool.on_room()
    await asyncio.sleep(0)
    [urgent] = prompts(1, 5)
    pool.put(urgent)
    await until(lambda: urgent in replica.reserved)
    assert replica.reserved == [first, *many[:15], urgent]
    await pool.stop()


async def test_ordinary_prompts_are_sent_while_urgent_ones_take_every_slot(
    prompts: Prompts,
) -> None:
    replica = BusyReplica(0, in_flight=500)
    replica.limit = 16
    pool = pool_of(replica)
    pool.room.note_urgent()
    many = prompts(30)
    for request in many:
        pool.put(request)
    await until(lambda: bool(replica.reserved))
    assert replica.reserved == many[:15]
    await pool.stop()


async def test_prompts_beyond_the_queue_of_busy_servers_wait(prompts: Prompts) -> None:
    replica = BusyReplica(0)
    pool = pool_of(replica)
    many = prompts(40)
    for request in many:
        pool.put(request)
    await until(lambda: len(replica.reserved) == 16)
    assert pool.prompts == 40
    await pool.stop()


async def test_waiting_urgent_prompt_can_be_cancelled(prompts: Prompts) -> None:
    replica = FakeReplica(0, state="STARTING")
    pool = pool_of(replica)
    cancelled, kept = prompts(2, 10)
    pool.put(cancelled)
    pool.put(kept)
    pool.cancel(cancelled)
    await replica.start(1)
    await kept.completion()
    assert replica.reserved == [kept]


async def test_lost_prompts_of_any_priority_are_sent_again(prompts: Prompts) -> None:
    replica = FakeReplica(0)
    replica.losses = 1
    pool = pool_of(replica)
    batch = [*prompts(2), *prompts(2, 10)]
    await pool.dispatch(batch)
    assert [(await request.completion()).response for request in batch] == ["from 0"] * 4


async def test_lost_prompts_are_sent_again(prompts: Prompts) -> None:
    replica = FakeReplica(0)
    replica.losses = 1
    pool = pool_of(replica)
    batch = prompts(3)
    sending = pool.dispatch(batch)
    replica.state = "UNHEALTHY"
    await sending
    assert [request.replica for request in batch] == [None] * 3
    await replica.start(1)
    for request in batch:
        await request.completion()
    assert replica.reserved == batch * 2


async def test_prompt_lost_too_often_fails_with_a_short_message(prompts: Prompts) -> None:
    replica = FakeReplica(0)
    replica.losses = 2
    pool = pool_of(replica, max_retries=1)
    [request] = prompts(1)
    pool.put(request)
    with pytest.raises(ReplicaError, match="lost 2 times") as failed:
        await request.completion()
    assert failed.value.log_tail == ""


async def test_started_stream_is_not_sent_again() -> None:
    replica = FakeReplica(0)
    replica.losses = 1
    request = PromptRequest("hi", on_text=len)
    request.add_piece("he")
    await pool_of(replica).dispatch([request])
    with pytest.raises(ReplicaError, match="in the middle of the stream"):
        await request.completion()
    assert replica.reserved == [request]


async def test_start_waits_for_all_and_stop_stops_all() -> None:
    replicas = [FakeReplica(index, state="STARTING") for index in range(3)]
    pool = pool_of(*replicas)
    await pool.start()
    assert len(pool.ready) == 3
    await pool.stop()
    assert [replica.state for replica in replicas] == ["STOPPED"] * 3


async def test_failed_start_stops_all() -> None:
    replicas = [FakeReplica(0, state="STARTING"), FakeReplica(1, state="STARTING")]
    replicas[1].failing_starts = 1
    with pytest.raises(ReplicaError, match="model server 1 exited with code 1"):
        await pool_of(*replicas).start()
    assert [replica.state for replica in replicas] == ["STOPPED"] * 2


async def test_kill_reaches_all() -> None:
    replicas = [FakeReplica(0), FakeReplica(1)]
    pool_of(*replicas).kill()
    assert [replica.state for replica in replicas] == ["KILLED"] * 2


async def test_dead_server_is_restarted() -> None:
    replica = FakeReplica(0, state="STARTING")
    pool = pool_of(replica)
    await pool.start()
    replica.die()
    await until(lambda: replica.starts == 2 and replica.state == "READY")
    assert replica.restarts == 1
    await pool.stop()


async def test_failed_restart_is_repeated() -> None:
    replica = FakeReplica(0, state="STARTING")
    pool = pool_of(replica, max_restarts=3)
    await pool.start()
    replica.failing_starts = 2
    replica.die()
    await until(lambda: replica.starts == 4 and replica.state == "READY")
    await pool.stop()


async def test_spare_takes_no_prompts(prompts: Prompts) -> None:
    replica, spare = FakeReplica(0), FakeReplica(1)
    spare.spare = True
    await pool_of(replica, spare).dispatch(prompts(4))
    assert [len(replica.reserved), len(spare.reserved)] == [4, 0]


async def test_spare_takes_over_for_a_dead_server(prompts: Prompts) -> None:
    replica, spare = FakeReplica(0, state="STARTING"), FakeReplica(1, state="STARTING")
    spare.spare = True
    pool = pool_of(replica, spare)
    await pool.start()
    replica.failing_starts = 100
    replica.die()
    await until(lambda: not spare.spare)
    assert replica.spare
    [request] = prompts(1)
    pool.put(request)
    assert (await request.completion()).response == "from 1"
    await pool.stop()


async def test_restarted_server_becomes_the_spare() -> None:
    replica, spare = FakeReplica(0, state="STARTING"), FakeReplica(1, state="STARTING")
    spare.spare = True
    pool = pool_of(replica, spare)
    await pool.start()
    replica.die()
    await until(lambda: replica.starts == 2)
    assert [one.index for one in pool.ready] == [1]
    spare.die()
    await until(lambda: [one.index for one in pool.ready] == [0])
    await pool.stop()


async def test_spare_that_is_late_takes_over() -> None:
    replica, spare = FakeReplica(0, state="STARTING"), FakeReplica(1, state="STARTING")
    spare.spare = True
    pool = pool_of(replica, spare, max_restarts=1)
    await pool.start()
    spare.failing_starts = 0
    spare.state = "STARTING"
    replica.failing_starts = 1
    replica.die()
    await until(lambda: replica.state == "FAILED")
    spare.die()
    await until(lambda: not spare.spare)
    assert [one.index for one in pool.ready] == [1]
    await pool.stop()


async def test_spare_that_becomes_healthy_again_takes_over(prompts: Prompts) -> None:
    replica, spare = FakeReplica(0, state="STARTING"), FakeReplica(1, state="STARTING")
    spare.spare = True
    pool = pool_of(replica, spare, max_restarts=0)
    await pool.start()
    spare.state = "UNHEALTHY"
    replica.die()
    await until(lambda: replica.state == "FAILED")
    [request] = prompts(1)
    pool.put(request)
    spare.state = "READY"
    spare.on_room()  # as a replica whose health check has succeeded
    assert (await asyncio.wait_for(request.completion(), 10)).response == "from 1"
    await pool.stop()


async def test_loss_of_last_server_fails_waiting_prompts(
    prompts: Prompts, caplog: pytest.LogCaptureFixture
) -> None:
    replicas = [FakeReplica(0, state="STARTING"), FakeReplica(1, state="STARTING")]
    pool = pool_of(*replicas, max_restarts=0)
    await pool.start()
    replicas[0].die()
    await until(lambda: replicas[0].state == "FAILED")
    assert pool.failure is None
    replicas[1].state = "UNHEALTHY"
    [waiting] = prompts(1)
    pool.put(waiting)
    replicas[1].die("did not respond to 3 health checks in a row")
    with pytest.raises(ReplicaError) as failed:
        await asyncio.wait_for(waiting.completion(), 5)
    assert failed.value is pool.failure
    assert "no model server is left: model server 1 did not respond" in str(pool.failure)
    assert "max_restarts=0 is used up" in str(pool.failure)
    assert "last lines" not in str(pool.failure), "every prompt gets it"
    assert caplog.text.count("last lines of 1") == 2
    await pool.stop()


async def test_prompts_lost_with_last_server_fail_with_its_reason(prompts: Prompts) -> None:
    replica = FakeReplica(0)
    replica.losses = 1
    pool = pool_of(replica, max_restarts=0)
    await pool.start()
    [request] = prompts(1)
    sending = pool.dispatch([request])
    replica.die()
    await until(lambda: pool.failure is not None)
    await sending
    with pytest.raises(ReplicaError, match="no model server is left"):
        await request.completion()
    await pool.stop()


async def test_error_in_supervision_counts_as_lost_server(caplog: pytest.LogCaptureFixture) -> None:
    replica = FakeReplica(0)
    pool = pool_of(replica)
    replica.watch_error = RuntimeError("a bug")
    await pool.start()
    await until(lambda: pool.failure is not None)
    assert "a bug" in str(pool.failure)
    assert "no longer supervised" in caplog.text
    await pool.stop()


async def test_closed_pool_does_not_send_lost_prompts_again(prompts: Prompts) -> None:
    replica = FakeReplica(0)
    replica.losses = 1
    pool = pool_of(replica)
    [request] = prompts(1)
    sending = pool.dispatch([request])
    pool.close(ReplicaError("closed"))
    pool.close(ReplicaError("closed again"))
    await sending
    with pytest.raises(ReplicaError, match=r"^closed$"):
        await request.completion()


async def test_prompts_with_the_same_beginning_go_to_the_same_server() -> None:
    replicas = [FakeReplica(index) for index in range(2)]
    batch = [PromptRequest(f"{group}" * 2000 + f"{n}") for n in range(4) for group in range(6)]
    await pool_of(*replicas).dispatch(batch)
    groups = [{request.body["prompt"][0] for request in one.reserved} for one in replicas]
    assert groups[0].isdisjoint(groups[1])
    assert [len(one.reserved) for one in replicas] == [12, 12]
    for request in batch:
        request.close()


async def test_prefix_routing_can_be_switched_off() -> None:
    replicas = [FakeReplica(index) for index in range(2)]
    batch = [PromptRequest("x" * 2000) for _ in range(4)]
    await pool_of(*replicas, prefix_routing=False).dispatch(batch)
    assert [len(one.reserved) for one in replicas] == [2, 2]
    for request in batch:
        request.close()


async def test_chat_goes_to_the_server_that_has_its_beginning() -> None:
    replicas = [FakeReplica(0, 3), FakeReplica(1, 1)]
    pool = pool_of(*replicas)
    assert pool.choose(lambda: (1,)) is cast("Replica", replicas[1])
    replicas[1].in_flight = 6
    assert pool.choose(lambda: (1,)) is cast("Replica", replicas[1])
    assert pool.choose(lambda: (2,)) is cast("Replica", replicas[0])
    assert pool.choose(lambda: ()) is cast("Replica", replicas[0])


async def test_server_that_does_not_finish_its_requests_is_not_paused_for_ever() -> None:
    busy = FakeReplica(3, in_flight=2)
    pool = pool_of(busy)
    with pytest.raises(ReplicaError, match=r"server 3 has not finished its requests in 0\.01 s"):
        async with pool.paused(cast("Replica", busy), 0.01):
            raise AssertionError
    assert not busy.paused
    busy.in_flight = 0
    async with pool.paused(cast("Replica", busy), 0):
        assert busy.paused


async def test_paused_server_finishes_its_prompts_and_gets_no_others(prompts: Prompts) -> None:
    busy, other = FakeReplica(0, in_flight=1), FakeReplica(1, in_flight=5)
    pool = pool_of(busy, other)
    entered = asyncio.Event()

    async def pause() -> None:
        async with pool.paused(cast("Replica", busy)):
            entered.set()
            assert pool.is_paused
            assert pool.least_loaded() is cast("Replica", other)
            await pool.dispatch(prompts(3))

    pausing = asyncio.ensure_future(pause())
    await asyncio.sleep(0)
    assert pool.ready == [cast("Replica", other)]
    assert not entered.is_set()
    busy.in_flight = 0
    pool.on_room()
    await pausing
    assert busy.reserved == []
    assert len(other.reserved) == 3
    assert not pool.is_paused
    assert len(pool.ready) == 2
