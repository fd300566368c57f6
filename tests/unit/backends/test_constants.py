"""StateMapper: the states of backends written for `rhapsody-py`."""

import pytest

from rhapsody.backends import NoopExecutionBackend, StateMapper, TasksMainStates, TaskStates
from rhapsody.backends.constants import BackendMainStates
from rhapsody.errors import ConfigurationError


@pytest.fixture(autouse=True)
def registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(StateMapper, "_backend_registry", {})


def register_slurm() -> StateMapper:
    StateMapper.register_backend_tasks_states(
        "Slurm",
        done_state="COMPLETED",
        failed_state="FAILED",
        canceled_state="CANCELLED",
        running_state="R",
    )
    return StateMapper("slurm")


def test_main_states_have_the_common_strings() -> None:
    for state in TasksMainStates:
        assert state.value == getattr(TaskStates, state.name)


def test_backend_states_are_those_of_rhapsody_py() -> None:
    assert [state.value for state in BackendMainStates] == ["INITIALIZED", "RUNNING", "SHUTDOWN"]


def test_registered_states_are_attributes() -> None:
    mapper = register_slurm()
    assert (mapper.DONE, mapper.RUNNING) == ("COMPLETED", "R")
    assert mapper.terminal_states == ("COMPLETED", "FAILED", "CANCELLED")
    assert (mapper.backend_name, mapper.backend_module) == ("slurm", None)


def test_own_state_becomes_main_state_and_back() -> None:
    mapper = register_slurm()
    assert mapper.to_main_state("CANCELLED") is TasksMainStates.CANCELED
    assert mapper.get_backend_state(TasksMainStates.DONE) == "COMPLETED"
    assert mapper.get_backend_state("RUNNING") == "R"


def test_unknown_own_state_is_refused() -> None:
    with pytest.raises(ValueError, match=r"unknown state 'X' of slurm; known: 'COMPLETED'"):
        register_slurm().to_main_state("X")


def test_name_without_registered_states_is_refused() -> None:
    register_slurm()
    with pytest.raises(ConfigurationError, match="for the backend 'slrum'; registered: slurm"):
        StateMapper("slrum")


def test_defaults_are_the_common_states() -> None:
    StateMapper.register_backend_tasks_states_with_defaults("mine")
    mapper = StateMapper("mine")
    assert (mapper.DONE, mapper.RUNNING) == ("DONE", "RUNNING")


def test_backend_without_registered_states_has_the_common_ones() -> None:
    backend = NoopExecutionBackend()
    mapper = StateMapper(backend)
    assert set(mapper.terminal_states) == TaskStates.terminal_states
    assert mapper.backend_module is backend


def test_states_of_an_object_are_found_by_its_class() -> None:
    StateMapper.register_backend_tasks_states(NoopExecutionBackend(), "D", "F", "C", "R")
    assert StateMapper(NoopExecutionBackend()).DONE == "D"


def test_states_of_backends_themselves_are_accepted() -> None:
    StateMapper.register_backend_states_with_defaults("mine")
    StateMapper.register_backend_states("mine", "NEW", "UP", "DOWN")
