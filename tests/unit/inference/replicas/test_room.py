"""How many prompts servers take, and the slots that are kept free for urgent ones."""

from typing import cast

import pytest

from rhapsody.inference.replicas.replica import Replica
from rhapsody.inference.replicas.room import KEPT_SECONDS, Room
from tests.support.clock import FakeClock
from tests.support.replicas import FakeReplica


def server(limit: int = 32, in_flight: int = 0, ordinary: int = 0) -> Replica:
    replica = FakeReplica(0, in_flight + ordinary)
    replica.limit = limit
    replica.ordinary_in_flight = ordinary
    return cast("Replica", replica)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def room(clock: FakeClock) -> Room:
    return Room(clock=clock.time)


def test_without_urgent_prompts_every_slot_is_for_any_prompt(room: Room) -> None:
    servers = [server(32, ordinary=30), server(32, in_flight=40), server(8)]
    assert room.for_ordinary(servers) == room.for_urgent(servers) == 2 + 0 + 8


def test_urgent_prompt_keeps_slots_of_each_server_free(room: Room) -> None:
    room.note_urgent()
    assert room.for_ordinary([server(32), server(256), server(10)]) == 30 + 240 + 9
    assert room.for_urgent([server(32), server(256), server(10)]) == 32 + 256 + 10


def test_kept_slots_are_for_urgent_prompts_only(room: Room) -> None:
    room.note_urgent()
    full = [server(32, ordinary=30)]
    assert (room.for_ordinary(full), room.for_urgent(full)) == (0, 2)


def test_urgent_prompts_beside_the_kept_slots_leave_less_for_ordinary_ones(room: Room) -> None:
    room.note_urgent()
    assert room.for_ordinary([server(32, in_flight=5, ordinary=20)]) == 7
    assert room.for_ordinary([server(32, in_flight=2, ordinary=20)]) == 10
    assert room.for_ordinary([server(32, in_flight=32, ordinary=0)]) == 0


def test_slots_are_kept_for_a_minute(room: Room, clock: FakeClock) -> None:
    room.note_urgent()
    clock.advance(KEPT_SECONDS / 2)
    room.note_urgent()
    clock.advance(KEPT_SECONDS - 1)
    assert room.for_ordinary([server(32)]) == 30
    clock.advance(1)
    assert room.for_ordinary([server(32)]) == 32


def test_server_with_few_slots_keeps_none_free(room: Room) -> None:
    room.note_urgent()
    assert room.for_ordinary([server(9)]) == 9


def test_busy_server_gets_as_many_prompts_again_as_it_works_on(room: Room) -> None:
    assert room.beyond([server(32, ordinary=32), server(4, ordinary=4)]) == 32 + 4
    assert room.beyond([server(32, ordinary=64)]) == 0


def test_busy_server_gets_further_prompts_in_portions(room: Room) -> None:
    assert room.beyond([server(32, ordinary=57)]) == 0
    assert room.beyond([server(32, ordinary=56)]) == 8


def test_busy_server_gets_no_prompts_beyond_its_slots_while_urgent_ones_come(room: Room) -> None:
    room.note_urgent()
    assert room.beyond([server(32, ordinary=30)]) == 0
    assert room.beyond([server(32, ordinary=29)]) == 1


def test_urgent_prompts_never_take_all_slots_from_ordinary_ones_for_ever(room: Room) -> None:
    flooded = [server(32, in_flight=500)]
    assert room.for_ordinary(flooded) == 0
    assert room.beyond(flooded) == 64
    room.note_urgent()
    assert room.for_ordinary(flooded) == 0
    assert room.beyond(flooded) == 30


def test_servers_of_a_growing_pool_are_filled_beyond_their_slots(clock: FakeClock) -> None:
    room = Room(2, clock.time)
    assert room.for_ordinary([server(32, ordinary=40)]) == 24
    room.note_urgent()
    assert room.for_ordinary([server(32, ordinary=20)]) == 10
    assert room.for_urgent([server(32, ordinary=20)]) == 44
