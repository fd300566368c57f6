"""The pool: who gets a prompt, and what becomes of it when a server dies."""

import asyncio
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rhapsody.api.errors import ReplicaError
from rhapsody.inference import pool as pool_module
from rhapsody.inference.pool import Pool
from rhapsody.inference.prompts import PromptRequest
from tests.support.replicas import FakeReplica


class Seen:
    """What a pool told its service."""

    def __init__(self) -> None:
        self.put_back: list[PromptRequest] = []
        self.failures: list[ReplicaError] = []
        self.failed = asyncio.Event()

    def fail(self, error: ReplicaError) -> None:
        self.failures.append(error)
        self.failed.set()


def pool_of(*replicas: FakeReplica, seen: Seen | None = None, **options: Any) -> Pool:
    seen = seen or Seen()
    return Pool(
        replicas,  # type: ignore[arg-type]
        max_retries=options.get("max_retries", 2),
        max_restarts=options.get("max_restarts", 2),
        startup_timeout=5,
        health_interval=1,
        put_back=seen.put_back.extend,
        on_failure=seen.fail,
    )


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_module, "BACKOFF_SECONDS", 0)


async def until(condition: Callable[[], bool]) -> None:
    """Let the pool's tasks run; they wait for nothing but each other."""
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(0)
    raise AssertionError("it never came to that")


@pytest.fixture
def prompts() -> Iterator[Callable[[int], list[PromptRequest]]]:
    made: list[PromptRequest] = []

    def make(number: int) -> list[PromptRequest]:
        made.extend(PromptRequest(f"prompt {i}") for i in range(number))
        return made[-number:]

    yield make
    for request in made:
        request.abandon()


Make = Callable[[int], list[PromptRequest]]


# -- who gets a prompt ------------------------------------------------------------------------


@given(loads=st.lists(st.integers(0, 20), min_size=1, max_size=6), number=st.integers(1, 60))
def test_loads_become_as_even_as_they_can(loads: list[int], number: int) -> None:
    async def play() -> None:
        replicas = [FakeReplica(index, load) for index, load in enumerate(loads)]
        batch = [PromptRequest("hi") for _ in range(number)]
        sending = pool_of(*replicas).dispatch(batch)
        after = [replica.in_flight for replica in replicas]
        assert sum(after) == sum(loads) + number
        for replica, before in zip(replicas, loads, strict=True):
            if replica.in_flight > before:
                assert replica.in_flight <= min(after) + 1
        taken = [request for replica in replicas for request in replica.taken]
        assert sorted(taken, key=batch.index) == batch
        for replica in replicas:  # neighbours stay together, in their order
            places = [batch.index(request) for request in replica.taken]
            assert all(b == a + 1 for a, b in pairwise(places))
        await sending

    asyncio.run(play())


async def test_a_batch_takes_its_room_before_anything_else_runs(prompts: Make) -> None:
    replica = FakeReplica(0)
    pool = pool_of(replica)
    assert pool.capacity() == 8
    sending = pool.dispatch(prompts(3))
    assert pool.capacity() == 5
    await sending
    assert pool.capacity() == 8


async def test_only_ready_servers_get_prompts(prompts: Make) -> None:
    replicas = [FakeReplica(0, state="STARTING"), FakeReplica(1, 7), FakeReplica(2, state="DEAD")]
    await pool_of(*replicas).dispatch(prompts(4))
    assert [len(replica.taken) for replica in replicas] == [0, 4, 0]


async def test_there_is_no_capacity_while_none_is_ready() -> None:
    assert pool_of(FakeReplica(0, state="STARTING")).capacity() is None
    assert pool_of(FakeReplica(0, in_flight=9)).capacity() == 0


async def test_the_least_loaded_ready_server_is_named() -> None:
    idle, busy = FakeReplica(0, 1), FakeReplica(1, 5)
    assert pool_of(busy, idle).least_loaded() is idle
    assert pool_of(FakeReplica(0, state="DEAD")).least_loaded() is None


# -- prompts whose server died ----------------------------------------------------------------


async def test_lost_prompts_come_back_to_be_sent_again(prompts: Make) -> None:
    replica, seen = FakeReplica(0), Seen()
    replica.loses = True
    batch = prompts(3)
    await pool_of(replica, seen=seen).dispatch(batch)
    assert seen.put_back == batch
    assert all(request.replica is None for request in batch)


async def test_a_prompt_lost_too_often_fails_with_the_servers_last_words(prompts: Make) -> None:
    replica, seen = FakeReplica(0), Seen()
    replica.loses = True
    pool = pool_of(replica, seen=seen, max_retries=1)
    [request] = prompts(1)
    await pool.dispatch([request])
    await pool.dispatch(seen.put_back)
    with pytest.raises(ReplicaError, match="lost 2 times") as failed:
        await request.completion()
    assert failed.value.log_tail == "last words of 0"


async def test_a_stream_that_has_begun_is_not_started_over() -> None:
    replica, seen = FakeReplica(0), Seen()
    replica.loses = True
    request = PromptRequest("hi", on_text=len)
    request.add_piece("he")
    await pool_of(replica, seen=seen).dispatch([request])
    assert seen.put_back == []
    with pytest.raises(ReplicaError, match="in the middle of the stream"):
        await request.completion()


# -- servers that die -------------------------------------------------------------------------


async def test_all_start_together_and_are_ready_afterwards() -> None:
    replicas = [FakeReplica(index, state="STARTING") for index in range(3)]
    pool = pool_of(*replicas)
    await pool.start()
    assert len(pool.ready) == 3
    await pool.stop()
    assert [replica.state for replica in replicas] == ["STOPPED"] * 3


async def test_one_that_cannot_start_ends_all() -> None:
    replicas = [FakeReplica(0, state="STARTING"), FakeReplica(1, state="STARTING")]
    replicas[1].fail_starts = 1
    with pytest.raises(ReplicaError, match="model server 1 exited with code 1"):
        await pool_of(*replicas).start()
    assert [replica.state for replica in replicas] == ["STOPPED"] * 2


async def test_a_dead_server_is_started_again() -> None:
    replica = FakeReplica(0, state="STARTING")
    pool = pool_of(replica)
    await pool.start()
    replica.die()
    await until(lambda: replica.starts == 2 and replica.state == "READY")
    assert replica.restarts == 1
    await pool.stop()


async def test_a_restart_that_fails_is_tried_again() -> None:
    replica = FakeReplica(0, state="STARTING")
    pool = pool_of(replica, max_restarts=3)
    await pool.start()
    replica.fail_starts = 2
    replica.die()
    await until(lambda: replica.starts == 4 and replica.state == "READY")
    await pool.stop()


async def test_when_no_server_is_left_the_service_is_told_once_and_why() -> None:
    replicas, seen = [FakeReplica(0), FakeReplica(1)], Seen()
    pool = pool_of(*replicas, seen=seen, max_restarts=0)
    await pool.start()
    replicas[0].die()
    await until(lambda: replicas[0].state == "FAILED")
    assert seen.failures == []
    replicas[1].die("did not answer 3 health checks in a row")
    await seen.failed.wait()
    assert seen.failures == [pool.failure]
    assert "no model server is left: model server 1 did not answer" in str(pool.failure)
    assert "max_restarts=0 is used up" in str(pool.failure)
    assert "last words of 1" in str(pool.failure)
    await pool.stop()


async def test_prompts_lost_with_the_last_server_fail_with_its_reason(prompts: Make) -> None:
    replica, seen = FakeReplica(0), Seen()
    pool = pool_of(replica, seen=seen, max_restarts=0)
    await pool.start()
    sending = pool.dispatch(prompts(1))
    replica.loses = True
    replica.die()
    await seen.failed.wait()
    await sending
    assert seen.put_back == []
    with pytest.raises(ReplicaError, match="no model server is left"):
        await replica.taken[0].completion()
    await pool.stop()


async def test_an_error_nobody_thought_of_counts_as_a_lost_server(
    caplog: pytest.LogCaptureFixture,
) -> None:
    replica, seen = FakeReplica(0), Seen()
    pool = pool_of(replica, seen=seen)
    replica.watching = RuntimeError("a bug")
    await pool.start()
    await asyncio.wait_for(seen.failed.wait(), 5)
    assert "a bug" in str(pool.failure)
    assert "no longer watched" in caplog.text
    await pool.stop()
