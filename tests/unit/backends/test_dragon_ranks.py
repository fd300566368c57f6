"""Where ranks and workers go, over allocations that are described, not there."""

from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rhapsody.api.errors import ConfigurationError, ResourceError, UnsupportedTaskError
from rhapsody.backends.dragon_ranks import Rank, ranks_of
from rhapsody.backends.dragon_runtime import Host, choose_hosts, most_workers, spread

SMALL = [Host("only", cpus=2, is_head=True)]
LARGE = [Host(f"node{n}", 8, gpus=(0, 1, 2, 3), is_head=n == 0) for n in range(4)]


def place(options: dict[str, Any], hosts: list[Host] = LARGE) -> list[Rank]:
    return ranks_of("task", options, hosts)


def test_a_task_without_such_options_is_no_job() -> None:
    assert place({"timeout": 3, "cwd": "/"}) == []


def test_ranks_fill_one_host_after_another() -> None:
    ranks = place({"ranks": 12})
    assert [rank.host for rank in ranks] == ["node0"] * 8 + ["node1"] * 4


def test_more_ranks_than_cpus_share_them_evenly() -> None:
    assert [rank.host for rank in place({"ranks": 5}, SMALL)] == ["only"] * 5
    assert Counter(rank.host for rank in place({"ranks": 64})) == dict.fromkeys(
        ("node0", "node1", "node2", "node3"), 16
    )


def test_each_rank_has_gpus_of_its_own() -> None:
    ranks = place({"ranks": 6, "gpus_per_rank": 2})
    assert [(rank.host, rank.gpus) for rank in ranks] == [
        ("node0", (0, 1)),
        ("node0", (2, 3)),
        ("node1", (0, 1)),
        ("node1", (2, 3)),
        ("node2", (0, 1)),
        ("node2", (2, 3)),
    ]


def test_nodes_restrict() -> None:
    assert {rank.host for rank in place({"ranks": 16, "nodes": ["node2", "node3"]})} == {
        "node2",
        "node3",
    }
    assert {rank.host for rank in place({"ranks": 16, "nodes": 2})} == {"node0", "node1"}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"ranks": 9, "gpus_per_rank": 2}, "9 ranks of 2 GPUs each are asked for"),
        ({"ranks": 1, "gpus_per_rank": 5}, "1 ranks of 5 GPUs each"),
        ({"ranks": 1, "nodes": ["node9"]}, "'node9'"),
        ({"ranks": 1, "nodes": 5}, "5 is asked for"),
        ({"ranks": 1, "policy": SimpleNamespace(host_name="mars")}, "its policy names 'mars'"),
    ],
)
def test_what_is_not_there_is_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ResourceError, match=words):
        place(options)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"ranks": 0}, "'ranks' must be a whole number of at least 1"),
        ({"ranks": True}, "'ranks' must be"),
        ({"gpus_per_rank": 1}, "exactly one of 'ranks'"),
        ({"ranks": 2, "process_template": {}}, "exactly one of 'ranks'"),
        ({"ranks": 2, "pmi": "slurm"}, "'pmi' must be 'cray' or 'pmix'"),
        ({"ranks": 2, "retries": 1}, "'retries' is not for jobs"),
        ({"process_templates": []}, "a list of"),
        ({"process_templates": [(0, {})]}, "a list of"),
        ({"process_templates": 3}, "a list of"),
        ({"process_template": {"target": "x"}}, "no 'target' here"),
        ({"process_template": {}, "nodes": 1}, "'nodes' belongs inside 'process_template'"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UnsupportedTaskError, match=words):
        place(options)


def test_templates_become_ranks() -> None:
    ranks = place({"process_templates": [(2, {"cwd": "/a"}), (1, {"env": {"A": "1"}})]})
    assert [rank.template for rank in ranks] == [{"cwd": "/a"}] * 2 + [{"env": {"A": "1"}}]
    assert len(place({"process_template": {}})) == 1


def test_the_default_leaves_the_head_a_cpu() -> None:
    assert most_workers("dragon", SMALL, None) == 1
    assert most_workers("dragon", LARGE, None) == 31
    assert most_workers("dragon", [Host("tiny", 1, is_head=True)], None) == 1


def test_thousands_of_workers_want_hundreds_of_cpus(caplog: pytest.LogCaptureFixture) -> None:
    assert most_workers("dragon", [Host(f"node{n}", 64) for n in range(32)], 2048) == 2048
    assert most_workers("dragon", LARGE, 256) == 256
    assert not caplog.text
    assert most_workers("dragon", SMALL, 2048) == 16
    assert "num_workers=2048 is more than 8 for each of the 2 CPUs here" in caplog.text


def test_hosts_are_chosen_by_number_or_name() -> None:
    assert choose_hosts(LARGE, None) == LARGE
    assert choose_hosts(LARGE, 2) == LARGE[:2]
    assert choose_hosts(LARGE, ["node3", "node1"]) == [LARGE[3], LARGE[1]]
    with pytest.raises(ConfigurationError, match="nodes=5 asks for more nodes than the 4"):
        choose_hosts(LARGE, 5)
    with pytest.raises(ConfigurationError, match="nodes names no node"):
        choose_hosts(LARGE, [])
    with pytest.raises(ConfigurationError, match="nodes names mars, not in this allocation"):
        choose_hosts(LARGE, ["mars"])


@given(st.lists(st.integers(1, 64), min_size=1, max_size=6), st.integers(0, 200))
def test_workers_are_spread_by_cpus(cpus: list[int], count: int) -> None:
    hosts = [Host(f"n{n}", c, is_head=n == 0) for n, c in enumerate(cpus)]
    first = spread(hosts, {}, count // 2)
    placed = Counter(first + spread(hosts, Counter(first), count - count // 2))
    assert placed.total() == count
    capacity = {host: max(1, host.cpus - host.is_head) for host in hosts}
    for host, number in placed.items():
        for other in hosts:
            # Nobody is fuller, by more than the worker placed last, than another could have been.
            assert (number - 1) / capacity[host] <= (placed[other] + 1) / capacity[other]
