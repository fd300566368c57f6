"""Placement of the ranks of a job, on simulated allocations."""

from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest

from rhapsody.allocation import Node
from rhapsody.backends.dragon.ranks import Rank, ranks_of
from rhapsody.errors import ResourceError, UnsupportedTaskError

SMALL = [Node("only", cpus=2, is_head=True)]
LARGE = [Node(f"node{n}", 8, gpus=(0, 1, 2, 3), is_head=n == 0) for n in range(4)]


def place(options: dict[str, Any], nodes: list[Node] = LARGE) -> list[Rank]:
    return ranks_of("task", options, nodes)


def test_task_without_job_options_has_no_ranks() -> None:
    assert place({"timeout": 3, "cwd": "/"}) == []


def test_ranks_fill_one_node_after_another() -> None:
    ranks = place({"ranks": 12})
    assert [rank.node for rank in ranks] == ["node0"] * 8 + ["node1"] * 4


def test_more_ranks_than_cpus_share_the_cpus_evenly() -> None:
    assert [rank.node for rank in place({"ranks": 5}, SMALL)] == ["only"] * 5
    assert Counter(rank.node for rank in place({"ranks": 64})) == dict.fromkeys(
        ("node0", "node1", "node2", "node3"), 16
    )


def test_ranks_share_no_gpu() -> None:
    ranks = place({"ranks": 6, "gpus_per_rank": 2})
    assert [(rank.node, rank.gpus) for rank in ranks] == [
        ("node0", (0, 1)),
        ("node0", (2, 3)),
        ("node1", (0, 1)),
        ("node1", (2, 3)),
        ("node2", (0, 1)),
        ("node2", (2, 3)),
    ]


def test_nodes_option_restricts_the_placement() -> None:
    assert {rank.node for rank in place({"ranks": 16, "nodes": ["node2", "node3"]})} == {
        "node2",
        "node3",
    }
    assert {rank.node for rank in place({"ranks": 16, "nodes": 2})} == {"node0", "node1"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ranks": 9, "gpus_per_rank": 2}, "it asks for 9 ranks with 2 GPUs each"),
        ({"ranks": 1, "gpus_per_rank": 5}, "it asks for 1 ranks with 5 GPUs each"),
        ({"ranks": 1, "nodes": ["node9"]}, r"it asks for nodes=\['node9'\]"),
        ({"ranks": 1, "nodes": 5}, "it asks for nodes=5"),
        ({"ranks": 1, "policy": SimpleNamespace(host_name="mars")}, "its policy names 'mars'"),
    ],
)
def test_missing_resources_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ResourceError, match=message):
        place(options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ranks": 0}, "'ranks' must be a whole number of at least 1"),
        ({"ranks": True}, "'ranks' must be"),
        ({"gpus_per_rank": 1}, "exactly one of 'ranks'"),
        ({"ranks": 2, "process_template": {}}, "exactly one of 'ranks'"),
        ({"ranks": 2, "pmi": "slurm"}, "'pmi' must be 'cray' or 'pmix'"),
        ({"ranks": 2, "retries": 1}, "'retries' does not apply to jobs"),
        ({"process_templates": []}, "a list of"),
        ({"process_templates": [(0, {})]}, "a list of"),
        ({"process_templates": 3}, "a list of"),
        ({"process_template": {"target": "x"}}, "has no key 'target'"),
        ({"process_template": {}, "nodes": 1}, "'nodes' belongs inside 'process_template'"),
    ],
)
def test_invalid_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedTaskError, match=message):
        place(options)


def test_each_process_of_a_template_becomes_a_rank() -> None:
    ranks = place({"process_templates": [(2, {"cwd": "/a"}), (1, {"env": {"A": "1"}})]})
    assert [rank.template for rank in ranks] == [{"cwd": "/a"}] * 2 + [{"env": {"A": "1"}}]
    assert len(place({"process_template": {}})) == 1
