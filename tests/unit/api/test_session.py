"""A session routes tasks to backends, refuses what is wrong beforehand, and waits for the rest."""

import asyncio
import gc
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from rhapsody import AITask, ComputeTask, Session
from rhapsody.api import (
    BackendInUseError,
    SessionError,
    TaskCancelledError,
    TaskExecutionError,
    TaskValidationError,
)
from rhapsody.backends import BaseBackend, ConcurrentExecutionBackend, NoopExecutionBackend
from tests.support.held import HeldBackend

LIMIT_S = 20


class Inference(NoopExecutionBackend):
    """Takes prompts only, and serves a model."""

    task_kinds = frozenset({"prompt"})

    def __init__(self, name: str, model_name: str) -> None:
        super().__init__(name)
        self.model_name = model_name


class Compute(NoopExecutionBackend):
    """Takes compute tasks only."""

    task_kinds = frozenset({"function", "executable"})


class Recording(NoopExecutionBackend):
    """Remembers the uids that it was given."""

    def __init__(self, name: str = "recording") -> None:
        super().__init__(name)
        self.given: list[str] = []

    async def submit_tasks(self, tasks: Any) -> None:
        self.given += [task["uid"] for task in tasks]
        await super().submit_tasks(tasks)


def work() -> int:
    return 3


def boom() -> None:
    raise ValueError("intended")


@pytest.fixture
async def held() -> AsyncIterator[HeldBackend]:
    backend = HeldBackend()
    yield backend
    await backend.shutdown()


# -- results ------------------------------------------------------------------------------------


async def test_awaiting_a_task_gives_the_task_itself() -> None:
    async with Session([NoopExecutionBackend()]) as session:
        task = ComputeTask(function=work)
        await session.submit_tasks([task])
        assert await task is task
        assert task.state == "DONE"


async def test_gathering_tasks_gives_them_in_order_with_their_results() -> None:
    async with Session([ConcurrentExecutionBackend()]) as session:
        tasks = [ComputeTask(function=pow, args=(i, 2)) for i in range(20)]
        await session.submit_tasks(tasks)
        results = await asyncio.gather(*tasks)
        assert [task.return_value for task in results] == [i * i for i in range(20)]


async def test_submitting_gives_a_future_of_each_task() -> None:
    async with Session([NoopExecutionBackend()]) as session:
        tasks = [ComputeTask(function=work), ComputeTask(executable="true")]
        futures = await session.submit_tasks(tasks)
        assert [await future for future in futures] == tasks


async def test_a_single_task_needs_no_list() -> None:
    async with Session([NoopExecutionBackend()]) as session:
        task = ComputeTask(function=work)
        (future,) = await session.submit_tasks(task)
        assert await future is task


async def test_no_tasks_are_no_error() -> None:
    async with Session([NoopExecutionBackend()]) as session:
        assert await session.submit_tasks([]) == []
        assert await session.wait_tasks([]) == []


async def test_a_dict_is_a_task_and_results_are_written_into_it() -> None:
    async with Session([ConcurrentExecutionBackend()]) as session:
        task: dict[str, Any] = {"function": work}
        (future,) = await session.submit_tasks([task])
        assert await future is task
        assert (task["state"], task["return_value"]) == ("DONE", 3)
        assert task["uid"]


async def test_a_failed_function_raises_its_own_exception() -> None:
    async with Session([ConcurrentExecutionBackend()]) as session:
        task = ComputeTask(function=boom)
        await session.submit_tasks([task])
        with pytest.raises(ValueError, match="intended"):
            await task
        assert task.state == "FAILED"
        assert isinstance(task.exception, ValueError)


async def test_a_failed_executable_raises_its_exit_code() -> None:
    async with Session([ConcurrentExecutionBackend()]) as session:
        task = ComputeTask(executable="/bin/sh", arguments=["-c", "echo why >&2; exit 3"])
        await session.submit_tasks([task])
        with pytest.raises(TaskExecutionError, match="why") as failed:
            await task
        assert failed.value.exit_code == 3


async def test_a_failure_that_nobody_awaits_is_no_warning(asyncio_errors: list[str]) -> None:
    async with Session([ConcurrentExecutionBackend()]) as session:
        tasks = [ComputeTask(function=boom)]
        await session.submit_tasks(tasks)
        await session.wait_tasks(tasks)
    del tasks
    gc.collect()
    assert asyncio_errors == []


async def test_results_come_although_the_user_keeps_no_task(held: HeldBackend) -> None:
    async with Session([held]) as session:
        (future,) = await session.submit_tasks([ComputeTask(function=work)])
        gc.collect()
        held.release()
        assert (await future).state == "DONE"


# -- routing ------------------------------------------------------------------------------------


async def test_a_task_goes_to_the_first_backend_that_takes_its_kind() -> None:
    async with Session([Inference("ai", "m"), Compute("cpu")]) as session:
        tasks = [ComputeTask(function=work), AITask("hi"), ComputeTask(executable="true")]
        await session.submit_tasks(tasks)
        assert [task.backend for task in tasks] == ["cpu", "ai", "cpu"]
        await asyncio.gather(*tasks)


async def test_a_named_backend_is_taken() -> None:
    first, second = Recording("first"), Recording("second")
    async with Session([first, second]) as session:
        await session.submit_tasks([ComputeTask(function=work, uid="a", backend="second")])
        assert (first.given, second.given) == ([], ["a"])


async def test_a_model_picks_the_backend_that_serves_it() -> None:
    async with Session([Inference("one", "small"), Inference("two", "large")]) as session:
        tasks = [AITask("hi", model="large"), AITask("hi", model="small"), AITask("hi")]
        await session.submit_tasks(tasks)
        assert [task.backend for task in tasks] == ["two", "one", "one"]


async def test_a_backend_that_nobody_awaited_starts_itself() -> None:
    async with Session([ConcurrentExecutionBackend()]) as session:
        task = ComputeTask(function=work)
        await session.submit_tasks([task])
        assert (await task).return_value == 3


async def test_a_backend_can_be_added_later() -> None:
    async with Session() as session:
        session.add_backend(Recording("late"))
        task = ComputeTask(function=work)
        await session.submit_tasks([task])
        assert (await task).backend == "late"


async def test_captured_output_goes_to_the_sessions_directory(tmp_path: Path) -> None:
    backend = ConcurrentExecutionBackend()
    async with Session([backend], uid="mine", work_dir=tmp_path) as session:
        task = ComputeTask(executable="echo", arguments=["hi"], uid="t", capture_stdio=True)
        await session.submit_tasks([task])
        await task
        assert task.stdout == str(tmp_path / "mine" / "t.stdout")
        assert Path(task.stdout).read_text() == "hi\n"


# -- refusals -----------------------------------------------------------------------------------


def good() -> ComputeTask:
    return ComputeTask(function=work, uid="good")


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
        ("echo hi", "a task is a ComputeTask, an AITask or a dict, not str"),
    ],
)
async def test_one_wrong_task_is_refused_before_any_is_submitted(bad: Any, words: str) -> None:
    cpu = Recording("cpu")
    cpu.task_kinds = Compute.task_kinds
    async with Session([cpu, Inference("ai", "small")]) as session:
        with pytest.raises(TaskValidationError, match=words):
            await session.submit_tasks([good(), bad])
        assert cpu.given == []
        assert session.get_statistics()["tasks"] == {}
        await session.submit_tasks([good()])  # what was refused left no trace


async def test_a_kind_that_no_backend_takes_is_refused_with_the_backends_there_are() -> None:
    async with Session([Compute("cpu")]) as session:
        with pytest.raises(TaskValidationError, match="takes prompt tasks; it has 'cpu'"):
            await session.submit_tasks([AITask("hi")])


async def test_a_session_without_backends_refuses_tasks() -> None:
    async with Session() as session:
        with pytest.raises(SessionError, match="no backends"):
            await session.submit_tasks([good()])


async def test_a_task_is_submitted_once_only() -> None:
    async with Session([NoopExecutionBackend()]) as session:
        task = good()
        await session.submit_tasks([task])
        with pytest.raises(TaskValidationError, match="submitted before; make a new task"):
            await session.submit_tasks([task])
        await task
        with pytest.raises(TaskValidationError, match="submitted before"):
            await session.submit_tasks([task])


async def test_the_same_task_twice_in_one_list_is_refused() -> None:
    backend = Recording()
    async with Session([backend]) as session:
        task = good()
        with pytest.raises(TaskValidationError, match="another task has this uid"):
            await session.submit_tasks([task, task])
        assert backend.given == []


async def test_the_uid_of_an_active_task_is_taken(held: HeldBackend) -> None:
    async with Session([held]) as session:
        await session.submit_tasks([{"function": work, "uid": "same"}])
        with pytest.raises(TaskValidationError, match="another task has this uid"):
            await session.submit_tasks([ComputeTask(function=work, uid="same")])


async def test_the_uid_of_a_task_that_is_gone_can_be_used_again() -> None:
    async with Session([NoopExecutionBackend()]) as session:
        for _ in range(2):
            task = ComputeTask(function=work, uid="again")
            await session.submit_tasks([task])
            await task
            del task
            await asyncio.sleep(0)  # the loop's present step still holds the future
            gc.collect()


async def test_a_closed_session_refuses_tasks_and_backends() -> None:
    session = Session([NoopExecutionBackend()])
    await session.close()
    with pytest.raises(SessionError, match="is closed; make a new one"):
        await session.submit_tasks([good()])
    with pytest.raises(SessionError, match="is closed"):
        session.add_backend(NoopExecutionBackend("other"))


async def test_two_backends_of_one_name_are_refused_and_let_go() -> None:
    first, second = NoopExecutionBackend("same"), NoopExecutionBackend("same")
    with pytest.raises(SessionError, match="a backend named 'same' already"):
        Session([first, second])
    await Session([first]).close()


async def test_waiting_for_a_task_of_nobody_is_refused() -> None:
    async with Session([NoopExecutionBackend()]) as session:
        with pytest.raises(SessionError, match="task stray was not submitted"):
            await session.wait_tasks([ComputeTask(function=work, uid="stray")])


# -- waiting and cancelling ---------------------------------------------------------------------


async def test_waiting_raises_no_failures() -> None:
    async with Session([ConcurrentExecutionBackend()]) as session:
        tasks = [ComputeTask(function=work), ComputeTask(function=boom)]
        await session.submit_tasks(tasks)
        assert await session.wait_tasks(tasks) == tasks
        assert [task.state for task in tasks] == ["DONE", "FAILED"]


async def test_waiting_for_tasks_that_ended_returns_at_once() -> None:
    async with Session([NoopExecutionBackend()]) as session:
        task = good()
        await session.submit_tasks([task])
        await task
        assert await session.wait_tasks([task], timeout=0) == [task]


async def test_a_wait_that_times_out_says_how_many_ended_and_leaves_the_others(
    held: HeldBackend,
) -> None:
    async with Session([held, NoopExecutionBackend()]) as session:
        ended, waiting = ComputeTask(function=work, backend="noop"), ComputeTask(function=work)
        await session.submit_tasks([ended, waiting])
        await ended
        with pytest.raises(asyncio.TimeoutError, match=r"1 of 2 tasks ended within 0.01 s"):
            await session.wait_tasks([ended, waiting], timeout=0.01)
        assert not waiting.done
        held.release()
        await session.wait_tasks([ended, waiting], timeout=LIMIT_S)
        assert waiting.state == "DONE"


async def test_a_cancelled_wait_leaves_the_tasks_alone(held: HeldBackend) -> None:
    async with Session([held]) as session:
        task = good()
        await session.submit_tasks([task])
        waiting = asyncio.ensure_future(session.wait_tasks([task]))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        held.release()
        assert (await task).state == "DONE"


@pytest.mark.parametrize("by_uid", [False, True])
async def test_a_cancelled_task_raises_that_it_was(held: HeldBackend, by_uid: bool) -> None:
    async with Session([held]) as session:
        task = good()
        await session.submit_tasks([task])
        await held.has_begun()
        assert await session.cancel(task.uid if by_uid else task) is True
        with pytest.raises(TaskCancelledError, match="'good' was cancelled"):
            await task
        assert task.state == "CANCELED"
        assert held.cancelled == ["good"]


async def test_cancelling_what_ended_or_is_unknown_is_false() -> None:
    async with Session([NoopExecutionBackend()]) as session:
        task = good()
        await session.submit_tasks([task])
        await task
        assert await session.cancel(task) is False
        assert await session.cancel("unknown") is False
        assert task.state == "DONE"


async def test_cancelling_the_future_does_not_upset_the_session(held: HeldBackend) -> None:
    async with Session([held]) as session:
        task = good()
        (future,) = await session.submit_tasks([task])
        future.cancel()
        held.release()
        with pytest.raises(asyncio.CancelledError):
            await task
        await session.wait_tasks([task], timeout=LIMIT_S)


# -- statistics ---------------------------------------------------------------------------------


async def test_statistics_count_tasks_by_state_and_backend(held: HeldBackend) -> None:
    async with Session([ConcurrentExecutionBackend(), held]) as session:
        ended = [ComputeTask(function=work), ComputeTask(function=boom)]
        active = ComputeTask(function=work, backend="held")
        await session.submit_tasks([*ended, active])
        await session.wait_tasks(ended)
        await session.cancel(active)
        statistics = session.get_statistics()
    assert statistics["tasks"] == {"DONE": 1, "FAILED": 1, "CANCELED": 1}
    assert statistics["backends"]["concurrent"]["tasks"] == {"DONE": 1, "FAILED": 1}
    latency = statistics["backends"]["concurrent"]["latency_seconds"]
    assert latency["count"] == 2
    assert 0 <= latency["p50"] <= latency["p90"] <= latency["p99"] <= latency["max"]


async def test_statistics_carry_what_a_backend_says_of_itself() -> None:
    class Talkative(NoopExecutionBackend):
        def get_statistics(self) -> dict[str, Any]:
            return {"mean_batch_size": 8.0}

    async with Session([Talkative("t")]) as session:
        assert session.get_statistics()["backends"]["t"]["backend"] == {"mean_batch_size": 8.0}


# -- life ---------------------------------------------------------------------------------------


async def test_closing_in_the_middle_cancels_what_is_active(held: HeldBackend) -> None:
    session = Session([held])
    tasks = [ComputeTask(function=work) for _ in range(5)]
    await session.submit_tasks(tasks)
    await session.close()
    assert [task.state for task in tasks] == ["CANCELED"] * 5
    for task in tasks:
        with pytest.raises(TaskCancelledError):
            await task


async def test_whoever_waits_is_woken_when_the_session_is_closed(held: HeldBackend) -> None:
    session = Session([held])
    task = good()
    await session.submit_tasks([task])
    waiting = asyncio.ensure_future(session.wait_tasks([task]))
    await asyncio.sleep(0)
    await session.close()
    assert await asyncio.wait_for(waiting, LIMIT_S) == [task]


async def test_closing_twice_and_at_once_is_closing() -> None:
    session = Session([NoopExecutionBackend()])
    await asyncio.gather(session.close(), session.close())
    await session.close()
    assert session.closed


async def test_a_backend_serves_one_session_after_the_other() -> None:
    backend = NoopExecutionBackend()
    for _ in range(2):
        async with Session([backend]) as session:
            task = good()
            await session.submit_tasks([task])
            assert (await task).state == "DONE"


async def test_a_backend_of_an_open_session_is_refused_to_another() -> None:
    backend = Recording("shared")
    async with Session([backend], uid="one") as session:
        with pytest.raises(BackendInUseError, match=r"'shared': it is attached to Session one"):
            Session([backend])
        task = good()
        await session.submit_tasks([task])
        assert (await task).state == "DONE"


async def test_two_sessions_work_side_by_side() -> None:
    async with Session([Recording("a")]) as one, Session([Recording("b")]) as two:
        tasks = [ComputeTask(function=work, uid="same"), ComputeTask(function=work, uid="same")]
        await asyncio.gather(one.submit_tasks(tasks[:1]), two.submit_tasks(tasks[1:]))
        assert [(await task).backend for task in tasks] == ["a", "b"]


def test_a_session_made_without_a_loop_binds_to_the_one_of_its_first_use() -> None:
    session = Session([NoopExecutionBackend()])

    async def use() -> str:
        task = ComputeTask(function=work)
        await session.submit_tasks([task])
        return str((await task).state)

    assert asyncio.run(use()) == "DONE"
    assert asyncio.run(use()) == "DONE"  # the first loop is closed, nothing is active there
    asyncio.run(session.close())


async def test_a_session_with_active_tasks_stays_on_its_loop(held: HeldBackend) -> None:
    async with Session([held]) as session:
        await session.submit_tasks([good()])
        with pytest.raises(SessionError, match="tasks on another event loop"):
            await asyncio.to_thread(session.run, [ComputeTask(function=work)])


# -- other people's backends --------------------------------------------------------------------


class Minimal(BaseBackend):
    """What the documentation asks of a backend: one coroutine."""

    async def execute(self, work: Any) -> dict[str, Any]:
        self.running(work)
        return {"return_value": work.task["function"]()}


class Raising(NoopExecutionBackend):
    """Breaks the protocol."""

    async def submit_tasks(self, tasks: Any) -> None:
        raise OSError("the queue is gone")


class Bare:
    """A backend that inherits nothing and answers from within `submit_tasks`."""

    name = "bare"
    supports_implicit_data_linking = supports_explicit_data_linking = False

    def __init__(self) -> None:
        self.attached_to: list[str] = []
        self.callback: Any = None

    def register_callback(self, func: Any) -> None:
        self.callback = func

    async def submit_tasks(self, tasks: Any) -> None:
        for task in tasks:
            task["return_value"] = 42
            self.callback(task, "DONE")

    async def cancel_task(self, uid: str) -> bool:
        return False

    async def shutdown(self) -> None:
        pass


async def test_a_backend_with_only_execute_runs_fails_and_cancels() -> None:
    async with Session([Minimal()]) as session:
        tasks = [ComputeTask(function=work), ComputeTask(function=boom)]
        await session.submit_tasks(tasks)
        await session.wait_tasks(tasks)
        assert (tasks[0].backend, tasks[0].return_value) == ("Minimal", 3)
        assert str(tasks[1].exception) == "intended"


async def test_a_backend_that_inherits_nothing_works() -> None:
    async with Session(Bare()) as session:
        task = ComputeTask(function=work)
        await session.submit_tasks([task])
        assert (await task).return_value == 42


async def test_a_backend_that_reports_from_a_thread_wakes_who_waits() -> None:
    class Threaded(Bare):
        async def submit_tasks(self, tasks: Any) -> None:
            for task in tasks:
                threading.Timer(0.01, self.callback, (task, "DONE")).start()

    async with Session([Threaded()]) as session:
        task = ComputeTask(function=work)
        await session.submit_tasks([task])
        assert (await task).state == "DONE"


def test_tasks_of_a_loop_that_is_gone_are_ended_on_another() -> None:
    session = Session([HeldBackend()])
    task = good()
    asyncio.run(session.submit_tasks([task]))
    asyncio.run(session.close())
    assert task.state == "CANCELED"


async def test_a_backend_that_raises_fails_its_tasks_and_no_others(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with Session([Raising("broken"), NoopExecutionBackend()]) as session:
        lost = ComputeTask(function=work, backend="broken")
        kept = ComputeTask(function=work, backend="noop")
        await session.submit_tasks([lost, kept])
        with pytest.raises(OSError, match="the queue is gone"):
            await lost
        assert (await kept).state == "DONE"
    assert "backend 'broken' raised from submit_tasks" in caplog.text


async def test_a_backend_that_does_not_shut_down_does_not_keep_the_session_open(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Stuck(Bare):
        async def submit_tasks(self, tasks: Any) -> None:
            """Never report anything."""

        async def shutdown(self) -> None:
            raise OSError("no")

    session = Session([Stuck()])
    task = ComputeTask(function=work)
    await session.submit_tasks([task])
    await session.close()
    assert task.state == "CANCELED"
    assert "did not shut down cleanly" in caplog.text


async def test_who_stops_waiting_spoils_it_for_nobody() -> None:
    gate = threading.Event()

    class Held(BaseBackend):
        async def execute(self, work: Any) -> dict[str, Any]:
            await asyncio.get_running_loop().run_in_executor(None, gate.wait)
            return {"return_value": 42}

    async with Session([Held()]) as session:
        task = ComputeTask(function=len)
        [future] = await session.submit_tasks([task])
        for waited in (task, future):
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(waited, 0.01)
        waiting = asyncio.ensure_future(session.wait_tasks([task]))
        await asyncio.sleep(0)
        assert not waiting.done()
        gate.set()
        await waiting
        assert (await task).return_value == 42
