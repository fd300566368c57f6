"""Decorators: the functions they accept, and the options of a call."""

import functools
import pickle
import threading
from typing import Any

import pytest

from asyncflow_ext import WorkflowEngine
from tests.support.engines import make_task

pytestmark = pytest.mark.asyncflow


class Simulation:
    def __init__(self, factor: int) -> None:
        self.factor = factor

    async def run(self, value: int) -> int:
        return value * self.factor

    async def __call__(self, value: int) -> int:
        return value + self.factor


async def scaled(value: int, factor: int) -> int:
    return value * factor


@pytest.mark.parametrize(
    ("function", "name", "expected"),
    [
        (Simulation(3).run, "run", 6),
        (Simulation(3), "Simulation", 5),
        (functools.partial(scaled, factor=4), "scaled", 8),
    ],
)
async def test_methods_partials_and_callable_objects_can_be_tasks(
    engine: WorkflowEngine, function: Any, name: str, expected: int
) -> None:
    future = engine.function_task(function)(2)
    assert future.task["name"] == name
    assert await future == expected


async def test_sync_functions_are_functions_and_executables(engine: WorkflowEngine) -> None:
    @engine.function_task
    def double(value: int) -> tuple[int, str]:
        return 2 * value, threading.current_thread().name

    @engine.executable_task
    def echo(value: int) -> str:
        return f"echo {value}"

    value, thread = await double(4)
    assert value == 8
    assert thread != threading.current_thread().name
    assert await echo(3) == "3\n"


async def test_sync_block_is_rejected(engine: WorkflowEngine) -> None:
    @engine.block
    def block() -> None:
        return None

    with pytest.raises(TypeError, match="must be async"):
        block()


async def test_parameters_named_like_options_get_their_values(engine: WorkflowEngine) -> None:
    @engine.function_task
    async def task(workflow_id: Any, task_description: Any) -> Any:
        return workflow_id, task_description

    future = task(workflow_id="w1", task_description={"cwd": "/"})
    assert await future == ("w1", {"cwd": "/"})
    assert future.task["workflow_id"] == "w1"
    assert future.task["task_backend_specific_kwargs"] == {"cwd": "/"}


async def test_options_without_parameter_are_not_passed_to_function(engine: WorkflowEngine) -> None:
    @engine.function_task
    async def task(**rest: Any) -> Any:
        return rest

    future = task(workflow_id="w1", task_description={"timeout": 30}, x=1)
    assert await future == {"x": 1}
    assert future.task["workflow_id"] == "w1"


async def test_task_description_must_be_dict(engine: WorkflowEngine, number: Any) -> None:
    with pytest.raises(TypeError, match="to be a dict"):
        number(1, task_description="fast")


async def test_workflow_scope_labels_tasks(engine: WorkflowEngine, number: Any) -> None:
    async with engine.workflow_scope("mine"):
        future = number(1)
    await future
    assert future.task["workflow_id"] == "mine"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"service": "yes"}, "'service' must be a boolean"),
        ({"retries": -1}, "'retries' must be a whole number"),
        ({"backoff": -1}, "'backoff' must be a number of seconds"),
        ({"timeout": 0}, "'timeout' must be a positive number of seconds"),
    ],
)
async def test_wrong_options_are_rejected_at_decoration(
    engine: WorkflowEngine, options: dict[str, Any], message: str
) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        make_task(engine, **options)


async def test_calls_share_an_empty_dict_that_cannot_be_changed(engine: WorkflowEngine) -> None:
    first, second = make_task(engine)(1), make_task(engine)(2)
    empty = first.task["kwargs"]
    assert empty == {}
    assert empty is second.task["task_backend_specific_kwargs"]
    with pytest.raises(TypeError, match="shared by all calls"):
        empty["key"] = 1
    copy = pickle.loads(pickle.dumps(empty))
    assert (type(copy), copy) == (dict, {})
    await first
    await second
