"""Choice of nodes and the limit of workers, on simulated allocations."""

import pytest

from rhapsody.allocation import Node
from rhapsody.backends.dragon.nodes import choose_nodes, most_workers
from rhapsody.errors import ConfigurationError

SMALL = [Node("only", cpus=2, is_head=True)]
LARGE = [Node(f"node{n}", 8, gpus=(0, 1, 2, 3), is_head=n == 0) for n in range(4)]


def test_default_limit_leaves_one_cpu_to_the_head_node() -> None:
    assert most_workers("dragon", SMALL, None) == 1
    assert most_workers("dragon", LARGE, None) == 31
    assert most_workers("dragon", [Node("tiny", 1, is_head=True)], None) == 1


def test_limit_within_eight_workers_per_cpu_is_kept(caplog: pytest.LogCaptureFixture) -> None:
    assert most_workers("dragon", [Node(f"node{n}", 64) for n in range(32)], 2048) == 2048
    assert most_workers("dragon", LARGE, 256) == 256
    assert not caplog.text


def test_limit_above_eight_workers_per_cpu_is_reduced_with_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert most_workers("dragon", SMALL, 2048) == 16
    assert "num_workers=2048 exceeds 8 per CPU on 2 CPUs" in caplog.text


def test_nodes_are_chosen_by_number_or_by_name() -> None:
    assert choose_nodes(LARGE, None) == LARGE
    assert choose_nodes(LARGE, 2) == LARGE[:2]
    assert choose_nodes(LARGE, ["node3", "node1"]) == [LARGE[3], LARGE[1]]


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (5, "nodes=5 asks for more nodes than the 4"),
        ([], "nodes must name at least one node"),
        (["mars"], "nodes names mars, not in this allocation"),
    ],
    ids=["too many", "no name", "unknown name"],
)
def test_missing_nodes_are_refused(wanted: int | list[str], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        choose_nodes(LARGE, wanted)
