"""Placement of replicas over the nodes and GPUs of an allocation."""

import pytest

from rhapsody.allocation import Node
from rhapsody.errors import ResourceError
from rhapsody.inference.replicas.placement import GpuClaims, Place, place


def allocation(nodes: int, gpus: int) -> list[Node]:
    return [Node(f"nid{number:03}", gpus=tuple(range(gpus))) for number in range(nodes)]


def shape(places: list[Place]) -> list[tuple[str, tuple[int | str, ...]]]:
    return [(p.node.name, p.gpus) for p in places]


def test_one_node_with_one_gpu() -> None:
    places = place(allocation(1, 1), num_nodes=1, num_gpus=1, tp_size=1, offset=0)
    assert shape(places) == [("nid000", (0,))]
    assert places[0].environment == {"CUDA_VISIBLE_DEVICES": "0"}


def test_replicas_of_two_gpus() -> None:
    places = place(allocation(1, 4), num_nodes=1, num_gpus=4, tp_size=2, offset=0)
    assert shape(places) == [("nid000", (0, 1)), ("nid000", (2, 3))]


def test_four_nodes_of_eight_gpus() -> None:
    places = place(allocation(4, 8), num_nodes=4, num_gpus=8, tp_size=1, offset=0)
    assert len(places) == 32
    assert len(set(shape(places))) == 32
    assert {p.node.name for p in places} == {"nid000", "nid001", "nid002", "nid003"}


def test_offset_skips_nodes() -> None:
    places = place(allocation(4, 2), num_nodes=2, num_gpus=2, tp_size=2, offset=2)
    assert shape(places) == [("nid002", (0, 1)), ("nid003", (0, 1))]


def test_services_with_offsets_share_no_node() -> None:
    nodes = allocation(4, 2)
    first = place(nodes, num_nodes=2, num_gpus=2, tp_size=1, offset=0)
    second = place(nodes, num_nodes=2, num_gpus=2, tp_size=1, offset=2)
    assert not {p.node.name for p in first} & {p.node.name for p in second}


def test_remaining_gpus_stay_idle() -> None:
    places = place(allocation(1, 8), num_nodes=1, num_gpus=5, tp_size=2, offset=0)
    assert shape(places) == [("nid000", (0, 1)), ("nid000", (2, 3))]


def test_cpu_has_one_replica_per_node() -> None:
    places = place(allocation(3, 0), num_nodes=2, num_gpus=0, tp_size=1, offset=1)
    assert shape(places) == [("nid001", ()), ("nid002", ())]
    assert places[0].environment == {"CUDA_VISIBLE_DEVICES": ""}


def test_environment_uses_the_nodes_gpu_variable() -> None:
    node = Node("nid000", 4, (0, 1), "ROCR_VISIBLE_DEVICES")
    places = place([node], num_nodes=1, num_gpus=2, tp_size=2, offset=0)
    assert places[0].environment == {"ROCR_VISIBLE_DEVICES": "0,1"}


def error_message(nodes: list[Node], **changes: int) -> str:
    parameters = {"num_nodes": 1, "num_gpus": 1, "tp_size": 1, "offset": 0, **changes}
    with pytest.raises(ResourceError) as refused:
        place(nodes, **parameters)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_too_many_nodes_are_refused() -> None:
    message = error_message(allocation(4, 1), num_nodes=3, offset=2)
    assert "num_nodes=3 from offset=2 needs 5 nodes, and there are 4" in message


def test_too_many_gpus_are_refused() -> None:
    assert "num_gpus=8 on node 'nid000', which has 4" in error_message(allocation(2, 4), num_gpus=8)


def test_machine_without_gpus_suggests_the_cpu() -> None:
    message = error_message(allocation(1, 0))
    assert "which has none" in message
    assert "pass num_gpus=0 to serve on the CPU" in message


def test_node_with_too_few_gpus_is_named() -> None:
    mixed = [*allocation(1, 4), Node("thin", gpus=(0,))]
    assert "'thin', which has 1" in error_message(mixed, num_nodes=2, num_gpus=4)


ONE = {"num_nodes": 1, "num_gpus": 1, "tp_size": 1, "offset": 0}


def test_claimed_gpus_are_not_used_twice() -> None:
    claims = GpuClaims()
    first, second = (claims.place(allocation(1, 2), **ONE) for _ in range(2))
    assert [first[0].gpus, second[0].gpus] == [(0,), (1,)]
    with pytest.raises(ResourceError):
        claims.place(allocation(1, 2), **ONE)


def test_released_gpus_are_free() -> None:
    claims = GpuClaims()
    first = claims.place(allocation(1, 1), **ONE)
    claims.release(first)
    assert claims.place(allocation(1, 1), **ONE) == first


def test_refused_claim_takes_nothing() -> None:
    claims = GpuClaims()
    with pytest.raises(ResourceError):
        claims.place(allocation(1, 2), **{**ONE, "num_gpus": 3})
    assert len(claims.place(allocation(1, 2), **{**ONE, "num_gpus": 2})) == 2


def test_spares_get_free_gpus_in_turn() -> None:
    claims = GpuClaims()
    nodes = [Node("a", gpus=(0, 1, 2)), Node("b", gpus=(0, 1, 2))]
    claims.place(nodes, num_nodes=2, num_gpus=2, tp_size=2, offset=0)
    spares = claims.place_more(nodes, 2, 1)
    assert [(spare.node.name, spare.gpus) for spare in spares] == [("a", (2,)), ("b", (2,))]
    claims.release(spares)
    assert len(claims.place_more(nodes, 2, 1)) == 2


def test_spares_on_the_cpu_need_nothing() -> None:
    assert len(GpuClaims().place_more([Node("a")], 3, 0)) == 3


def test_too_many_spares_are_refused_and_take_nothing() -> None:
    claims = GpuClaims()
    nodes = [Node("a", gpus=(0, 1))]
    with pytest.raises(ResourceError, match="there are GPUs for 2; lower spares"):
        claims.place_more(nodes, 3, 1)
    assert len(claims.place_more(nodes, 2, 1)) == 2


def test_ranks_of_a_replica_are_on_different_nodes() -> None:
    claims = GpuClaims()
    nodes = allocation(4, 2)
    places = claims.place_more(nodes, 2, 2, "replicas", ranks=2)
    assert [shape(list(place.ranks)) for place in places] == [
        [("nid000", (0, 1)), ("nid001", (0, 1))],
        [("nid002", (0, 1)), ("nid003", (0, 1))],
    ]
    with pytest.raises(ResourceError, match="2 free GPUs on each of 2 nodes for each replica"):
        claims.place_more(nodes, 1, 2, "replicas", ranks=2)
    claims.release(places)
    assert len(claims.place_more(nodes, 2, 2, "replicas", ranks=2)) == 2


def test_ranks_share_the_only_node() -> None:
    [place] = GpuClaims().place_more(allocation(1, 4), 1, 2, "replicas", ranks=2)
    assert shape(list(place.ranks)) == [("nid000", (0, 1)), ("nid000", (2, 3))]
