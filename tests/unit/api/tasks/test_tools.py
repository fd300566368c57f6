"""Tools of an AI task: which task a call of each is."""

from typing import Any

import pytest

from rhapsody import ComputeTask
from rhapsody.api.tasks.tools import example_call, make_agent
from rhapsody.inference.agents.agent import Conversation


def double(n: int) -> int:
    return 2 * n


def echo(n: int) -> ComputeTask:
    return ComputeTask(executable="echo", arguments=[n])


def unknown_type(n: "Nothing") -> ComputeTask:  # type: ignore[name-defined]  # noqa: F821
    raise AssertionError


async def call(tool: Any, name: str) -> ComputeTask:
    """Return the task of a call."""
    tasks: list[ComputeTask] = []

    async def run(task: ComputeTask) -> int:
        tasks.append(task)
        return 1

    async def respond(fields: dict[str, Any]) -> dict[str, Any]:
        message: dict[str, Any] = {"content": "done"}
        if not tasks:
            function = {"name": name, "arguments": '{"n": 3}'}
            message = {"tool_calls": [{"id": "1", "type": "function", "function": function}]}
        return {"usage": {}, "message": message}

    agent = make_agent({"tools": [tool]}, run)
    await agent.run({"prompt": "hi", "uid": "agent"}, respond, Conversation())
    [task] = tasks
    return task


async def test_call_of_a_function() -> None:
    task = await call(double, "double")
    assert (task.function, task.kwargs, task.retries) == (double, {"n": 3}, None)


async def test_call_has_the_options_of_a_compute_task() -> None:
    tool = ComputeTask(function=double, retries=2, backend="gpus", resources={"gpus": 1})
    task = await call(tool, "double")
    assert (task.function, task.kwargs) == (double, {"n": 3})
    assert (task.retries, task.backend, task.resources) == (2, "gpus", {"gpus": 1})
    assert task.uid != tool.uid


async def test_call_that_a_function_describes() -> None:
    task = await call(echo, "echo")
    assert (task.executable, task.arguments) == ("echo", [3])


def test_example_of_a_call() -> None:
    tool = ComputeTask(function=double)
    assert example_call(tool) is tool
    assert example_call(echo) is None
    example = example_call(double)
    assert example is not None
    assert example.function is double


def test_parameter_of_an_unknown_type_is_refused() -> None:
    with pytest.raises(TypeError, match="must have types with a JSON schema"):
        make_agent({"tools": [unknown_type]}, lambda task: None)  # type: ignore[arg-type,return-value]
