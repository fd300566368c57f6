from typing import Any

import pytest

from rhapsody.backends.core.attachment import Attachment, ignore
from rhapsody.backends.core.work import Work
from rhapsody.backends.dask.placement import Placement
from rhapsody.errors import ResourceError

WORKERS: dict[str, dict[str, Any]] = {
    "tcp://10.0.0.1:1": {"name": "one", "host": "10.0.0.1", "resources": {"GPU": 1.0}},
    "tcp://10.0.0.2:1": {"name": 2, "host": "10.0.0.2", "resources": {"MEM": 8.0, "GPU": 2.0}},
}


def test_options_become_arguments_of_submit() -> None:
    placement = Placement.from_options({"resources": {"GPU": 1}, "workers": "one", "retries": 2})
    assert placement == Placement((("GPU", 1),), ("one",), False, 0, 2)
    assert placement.as_arguments() == {
        "resources": {"GPU": 1},
        "workers": ["one"],
        "allow_other_workers": False,
        "priority": 0,
        "retries": 2,
    }


def test_numbers_of_numpy_become_plain_numbers() -> None:
    np = pytest.importorskip("numpy")
    placement = Placement.from_options(
        {"priority": np.int64(3), "retries": np.int32(2), "resources": {"GPU": np.float32(0.5)}}
    )
    assert placement == Placement((("GPU", 0.5),), priority=3, retries=2)
    numbers = [placement.priority, placement.retries, placement.resources[0][1]]
    assert [type(number) for number in numbers] == [int, int, float]


def test_options_without_effect_give_default_placement() -> None:
    options = {"priority": None, "allow_other_workers": True}
    assert Placement.from_options(options) == Placement.from_options({}) == Placement()


@pytest.mark.parametrize(
    ("options", "restricted"),
    [
        ({}, False),
        ({"priority": 3, "retries": 1}, False),
        ({"workers": "one"}, True),
        ({"workers": "one", "allow_other_workers": True}, False),
        ({"resources": {"GPU": 1}}, True),
    ],
)
def test_resources_and_workers_restrict_placement(
    options: dict[str, Any], restricted: bool
) -> None:
    assert Placement.from_options(options).is_restricted is restricted


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"resources": 3}, "'resources' must be a dict"),
        ({"resources": {"GPU": 0}}, "'resources' must be a dict of names to positive amounts"),
        ({"resources": {1: 1}}, "'resources' must be a dict"),
        ({"workers": [3]}, r"'workers' must be .*, got \[3\]"),
        ({"retries": -1}, "'retries' must be a whole number of at least 0, got -1"),
        ({"retries": 1.5}, "'retries' must be a whole number"),
        ({"retries": 10**30}, "'retries' must be a whole number"),
        ({"priority": "high"}, "'priority' must be a finite number, got 'high'"),
        ({"priority": 10**30}, "'priority' must be a finite number"),
        ({"priority": float("nan")}, "'priority' must be a finite number, got nan"),
        ({"workers": 5}, "'workers' must be an address, name or host of a worker, .* got 5"),
        ({"workers": "caf\udce9"}, "'workers' must be"),
        ({"resources": {"caf\udce9": 1}}, "'resources' must be a dict"),
        ({"resources": {"GPU": 10**30}}, "'resources' must be a dict"),
    ],
)
def test_invalid_options_raise_value_error(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Placement.from_options(options)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"priority": 3},
        {"resources": {"GPU": 1}},
        {"resources": {"GPU": 2, "MEM": 8}},
        {"workers": "one"},
        {"workers": "2", "resources": {"GPU": 2}},
        {"workers": ["10.0.0.1:1", "tcp://nowhere:1"]},
        {"workers": "10.0.0.2"},
        {"workers": "nowhere", "allow_other_workers": True},
    ],
)
def test_suitable_worker_leaves_no_shortage(options: dict[str, Any]) -> None:
    assert Placement.from_options(options).shortage("task.1", WORKERS) is None


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"resources": {"FPGA": 1}}, ["FPGA=1", "one at tcp://10.0.0.1:1 offers GPU=1"]),
        ({"resources": {"GPU": 3}}, ["GPU=3", "2 at tcp://10.0.0.2:1 offers MEM=8, GPU=2"]),
        ({"resources": {"GPU": 2}, "workers": "one"}, ["GPU=2", "of 1 workers"]),
        ({"workers": ["nowhere", "away"]}, ["nowhere or away", "of 2 workers"]),
    ],
)
def test_shortage_names_request_and_offers(options: dict[str, Any], words: list[str]) -> None:
    error = Placement.from_options(options).shortage("task.1", WORKERS)
    assert isinstance(error, ResourceError)
    assert error.task_uid == "task.1"
    assert [word for word in words if word not in str(error)] == []


def test_shortage_without_workers() -> None:
    error = Placement.from_options({"resources": {"GPU": 1}}).shortage("task.1", {})
    assert "there are no workers" in str(error)


def work_of(**fields: Any) -> Work:
    return Work({"uid": "a", "function": int, **fields}, Attachment(ignore), ".")


def test_resources_of_a_task_become_resources_of_a_worker() -> None:
    asked = {"cpus": 2, "gpus": 0.5, "memory": "1 kB", "nodes": ["one"]}
    placement = Placement.of(work_of(resources=asked, priority=3))
    assert dict(placement.resources) == {"CPU": 2, "GPU": 0.5, "MEMORY": 1000}
    assert (placement.workers, placement.priority) == (("one",), 3)


def test_options_of_dask_come_before_the_fields_of_a_task() -> None:
    options = {"priority": 1.5, "resources": {"GPU": 4}, "workers": "two"}
    asked = {"gpus": 1, "nodes": ["one"]}
    work = work_of(task_backend_specific_kwargs=options, resources=asked, priority=3)
    placement = Placement.of(work)
    assert placement == Placement((("GPU", 4),), ("two",), False, 1.5)


def test_task_on_several_nodes_is_refused() -> None:
    with pytest.raises(ValueError, match="'nodes' must be 1, or a list of names"):
        Placement.of(work_of(resources={"nodes": 2}))
