"""The replica factory: the GPUs of replicas come from the account that tasks share, and go back."""

from collections.abc import Iterator
from typing import Any

import pytest

from rhapsody.allocation import Node
from rhapsody.gpus import GPUS
from rhapsody.inference.config import InferenceConfig
from rhapsody.inference.engines import ServerCommand
from rhapsody.inference.launchers.factory import ReplicaFactory
from rhapsody.scratch import Scratch

NODES = [Node("factory-a", gpus=(0, 1, 2, 3)), Node("factory-b", gpus=(0, 1, 2, 3))]


@pytest.fixture
def factory() -> Iterator[ReplicaFactory]:
    """A factory for replicas of two GPUs on two nodes of four, of which it may use three."""
    fields: dict[str, Any] = {
        "model_name": "model",
        "launcher": "local",
        "num_nodes": 2,
        "num_gpus": 3,
        "tp_size": 2,
        "replicas": (0, 2),
    }
    config = InferenceConfig(**fields)
    made = ReplicaFactory(config, ServerCommand(["server"]), NODES, [], Scratch("model"))
    yield made
    made.close()


def free(node: str) -> list[int]:
    return [gpu for gpu in range(4) if GPUS.free_parts(node, gpu)]


def room() -> None:
    """Do nothing with the room of a replica."""


def test_replicas_get_gpus_of_the_node_with_the_fewest_replicas(factory: ReplicaFactory) -> None:
    replicas = [factory.another(room), factory.another(room)]
    places = [replica.as_dict() for replica in replicas if replica is not None]
    assert [(one["index"], one["node"], one["gpus"]) for one in places] == [
        (0, "factory-a", [0, 1]),
        (1, "factory-b", [0, 1]),
    ]
    assert factory.another(room) is None, "num_gpus=3 allows one replica of two GPUs on a node"


def test_released_gpus_are_free_for_tasks(factory: ReplicaFactory) -> None:
    replica = factory.another(room)
    assert replica is not None
    assert free("factory-a") == [2, 3]
    factory.release(replica)
    assert free("factory-a") == [0, 1, 2, 3]
    again = factory.another(room)
    assert again is not None
    assert again.index == 0


def test_no_replica_is_made_while_tasks_use_the_gpus(factory: ReplicaFactory) -> None:
    used = [(node.name, gpu) for node in NODES for gpu in (0, 1, 2)]
    assert GPUS.take(used)
    assert factory.another(room) is None
    GPUS.release(used)
    assert factory.another(room) is not None


def test_waiting_tasks_matter_only_to_replicas_with_gpus(factory: ReplicaFactory) -> None:
    GPUS.set_short(factory, True)
    assert not factory.tasks_wait
    factory.another(room)
    assert factory.tasks_wait
    GPUS.set_short(factory, False)
    assert not factory.tasks_wait


def test_close_gives_all_gpus_back(factory: ReplicaFactory) -> None:
    factory.another(room)
    factory.another(room)
    factory.close()
    assert free("factory-a") == free("factory-b") == [0, 1, 2, 3]
