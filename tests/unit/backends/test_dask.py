import importlib.util
import pickle
import subprocess
import sys
from typing import Any

import pytest

from rhapsody.api.errors import ConfigurationError, MissingExtraError, ResourceError
from rhapsody.backends import BackendRegistry, DaskExecutionBackend, get_backend
from rhapsody.backends.dask_placement import Placement

WORKERS: dict[str, dict[str, Any]] = {
    "tcp://10.0.0.1:1": {"name": "one", "host": "10.0.0.1", "resources": {"GPU": 1.0}},
    "tcp://10.0.0.2:1": {"name": 2, "host": "10.0.0.2", "resources": {"MEM": 8.0, "GPU": 2.0}},
}


def test_without_the_package_only_the_construction_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert BackendRegistry.get_backend_class("dask") is DaskExecutionBackend
    with pytest.raises(MissingExtraError, match=r'pip install "rhapsody\[dask\]"') as raised:
        DaskExecutionBackend()
    assert raised.value.package == "distributed"


def test_the_class_can_be_had_without_importing_dask() -> None:
    code = (
        "import sys\n"
        "from rhapsody.backends import DaskExecutionBackend\n"
        "from rhapsody.backends.execution.dask_parallel import DaskExecutionBackend as same\n"
        "assert DaskExecutionBackend is same\n"
        "assert not {'dask', 'distributed'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.dask
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"resources": {"n_workers": 1}, "cluster": "tcp://x:1"}, "one of the three"),
        ({"cluster": "tcp://x:1", "client": object()}, "one of the three"),
        ({"resources": 4}, "must be a dict"),
        ({"resources": {"asynchronous": False}}, "cannot set asynchronous"),
        ({"resources": {"loop": None}}, "cannot set loop"),
    ],
)
def test_what_contradicts_itself_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        DaskExecutionBackend(**arguments)


@pytest.mark.dask
@pytest.mark.parametrize("given", [{"cluster": 5}, {"client": object()}])
async def test_what_is_no_cluster_is_refused_at_the_start(given: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match="address of a scheduler"):
        await DaskExecutionBackend(**given)


@pytest.mark.dask
def test_before_the_start_there_is_nothing_to_tell() -> None:
    backend = get_backend("dask", {"n_workers": 1}, name="mine")
    assert backend.name == "mine"
    assert backend.dashboard_link is None
    assert backend.get_statistics() == {}


def test_a_placement_is_read_from_options() -> None:
    placement = Placement.of({"resources": {"GPU": 1}, "workers": "one", "retries": 2})
    assert placement == Placement((("GPU", 1),), ("one",), False, 0, 2)
    assert placement.as_arguments() == {
        "resources": {"GPU": 1},
        "workers": ["one"],
        "allow_other_workers": False,
        "priority": 0,
        "retries": 2,
    }
    assert Placement.of({}) == Placement.of({"priority": None, "allow_other_workers": True})


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
def test_what_a_worker_offers_is_not_lacking(options: dict[str, Any]) -> None:
    assert Placement.of(options).lacking("task.1", WORKERS) is None


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"resources": {"FPGA": 1}}, ["FPGA=1", "one at tcp://10.0.0.1:1 offers GPU=1"]),
        ({"resources": {"GPU": 3}}, ["GPU=3", "2 at tcp://10.0.0.2:1 offers MEM=8, GPU=2"]),
        ({"resources": {"GPU": 2}, "workers": "one"}, ["GPU=2", "of 1 workers"]),
        ({"workers": ["nowhere", "away"]}, ["nowhere or away", "of 2 workers"]),
    ],
)
def test_what_no_worker_offers_is_told(options: dict[str, Any], words: list[str]) -> None:
    error = Placement.of(options).lacking("task.1", WORKERS)
    assert isinstance(error, ResourceError)
    assert error.task_uid == "task.1"
    assert all(word in str(error) for word in words)


def test_a_cluster_without_workers_is_told() -> None:
    error = Placement.of({"resources": {"GPU": 1}}).lacking("task.1", {})
    assert "there are no workers" in str(error)


@pytest.mark.dask
def test_pickling_takes_futures_out_wherever_they_are() -> None:
    from rhapsody.backends.dask_calls import Call, dump

    class Stand:
        """Stands for a future."""

    def deep(values: Any) -> Any:
        return values, outside

    outside, inside = Stand(), Stand()
    futures: list[Any] = []
    arguments = dump((([{"a": inside}],), {}), Stand, futures)
    function = dump(deep, Stand, futures)
    assert futures == [inside, outside]
    call = Call("task.1", "key", "token", "plugin", None, function, arguments)
    loaded, args, kwargs = pickle.loads(pickle.dumps(call)).load(["in", "out"])
    assert loaded(*args, **kwargs) == ([{"a": "in"}], "out")
