"""Sessions refuse invalid tasks before any is submitted."""

import asyncio
import gc
import threading
from pathlib import Path
from typing import Any

import pytest

from rhapsody import AITask, ComputeTask, Session
from rhapsody.api import ConfigurationError, SessionError, TaskValidationError
from rhapsody.backends import ConcurrentExecutionBackend, NoopExecutionBackend
from tests.support.held import HeldBackend
from tests.support.sessions import Compute, Inference, Recording, good, work


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (ComputeTask(function=work, backend="gpu"), "no backend 'gpu'; it has 'cpu', 'ai'"),
        (AITask("hi", backend="cpu"), "'cpu' cannot run a prompt task; these can: 'ai'"),
        (ComputeTask(function=work, backend="ai"), "cannot run a function task.*these can: 'cpu'"),
        (AITask("hi", model="huge"), "no backend serves the model 'huge'; served: 'small'"),
        (ComputeTask(function=work, uid="good"), "another task has this uid"),
        ({"colour": "red"}, "set 'function' or 'executable'"),
        ({"prompt": "hi", "temperature": -1}, "'temperature' must be"),
        ("echo hi", "a task must be a ComputeTask, an AITask or a dict, got str"),
    ],
)
async def test_invalid_task_prevents_submission_of_all(bad: Any, words: str) -> None:
    cpu = Recording("cpu")
    cpu.task_kinds = Compute.task_kinds
    async with Session([cpu, Inference("ai", "small")]) as session:
        with pytest.raises(TaskValidationError, match=words):
            await session.submit_tasks([good(), bad])
        assert cpu.submitted == []
        assert session.get_statistics()["tasks"] == {}
        await session.submit_tasks([good()])  # the refused call reserved nothing


async def test_function_instead_of_tasks_is_refused() -> None:
    function: Any = work
    async with Session([NoopExecutionBackend()]) as session:
        with pytest.raises(TaskValidationError, match="must be a task or a list of tasks, got fun"):
            await session.submit_tasks(function)


async def test_unsupported_kind_is_refused_with_list_of_backends() -> None:
    async with Session([Compute("cpu")]) as session:
        with pytest.raises(TaskValidationError, match="runs prompt tasks; it has 'cpu'"):
            await session.submit_tasks([AITask("hi")])


async def test_prompt_with_the_text_of_a_pending_task_is_refused(held: HeldBackend) -> None:
    async with Session([held, Inference("ai", "small")]) as session:
        pending = session.submit(work)
        with pytest.raises(TaskValidationError, match=f"the text 'ComputeTask.{pending.uid}, "):
            await session.submit_tasks(AITask(f"Explain {pending}."))
        held.release()
        await pending
        await session.submit_tasks(AITask(f"Explain {pending}."))


def test_prompt_with_the_text_of_a_task_of_a_script_is_refused() -> None:
    gate = threading.Event()
    with Session([ConcurrentExecutionBackend(), Inference("ai", "small")]) as session:
        prompt = AITask(f"Explain {session.submit(gate.wait, 60)}.")
        with pytest.raises(TaskValidationError, match="that had not ended; await that task"):
            session.run(prompt)
        gate.set()


async def test_command_with_the_text_of_a_pending_task_is_refused(held: HeldBackend) -> None:
    async with Session([held, Inference("ai", "small")]) as session:
        text = str(session.submit(work))
        for task in (
            ComputeTask(f"echo '{text}'"),
            ComputeTask("echo", arguments=["-n", text]),
            AITask("Go on.", system_prompt=f"The data: {text}"),
        ):
            with pytest.raises(TaskValidationError, match="that had not ended; await that task"):
                await session.submit_tasks(task)
        held.release()


async def test_session_without_backends_refuses_tasks() -> None:
    async with Session() as session:
        with pytest.raises(SessionError, match="no backends"):
            await session.submit_tasks([good()])


async def test_second_submission_of_a_task_is_refused() -> None:
    async with Session([NoopExecutionBackend()]) as session:
        task = good()
        await session.submit_tasks([task])
        with pytest.raises(TaskValidationError, match="submitted before; make a new task"):
            await session.submit_tasks([task])
        await task
        with pytest.raises(TaskValidationError, match="submitted before"):
            await session.submit_tasks([task])


async def test_duplicate_task_in_list_is_refused() -> None:
    backend = Recording()
    async with Session([backend]) as session:
        task = good()
        with pytest.raises(TaskValidationError, match="another task has this uid"):
            await session.submit_tasks([task, task])
        assert backend.submitted == []


async def test_uid_of_active_task_is_taken(held: HeldBackend) -> None:
    async with Session([held]) as session:
        await session.submit_tasks([{"function": work, "uid": "same"}])
        with pytest.raises(TaskValidationError, match="another task has this uid"):
            await session.submit_tasks([ComputeTask(function=work, uid="same")])


async def test_uid_is_free_after_task_is_garbage_collected() -> None:
    async with Session([NoopExecutionBackend()]) as session:
        for _ in range(2):
            task = ComputeTask(function=work, uid="again")
            await session.submit_tasks([task])
            await task
            del task
            await asyncio.sleep(0)  # the current step of the loop still refers to the future
            gc.collect()


@pytest.mark.parametrize("uid", ["../escape", "/tmp/escape", "a/b", "..", ".", "a\0b", 7])
def test_session_uid_must_be_a_directory_name(uid: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="'uid' must be the name of a directory"):
        Session(uid=uid, work_dir=tmp_path)


@pytest.mark.parametrize("uid", ["../../escape", "/tmp/escape", "", 7])
async def test_uid_changed_to_a_path_is_refused(uid: Any, tmp_path: Path) -> None:
    async with Session([NoopExecutionBackend()], work_dir=tmp_path) as session:
        task = ComputeTask(executable="echo", capture_stdio=True)
        task.uid = uid
        with pytest.raises(
            TaskValidationError, match="'uid' must be a non-empty string"
        ) as refused:
            await session.submit_tasks([task])
        assert (refused.value.field, refused.value.value) == ("uid", uid)


async def test_path_as_uid_of_a_dict_is_refused(tmp_path: Path) -> None:
    async with Session([NoopExecutionBackend()], work_dir=tmp_path) as session:
        with pytest.raises(TaskValidationError, match="'uid' must be a non-empty string"):
            await session.submit_tasks([{"executable": "echo", "uid": "../escape"}])


@pytest.mark.parametrize(
    ("field", "value"),
    [("args", [1, ComputeTask(function=work)]), ("kwargs", {"a": AITask("hi")})],
)
async def test_task_as_argument_of_another_task_is_refused(field: str, value: Any) -> None:
    async with Session([NoopExecutionBackend()]) as session:
        task: dict[str, Any] = {"function": work, field: value}
        with pytest.raises(TaskValidationError, match="await it and pass its result") as refused:
            await session.submit_tasks(task)
        assert (refused.value.field, refused.value.value) == (field, value)


def test_wrong_walltime_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="'walltime' must be a number of seconds"):
        Session([NoopExecutionBackend()], walltime="1:00:00")  # type: ignore[arg-type]


def test_what_is_no_list_of_backends_is_refused() -> None:
    with pytest.raises(SessionError, match="a session needs backends, got 5"):
        Session(5)


@pytest.mark.parametrize("field", ["work_dir", "journal"])
def test_paths_are_checked(field: str) -> None:
    with pytest.raises(ConfigurationError, match=f"'{field}' must be a path, got 5"):
        Session(**dict[str, Any]({field: 5}))
