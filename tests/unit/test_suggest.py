"""Error messages suggest the nearest known name."""

import inspect
from typing import Any

import pytest

from asyncflow_ext import WorkflowEngine
from rhapsody import Session, backends
from rhapsody.suggest import did_you_mean, suggest_parameters, unknown_name

KNOWN = {"timeout", "temperature", "retries"}


@pytest.mark.parametrize(
    ("name", "hint"),
    [("time_out", "did you mean 'timeout'?"), ("colour", ""), ("", "")],
)
def test_nearest_known_name_is_suggested(name: str, hint: str) -> None:
    assert did_you_mean(name, KNOWN) == hint


def test_cutoff_limits_suggestions() -> None:
    assert did_you_mean("retry", KNOWN, cutoff=0.5) == "did you mean 'retries'?"
    assert did_you_mean("retry", KNOWN, cutoff=0.8) == ""


def test_message_suggests_a_name_and_lists_all() -> None:
    assert unknown_name("option", "retrys", KNOWN) == (
        "unknown option 'retrys'; did you mean 'retries'? Known: retries, temperature, timeout"
    )


def test_message_names_the_place() -> None:
    assert unknown_name("key", "dtyp", {"dtype"}, "section 'llm'") == (
        "unknown key 'dtyp' in section 'llm'; did you mean 'dtype'? Known: dtype"
    )


def test_message_without_a_near_name_lists_all() -> None:
    assert unknown_name("option", "colour", KNOWN) == (
        "unknown option 'colour'; known: retries, temperature, timeout"
    )


CONSTRUCTORS = [
    (backends.ConcurrentExecutionBackend, "max_worker", "max_workers"),
    (backends.DaskExecutionBackend, "clusters", "cluster"),
    (backends.DragonExecutionBackendV3, "num_worker", "num_workers"),
    (backends.DragonVllmInferenceBackend, "max_batchsize", "max_batch_size"),
    (backends.EndpointInferenceBackend, "max_concurency", "max_concurrency"),
    (backends.InferenceGateway, "prot", "port"),
    (backends.NoopExecutionBackend, "nam", "name"),
    (Session, "backend", "backends"),
    (WorkflowEngine.create, "workdir", "work_dir"),
]


@pytest.mark.parametrize(("constructor", "name", "parameter"), CONSTRUCTORS)
def test_constructor_suggests_a_parameter(constructor: Any, name: str, parameter: str) -> None:
    with pytest.raises(TypeError) as raised:
        constructor(**{name: None})
    made = constructor.__qualname__.replace("V3", "")
    assert str(raised.value) == (f"{made}() has no parameter '{name}'; did you mean '{parameter}'?")


def test_unknown_parameter_without_a_near_name_lists_all() -> None:
    with pytest.raises(TypeError) as raised:
        backends.DaskExecutionBackend(workers=5)  # type: ignore[call-arg]
    assert str(raised.value) == (
        "DaskExecutionBackend() has no parameter 'workers'; its parameters: resources, cluster, "
        "client, name, resource_timeout, memory_limit"
    )


def test_decorated_constructor_keeps_its_signature() -> None:
    class Machine:
        """A class."""

        @suggest_parameters
        def __init__(self, nodes: int, *, gpus: int = 0) -> None:
            """Make it."""
            self.parts = nodes, gpus

    assert Machine(2, gpus=3).parts == (2, 3)
    assert str(inspect.signature(Machine)) == "(nodes: int, *, gpus: int = 0) -> None"
    assert Machine.__init__.__doc__ == "Make it."
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'nodes'"):
        Machine()  # type: ignore[call-arg]
