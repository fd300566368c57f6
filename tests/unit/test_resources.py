import pickle
from typing import Any

import pytest

from rhapsody.resources import (
    MAX_PRIORITY,
    Resources,
    format_bytes,
    is_priority,
    machine_memory,
    parse_memory,
)


@pytest.mark.parametrize(
    ("text", "amount"),
    [
        ("8 GB", 8 * 10**9),
        ("8 GiB", 8 * 2**30),
        ("512mib", 512 * 2**20),
        ("1.5 kB", 1500),
        ("100", 100),
        ("100 B", 100),
        (4096, 4096),
    ],
)
def test_memory_is_read_as_bytes(text: int | str, amount: int) -> None:
    assert parse_memory(text) == amount


@pytest.mark.parametrize("text", ["", "GB", "8 XB", "-1 GB", "0 GB", 0, -5])
def test_invalid_memory_is_refused(text: int | str) -> None:
    with pytest.raises(ValueError, match="memory must be"):
        parse_memory(text)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"gpu": 1}, "unknown resource 'gpu'; did you mean 'gpus'?"),
        ({"cpus": 0}, "'cpus' must be a whole number of at least 1, got 0"),
        ({"cpus": 1.5}, "'cpus' must be a whole number"),
        ({"gpus": 1.5}, "'gpus' must be a whole number of GPUs, or a fraction of one"),
        ({"gpus": -1}, "'gpus' must be"),
        ({"gpus": float("nan")}, "'gpus' must be"),
        ({"gpus": float("inf")}, "'gpus' must be"),
        ({"memory": "much"}, "'memory' must be a number of bytes, or text such as"),
        ({"ranks": 0}, "'ranks' must be a whole number of at least 1"),
        ({"nodes": []}, "'nodes' must be a whole number of nodes, or a list of their names"),
        ({"exclusive": 1}, "'exclusive' must be a boolean"),
        ({"env": {"THREADS": 1}}, "'env' must be a dict of names of variables to strings"),
        ({"env": {"A=B": "1"}}, "without '='"),
        ({"env": {"": "1"}}, "'env' must be a dict of names"),
        ({"env": {"A": "1\0"}}, "or NUL"),
    ],
)
def test_wrong_resource_is_refused_in_one_sentence(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=r"^resources: ") as caught:
        Resources(**given)
    assert message in str(caught.value)


def test_resources_that_are_no_dict_are_refused() -> None:
    with pytest.raises(ValueError, match=r"'resources' must be a dict such as .* got 4"):
        Resources.of(4)


def test_fraction_of_gpu_and_whole_gpus_are_accepted() -> None:
    assert Resources(gpus=0.25).gpus == 0.25
    assert Resources(gpus=3).gpus == 3


def test_resources_survive_pickling() -> None:
    resources = Resources(cpus=2, memory="1 GB", nodes=["a"], env={"A": "1"})
    assert pickle.loads(pickle.dumps(resources)) == resources


def test_description_names_what_was_asked_for() -> None:
    assert Resources(cpus=2, gpus=0.5, memory="8 GB").describe() == "cpus=2, gpus=0.5, memory=8 GB"


def test_bytes_are_written_with_unit() -> None:
    assert format_bytes(8_000_000_000) == "8 GB"
    assert format_bytes(12) == "12 B"


@pytest.mark.parametrize("value", [0, -3, 7, MAX_PRIORITY, -MAX_PRIORITY])
def test_whole_number_is_priority(value: int) -> None:
    assert is_priority(value)


@pytest.mark.parametrize("value", [True, 1.0, "1", MAX_PRIORITY + 1, None])
def test_other_value_is_no_priority(value: Any) -> None:
    assert not is_priority(value)


def test_memory_of_this_machine_is_known() -> None:
    assert (machine_memory() or 0) > 2**20
