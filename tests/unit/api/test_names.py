"""Names that programs for `rhapsody-py` import."""

from importlib import import_module
from inspect import isawaitable
from typing import Any

import pytest

import rhapsody
from asyncflow_ext import WorkflowEngine
from rhapsody import ComputeTask, Session
from rhapsody.backends import BaseBackend, ConcurrentExecutionBackend, TaskStates
from rhapsody.backends.constants import StateMapper, TasksMainStates

SAME = [
    ("rhapsody", "BackendRegistry", "rhapsody.backends.registry"),
    ("rhapsody", "BaseTask", "rhapsody.api.tasks"),
    ("rhapsody", "RhapsodyError", "rhapsody.errors"),
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
def test_compat_name_is_the_original_object(module: str, name: str, home: str) -> None:
    assert getattr(import_module(module), name) is getattr(import_module(home), name)


def test_every_public_name_can_be_imported() -> None:
    for name in rhapsody.__all__:
        assert getattr(rhapsody, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = rhapsody.nonsense


def test_enumeration_has_the_states_of_tasks() -> None:
    assert {state.value for state in TasksMainStates} == TaskStates.terminal_states | {"RUNNING"}


async def test_backend_with_all_methods_overridden_runs_tasks() -> None:
    class Old(BaseBackend):
        """Overrides every method, as a backend for `rhapsody-py` does."""

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


class Batch(BaseBackend):
    """A backend for `rhapsody-py` with states of its own, those of a batch system."""

    def __init__(self) -> None:
        super().__init__(name="batch")
        self._callback_func = lambda task, state: None
        StateMapper.register_backend_tasks_states(
            self,
            done_state="COMPLETED",
            failed_state="FAILED",
            canceled_state="CANCELLED",
            running_state="R",
        )

    def get_task_states_map(self) -> Any:
        return StateMapper(backend=self)

    async def submit_tasks(self, tasks: Any) -> None:
        for task in tasks:
            self._callback_func(task, "CONFIGURING")  # a state that is not registered
            self._callback_func(task, "R")
            try:
                value = task["function"](*task["args"])
                task["return_value"] = await value if isawaitable(value) else value
            except Exception as error:
                task["exception"] = error
            self._callback_func(task, "FAILED" if task.get("exception") else "COMPLETED")

    async def cancel_task(self, uid: str) -> bool:
        return False

    async def shutdown(self) -> None:
        pass


async def test_own_states_of_backend_are_translated_by_session() -> None:
    async with Session(backends=[Batch()]) as session:
        done, failed = ComputeTask(function=int, args=["3"]), ComputeTask(function=int, args=["x"])
        await session.submit_tasks([done, failed])
        await session.wait_tasks([done, failed])
        assert (done.state, done.return_value, failed.state) == ("DONE", 3, "FAILED")
        assert session.get_statistics()["tasks"] == {"DONE": 1, "FAILED": 1}


async def test_own_states_of_backends_are_translated_by_engine() -> None:
    backends = [Batch(), ConcurrentExecutionBackend()]
    async with WorkflowEngine.create(backend=backends) as flow:

        @flow.function_task
        async def on_default() -> int:
            return 1

        @flow.function_task(backend="concurrent")
        async def on_other(x: int) -> int:
            return x + 1

        assert await on_other(on_default()) == 2
