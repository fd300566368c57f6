"""TaskStateManager: futures of tasks that a backend runs without a session."""

import pytest

from rhapsody import ComputeTask
from rhapsody.api import TaskCancelledError, TaskExecutionError, TaskStateManager
from rhapsody.backends import NoopExecutionBackend
from tests.support.sessions import good


async def test_future_of_task_of_backend_is_done() -> None:
    manager, backend, task = TaskStateManager(), NoopExecutionBackend(), good()
    backend.register_callback(manager.update_task)
    future = manager.get_wait_future(task["uid"], task)
    await backend.submit_tasks([task])
    assert await future is task
    assert task.state == "DONE"
    await backend.shutdown()


async def test_task_that_ended_before_has_a_done_future() -> None:
    manager, task = TaskStateManager(), good()
    manager.update_task(task, "DONE")
    assert await manager.get_wait_future(task["uid"], task) is task


async def test_future_of_failed_executable_raises_with_its_exit_code() -> None:
    manager, task = TaskStateManager(), ComputeTask(executable="false")
    future = manager.get_wait_future(task["uid"], task)
    task["exit_code"] = 3
    manager.update_task(task, "FAILED")
    with pytest.raises(TaskExecutionError, match="exit code 3"):
        await future


async def test_future_of_cancelled_task_raises() -> None:
    manager, task = TaskStateManager(), good()
    future = manager.get_wait_future(task["uid"], task)
    manager.update_task(task, "CANCELED")
    with pytest.raises(TaskCancelledError):
        await future


async def test_terminal_states_can_be_replaced() -> None:
    manager, task = TaskStateManager(), good()
    manager.set_terminal_states({"COMPLETED"})
    future = manager.get_wait_future(task["uid"], task)
    manager.update_task(task, "RUNNING")
    assert not future.done()
    manager.update_task(task, "COMPLETED")
    assert await future is task
