"""Placement over described allocations: hosts and GPUs as data."""

import pytest

from rhapsody.api.errors import ResourceError
from rhapsody.inference.placement import Claims, Host, Place, place


def hosts(nodes: int, gpus: int) -> list[Host]:
    return [Host(f"nid{number:03}", tuple(range(gpus))) for number in range(nodes)]


def shape(places: list[Place]) -> list[tuple[str, tuple[int | str, ...]]]:
    return [(p.host.name, p.gpus) for p in places]


def test_one_node_with_one_gpu() -> None:
    made = place(hosts(1, 1), num_nodes=1, num_gpus=1, tp_size=1, offset=0)
    assert shape(made) == [("nid000", (0,))]
    assert made[0].environment == {"CUDA_VISIBLE_DEVICES": "0"}


def test_replicas_that_span_two_of_four_gpus() -> None:
    made = place(hosts(1, 4), num_nodes=1, num_gpus=4, tp_size=2, offset=0)
    assert shape(made) == [("nid000", (0, 1)), ("nid000", (2, 3))]


def test_four_nodes_of_eight_gpus() -> None:
    made = place(hosts(4, 8), num_nodes=4, num_gpus=8, tp_size=1, offset=0)
    assert len(made) == 32
    assert len(set(shape(made))) == 32
    assert {p.host.name for p in made} == {"nid000", "nid001", "nid002", "nid003"}


def test_an_offset_leaves_the_first_nodes_to_others() -> None:
    made = place(hosts(4, 2), num_nodes=2, num_gpus=2, tp_size=2, offset=2)
    assert shape(made) == [("nid002", (0, 1)), ("nid003", (0, 1))]


def test_two_services_side_by_side_share_no_node() -> None:
    nodes = hosts(4, 2)
    first = place(nodes, num_nodes=2, num_gpus=2, tp_size=1, offset=0)
    second = place(nodes, num_nodes=2, num_gpus=2, tp_size=1, offset=2)
    assert not {p.host.name for p in first} & {p.host.name for p in second}


def test_gpus_that_make_no_whole_replica_stay_idle() -> None:
    made = place(hosts(1, 8), num_nodes=1, num_gpus=5, tp_size=2, offset=0)
    assert shape(made) == [("nid000", (0, 1)), ("nid000", (2, 3))]


def test_on_the_cpu_there_is_one_replica_a_node() -> None:
    made = place(hosts(3, 0), num_nodes=2, num_gpus=0, tp_size=1, offset=1)
    assert shape(made) == [("nid001", ()), ("nid002", ())]
    assert made[0].environment == {"CUDA_VISIBLE_DEVICES": ""}


def test_the_variable_is_that_of_the_gpus_maker() -> None:
    node = Host("nid000", (0, 1), "ROCR_VISIBLE_DEVICES")
    made = place([node], num_nodes=1, num_gpus=2, tp_size=2, offset=0)
    assert made[0].environment == {"ROCR_VISIBLE_DEVICES": "0,1"}


def refusal(nodes: list[Host], **asked: int) -> str:
    wanted = {"num_nodes": 1, "num_gpus": 1, "tp_size": 1, "offset": 0, **asked}
    with pytest.raises(ResourceError) as refused:
        place(nodes, **wanted)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_more_nodes_than_there_are_are_refused() -> None:
    said = refusal(hosts(4, 1), num_nodes=3, offset=2)
    assert "num_nodes=3 from offset=2 needs 5 nodes, and there are 4" in said


def test_more_gpus_than_a_node_has_are_refused() -> None:
    assert "num_gpus=8 on node 'nid000', which has 4" in refusal(hosts(2, 4), num_gpus=8)


def test_a_machine_without_gpus_says_how_to_serve_on_the_cpu() -> None:
    said = refusal(hosts(1, 0))
    assert "which has none" in said
    assert "pass num_gpus=0 to serve on the CPU" in said


def test_the_node_that_lacks_gpus_is_named() -> None:
    mixed = [*hosts(1, 4), Host("thin", (0,))]
    assert "'thin', which has 1" in refusal(mixed, num_nodes=2, num_gpus=4)


ONE = {"num_nodes": 1, "num_gpus": 1, "tp_size": 1, "offset": 0}


def test_two_backends_of_a_program_take_different_gpus() -> None:
    claims = Claims()
    first, second = (claims.place(hosts(1, 2), **ONE) for _ in range(2))
    assert [first[0].gpus, second[0].gpus] == [(0,), (1,)]
    with pytest.raises(ResourceError):
        claims.place(hosts(1, 2), **ONE)


def test_gpus_that_were_given_back_are_free() -> None:
    claims = Claims()
    first = claims.place(hosts(1, 1), **ONE)
    claims.release(first)
    assert claims.place(hosts(1, 1), **ONE) == first


def test_a_refused_claim_takes_nothing() -> None:
    claims = Claims()
    with pytest.raises(ResourceError):
        claims.place(hosts(1, 2), **{**ONE, "num_gpus": 3})
    assert len(claims.place(hosts(1, 2), **{**ONE, "num_gpus": 2})) == 2
