"""Programs written for `rhapsody-py` find the names of what is the same thing here."""

from importlib import import_module
from typing import Any

import pytest

import rhapsody
from rhapsody import ComputeTask, Session
from rhapsody.backends import BaseBackend, TaskStates
from rhapsody.backends.constants import StateMapper, TasksMainStates

SAME = [
    ("rhapsody", "BackendRegistry", "rhapsody.backends.registry"),
    ("rhapsody", "BaseTask", "rhapsody.api.tasks"),
    ("rhapsody", "RhapsodyError", "rhapsody.api.errors"),
    ("rhapsody.api.task", "AITask", "rhapsody.api.tasks"),
    ("rhapsody.api.task", "BaseTask", "rhapsody.api.tasks"),
    ("rhapsody.api.task", "ComputeTask", "rhapsody.api.tasks"),
    ("rhapsody.backends", "Session", "rhapsody.api.session"),
    ("rhapsody.backends", "StateMapper", "rhapsody.backends.constants"),
    ("rhapsody.backends", "TasksMainStates", "rhapsody.backends.constants"),
    ("rhapsody.backends.discovery", "BackendRegistry", "rhapsody.backends.registry"),
    ("rhapsody.backends.discovery", "discover_backends", "rhapsody.backends.registry"),
    ("rhapsody.backends.discovery", "get_backend", "rhapsody.backends.registry"),
    ("rhapsody.backends.execution", "ConcurrentExecutionBackend", "rhapsody.backends.concurrent"),
    ("rhapsody.backends.execution", "NoopExecutionBackend", "rhapsody.backends.noop"),
    (
        "rhapsody.backends.execution.concurrent",
        "ConcurrentExecutionBackend",
        "rhapsody.backends.concurrent",
    ),
    ("rhapsody.backends.execution.noop", "NoopExecutionBackend", "rhapsody.backends.noop"),
]


@pytest.mark.parametrize(("module", "name", "home"), SAME)
def test_a_name_is_the_same_object_as_at_home(module: str, name: str, home: str) -> None:
    assert getattr(import_module(module), name) is getattr(import_module(home), name)


def test_every_public_name_of_the_package_can_be_had() -> None:
    for name in rhapsody.__all__:
        assert getattr(rhapsody, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = rhapsody.nonsense


def test_the_states_of_the_enumeration_are_the_strings_of_tasks() -> None:
    assert {state.value for state in TasksMainStates} == TaskStates.terminal_states | {"RUNNING"}


def test_a_state_mapper_maps_nothing() -> None:
    StateMapper.register_backend_tasks_states_with_defaults("mine")
    states = StateMapper("mine")
    assert (states.DONE, states.RUNNING) == ("DONE", "RUNNING")
    assert states.terminal_states == TaskStates.terminal_states


async def test_a_backend_written_for_it_works() -> None:
    class Old(BaseBackend):
        """Overrides the whole interface, as all its methods were abstract."""

        def __init__(self, name: str = "old") -> None:
            super().__init__(name=name)

        async def submit_tasks(self, tasks: Any) -> None:
            for task in tasks:
                task["return_value"] = 1
                self._callback_func(task, "DONE")

        async def shutdown(self) -> None:
            pass

        def state(self) -> str:
            return "running"

        def task_state_cb(self, task: Any, state: str) -> None:
            pass

        def get_task_states_map(self) -> StateMapper:
            return StateMapper(backend=self)

        def build_task(self, task: Any) -> None:
            pass

        async def cancel_task(self, uid: str) -> bool:
            return False

    async with Session(backends=[Old()]) as session:
        task = ComputeTask(function=int)
        await session.submit_tasks([task])
        assert (await task).return_value == 1
