"""The clauses of AsyncFlow's backend protocol, each a test that any backend can be put to.

The number of a clause stands at the head of its test's docstring.
"""

from __future__ import annotations

import asyncio
import copy
import gc
import inspect
import threading
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
import pytest_asyncio

from rhapsody.backends.protocol import (
    ALL_KINDS,
    EXECUTABLE,
    FUNCTION,
    PROMPT,
    TaskStates,
    accepted_kinds,
)
from rhapsody.testing import samples
from rhapsody.testing.gate import PATIENCE_SECONDS, Gate
from rhapsody.testing.owners import FakeEngine, Reports

__all__ = ["BackendConformance"]

ASYNC_FUNCTION = "async function"

every_kind = pytest.mark.parametrize("kind", [FUNCTION, EXECUTABLE, PROMPT])
held_kinds = pytest.mark.parametrize("kind", [FUNCTION, ASYNC_FUNCTION, EXECUTABLE])
result_keys = {FUNCTION: "return_value", EXECUTABLE: "stdout", PROMPT: "stdout"}


class BackendConformance:
    """One test per clause; subclass it and define the fixture `make_backend`.

    The fixture returns a callable that makes a new backend each time, not yet attached. What it
    makes is awaited where that can be done, as users do. Tests of kinds that the backend does not
    take (its attribute `task_kinds`; functions and executables where it has none) are skipped.

    Sample functions connect to a port of `gate_host`, and they are found by import: worker
    processes need `rhapsody`, but not pytest.

    Attributes:
        runs_tasks: False for a backend that only pretends to; skips what needs a real run.
        stops_functions: False where a cancelled sync function runs on, as in threads; its
            result must be dropped then.
        gate_host: An address of this machine that tasks can reach; where they run on others, that
            is not the default.
    """

    runs_tasks: ClassVar[bool] = True
    stops_functions: ClassVar[bool] = True
    gate_host: ClassVar[str] = "127.0.0.1"

    # AsyncFlow hands its tasks over in the engine's loop: every test has one running.
    pytestmark: ClassVar[list[pytest.MarkDecorator]] = [pytest.mark.asyncio]

    @pytest.fixture
    def make_backend(self) -> Callable[[], Any]:
        """Return a callable that makes a backend. Yours to define."""
        raise NotImplementedError(f"{type(self).__name__} defines no fixture `make_backend`")

    @pytest_asyncio.fixture
    async def backend(self, make_backend: Callable[[], Any]) -> AsyncIterator[Any]:
        """Return a backend that the test may use up."""
        backend = make_backend()
        if inspect.isawaitable(backend):
            backend = await backend
        yield backend
        await backend.shutdown()

    @pytest.fixture
    def make_engine(self, backend: Any, tmp_path: Path) -> Iterator[Callable[..., FakeEngine]]:
        """Return a callable that makes an engine, attached to the backend."""
        engines: list[FakeEngine] = []

        def make(uid: str = "asyncflow.session.fake") -> FakeEngine:
            engine = FakeEngine(tmp_path, uid)
            engine.attach(backend)
            engines.append(engine)
            return engine

        yield make
        for engine in engines:
            engine.close()

    @pytest_asyncio.fixture
    async def engine(self, make_engine: Callable[..., FakeEngine]) -> FakeEngine:
        """Return an engine that is attached to the backend."""
        return make_engine()

    @pytest_asyncio.fixture
    async def gate(self) -> AsyncIterator[Gate]:
        """Return a gate for held tasks."""
        async with Gate(self.gate_host) as gate:
            yield gate

    def need(self, backend: Any, kind: str, *, real: bool = False) -> None:
        """Skip the test where the backend does not take a kind of task, or does not run it."""
        kind = FUNCTION if kind == ASYNC_FUNCTION else kind
        if kind not in accepted_kinds(backend):
            pytest.skip(f"the backend takes no {kind} tasks")
        if real and not self.runs_tasks:
            pytest.skip("the backend does not really run its tasks")

    def one_task(self, backend: Any, uid: str = "task.000001") -> dict[str, Any]:
        """Return a quick task of a kind that the backend takes."""
        return samples.quick(min(accepted_kinds(backend)), uid)

    async def test_name_is_a_stable_non_empty_string(
        self, backend: Any, engine: FakeEngine
    ) -> None:
        """C1: `name` is a non-empty str, and stable."""
        name = backend.name
        assert isinstance(name, str)
        assert name
        await engine.run(backend, self.one_task(backend))
        assert backend.name == name

    async def test_work_dir_is_read_at_task_time(
        self, backend: Any, engine: FakeEngine, tmp_path: Path
    ) -> None:
        """C2: `_work_dir` is a plain writable attribute, and read when a task comes."""
        self.need(backend, EXECUTABLE, real=True)
        for uid in ("task.000001", "task.000002"):
            directory = tmp_path / uid
            directory.mkdir()
            backend._work_dir = str(directory)
            await engine.run(
                backend, samples.executable(uid, "/bin/echo", "here", capture_stdio=True)
            )
            assert (directory / f"{uid}.stdout").read_text() == "here\n"

    async def test_is_attached_is_the_owners_to_write(
        self, backend: Any, engine: FakeEngine
    ) -> None:
        """C3: `is_attached` is writable; tasks do not reset it."""
        assert backend.is_attached is True
        await engine.run(backend, self.one_task(backend))
        assert backend.is_attached is True

    async def test_attached_to_lists_the_owners(
        self, backend: Any, make_engine: Callable[..., FakeEngine]
    ) -> None:
        """C4: `attached_to` is an existing list that owners append to."""
        before = list(backend.attached_to)
        make_engine("first").close()
        make_engine("second")
        assert backend.attached_to == [*before, "first", "second"]

    async def test_data_linking_flags_are_booleans(self, backend: Any) -> None:
        """C5: `supports_*_data_linking` can be read once at attachment."""
        assert isinstance(backend.supports_implicit_data_linking, bool)
        assert isinstance(backend.supports_explicit_data_linking, bool)

    async def test_the_callback_registered_last_is_called(self, backend: Any) -> None:
        """C6: `register_callback` is sync and has one slot; the last one wins."""
        first, last = Reports(), Reports()
        assert backend.register_callback(first.callback) is None
        assert backend.register_callback(last.callback) is None
        assert backend._callback_func == last.callback
        await backend.submit_tasks([self.one_task(backend)])
        await last.end("task.000001")
        assert first.log == []

    async def test_a_bound_method_can_be_read_back(self, backend: Any, engine: FakeEngine) -> None:
        """C6: the callback stays readable as `_callback_func`."""
        assert backend._callback_func == engine.task_callbacks

    async def test_states_can_be_read_right_after_attachment(
        self, backend: Any, engine: FakeEngine
    ) -> None:
        """C7: `get_task_states_map` is sync; its strings are in `terminal_states` or not."""
        states = backend.get_task_states_map()
        for state in (states.DONE, states.FAILED, states.CANCELED):
            assert type(state) is str
            assert state in states.terminal_states
        assert type(states.RUNNING) is str
        assert states.RUNNING not in states.terminal_states

    async def test_attaching_is_all_that_a_task_needs(
        self, make_backend: Callable[[], Any], tmp_path: Path
    ) -> None:
        """C8: the engine never initialises a backend and never asks for its state."""
        backend = make_backend()
        engine = FakeEngine(tmp_path)
        engine.attach(backend)
        (report,) = await engine.run(backend, self.one_task(backend))
        assert report.state == TaskStates.DONE
        await engine.shutdown(backend)

    @held_kinds
    async def test_submitting_does_not_wait_for_the_task(
        self, kind: str, backend: Any, engine: FakeEngine, gate: Gate
    ) -> None:
        """C9: `submit_tasks` returns at once, while its tasks run."""
        self.need(backend, kind, real=True)
        await backend.submit_tasks([samples.held(kind, "task.000001", gate)])
        await gate.started("task.000001")
        assert engine.reports.terminal("task.000001") == []
        gate.release("task.000001")
        assert (await engine.reports.end("task.000001")).state == TaskStates.DONE

    async def test_tasks_may_come_in_many_passes(self, backend: Any, engine: FakeEngine) -> None:
        """C10: one call after another, each with some tasks, none waiting for those before."""
        tasks = [self.one_task(backend, f"task.{n:06}") for n in range(20)]
        for first in range(0, 20, 4):
            await backend.submit_tasks(tasks[first : first + 4])
        for task in tasks:
            assert (await engine.reports.end(task["uid"])).state == TaskStates.DONE

    @every_kind
    async def test_the_description_stays_as_it_was(
        self, kind: str, backend: Any, engine: FakeEngine
    ) -> None:
        """C11: keys may be added to a task, but none of the engine's is changed or removed."""
        self.need(backend, kind)
        task = samples.quick(kind, "task.000001")
        described = copy.deepcopy(task)
        await engine.run(backend, task)
        assert {key: task[key] for key in described} == described

    async def test_the_kind_is_the_first_key_that_is_set(
        self, backend: Any, engine: FakeEngine
    ) -> None:
        """C11: a key's presence says nothing; the engine leaves others in place as None."""
        self.need(backend, EXECUTABLE, real=True)
        task = samples.describe(
            "task.000001", EXECUTABLE, executable="/bin/echo", arguments=["1"], prompt=None
        )
        (report,) = await engine.run(backend, task)
        assert (report.state, task["stdout"]) == (TaskStates.DONE, "1\n")

    @every_kind
    async def test_a_kind_it_cannot_run_fails_with_a_reason(
        self, kind: str, backend: Any, engine: FakeEngine
    ) -> None:
        """C12: a kind of task that the backend cannot run is FAILED, and says why."""
        if accepted_kinds(backend) >= ALL_KINDS or kind in accepted_kinds(backend):
            pytest.skip(f"the backend takes {kind} tasks")
        task = samples.quick(kind, "task.000001")
        (report,) = await engine.run(backend, task)
        assert report.state == TaskStates.FAILED
        assert isinstance(task["exception"], Exception)
        assert str(task["exception"])

    async def test_arguments_are_passed_as_they_are(self, backend: Any, engine: FakeEngine) -> None:
        """C12: `args` and `kwargs` hold values."""
        self.need(backend, FUNCTION, real=True)
        task = samples.function("task.000001", samples.add, 2, right=40)
        await engine.run(backend, task)
        assert task["return_value"] == 42

    async def test_submitting_never_raises(self, backend: Any, engine: FakeEngine) -> None:
        """C13: a task that cannot run is FAILED by itself; those beside it run."""
        good = self.one_task(backend, "task.000001")
        nothing_to_run = samples.describe("task.000002", FUNCTION)
        bad_options = self.one_task(backend, "task.000003")
        bad_options["task_backend_specific_kwargs"] = "not a mapping"
        await backend.submit_tasks([])
        reports = await engine.run(backend, nothing_to_run, good, bad_options)
        states = [report.state for report in reports]
        assert states == [TaskStates.FAILED, TaskStates.DONE, TaskStates.FAILED]

    async def test_a_report_may_lead_to_the_next_task(self, backend: Any, tmp_path: Path) -> None:
        """C14: callbacks may come at any time, also from inside `submit_tasks`."""
        reports = Reports()
        following: list[asyncio.Task[None]] = []

        def on_state(task: Any, state: Any) -> None:
            reports.callback(task, state)
            if state == TaskStates.DONE and not following:
                again = backend.submit_tasks([self.one_task(backend, "task.000002")])
                following.append(asyncio.get_running_loop().create_task(again))

        backend.register_callback(on_state)
        await backend.submit_tasks([self.one_task(backend, "task.000001")])
        assert (await reports.end("task.000002")).state == TaskStates.DONE
        await asyncio.gather(*following)

    @every_kind
    async def test_reports_come_on_the_owners_thread(
        self, kind: str, backend: Any, engine: FakeEngine
    ) -> None:
        """C15: the callback is called on the thread of the engine's loop."""
        self.need(backend, kind)
        await engine.run(backend, samples.quick(kind, "task.000001"))
        assert {report.thread for report in engine.reports.log} == {threading.get_ident()}

    async def test_a_report_brings_the_task(self, backend: Any, engine: FakeEngine) -> None:
        """C11, C16: the callback gets the dict that was submitted, or an object with `as_dict`."""
        task = self.one_task(backend)
        (report,) = await engine.run(backend, task)
        assert report.task is task or report.task.as_dict()["uid"] == task["uid"]

    @every_kind
    async def test_states_are_plain_strings(
        self, kind: str, backend: Any, engine: FakeEngine
    ) -> None:
        """C17: a state is a str, not an Enum."""
        self.need(backend, kind)
        await engine.run(backend, samples.quick(kind, "task.000001"))
        assert {type(report.state) for report in engine.reports.log} == {str}

    @every_kind
    async def test_running_comes_at_most_once_and_first(
        self, kind: str, backend: Any, engine: FakeEngine
    ) -> None:
        """C18: RUNNING may be left out, and never follows a terminal state."""
        self.need(backend, kind)
        uids = [f"task.{n:06}" for n in range(20)]
        await engine.run(backend, *(samples.quick(kind, uid) for uid in uids))
        await engine.shutdown(backend)
        allowed = ([TaskStates.DONE], [TaskStates.RUNNING, TaskStates.DONE])
        assert all(engine.reports.states(uid) in allowed for uid in uids)

    @every_kind
    async def test_done_brings_the_result(
        self, kind: str, backend: Any, engine: FakeEngine
    ) -> None:
        """C19: DONE has `return_value` for a function and `stdout` for anything else."""
        self.need(backend, kind)
        task = samples.quick(kind, "task.000001")
        (report,) = await engine.run(backend, task)
        assert report.state == TaskStates.DONE
        assert result_keys[kind] in task
        expected = {FUNCTION: 5, EXECUTABLE: "hello\n"}
        if self.runs_tasks and kind in expected:
            assert task[result_keys[kind]] == expected[kind]

    async def test_an_async_function_is_run_to_its_end(
        self, backend: Any, engine: FakeEngine
    ) -> None:
        """C19: `return_value` is what the function returns, not its coroutine."""
        self.need(backend, FUNCTION, real=True)
        task = samples.function("task.000001", samples.add_async, 2, 3)
        await engine.run(backend, task)
        assert task["return_value"] == 5

    async def test_a_failed_function_brings_its_exception(
        self, backend: Any, engine: FakeEngine
    ) -> None:
        """C20: FAILED brings the exception itself."""
        self.need(backend, FUNCTION, real=True)
        task = samples.failing(FUNCTION, "task.000001")
        (report,) = await engine.run(backend, task)
        assert report.state == TaskStates.FAILED
        assert type(task["exception"]) is ValueError
        assert str(task["exception"]) == "no such luck"

    @pytest.mark.parametrize(
        "error", [StopIteration(1), SystemExit(2), KeyboardInterrupt(), asyncio.CancelledError()]
    )
    async def test_an_exception_no_future_can_hold_is_wrapped(
        self, error: BaseException, backend: Any, engine: FakeEngine
    ) -> None:
        """C20: what would hang a future or end the loop becomes an exception that names it."""
        self.need(backend, FUNCTION, real=True)
        task = samples.function("task.000001", samples.fail, error)
        (report,) = await engine.run(backend, task)
        assert report.state == TaskStates.FAILED
        assert isinstance(task["exception"], Exception)
        assert not isinstance(task["exception"], StopIteration)
        assert type(error).__name__ in str(task["exception"])

    async def test_a_silent_failure_tells_its_exit_code(
        self, backend: Any, engine: FakeEngine
    ) -> None:
        """C20: an executable that fails and writes nothing still says its exit code."""
        self.need(backend, EXECUTABLE, real=True)
        task = samples.failing(EXECUTABLE, "task.000001")
        (report,) = await engine.run(backend, task)
        assert report.state == TaskStates.FAILED
        assert "3" in str(task.get("exception") or task["stderr"])

    async def test_a_missing_program_fails_by_name(self, backend: Any, engine: FakeEngine) -> None:
        """C20: a program that does not exist is FAILED, with its name in the reason."""
        self.need(backend, EXECUTABLE, real=True)
        task = samples.executable("task.000001", "/no/such/program")
        (report,) = await engine.run(backend, task)
        assert report.state == TaskStates.FAILED
        assert "/no/such/program" in str(task["exception"])

    @every_kind
    async def test_every_task_ends_once(self, kind: str, backend: Any, engine: FakeEngine) -> None:
        """C22: exactly one terminal state for each task, whatever comes after."""
        self.need(backend, kind)
        uids = [f"task.{n:06}" for n in range(50)]
        await engine.run(backend, *(samples.quick(kind, uid) for uid in uids))
        assert [await backend.cancel_task(uid) for uid in uids] == [False] * 50
        await engine.shutdown(backend)
        assert [len(engine.reports.terminal(uid)) for uid in uids] == [1] * 50

    async def test_only_submitted_tasks_are_reported(
        self, backend: Any, engine: FakeEngine
    ) -> None:
        """C23: a uid that the owner does not know is never reported."""
        await engine.run(backend, self.one_task(backend))
        await backend.cancel_task("task.999999")
        await engine.shutdown(backend)
        assert {report.uid for report in engine.reports.log} == {"task.000001"}

    async def test_states_are_the_same_strings_everywhere(self, backend: Any) -> None:
        """C21, C24: an engine reads every backend's states by its default backend's strings."""
        states = backend.get_task_states_map()
        assert (states.DONE, states.RUNNING, states.CANCELED, states.FAILED) == (
            "DONE",
            "RUNNING",
            "CANCELED",
            "FAILED",
        )
        assert set(states.terminal_states) == {"DONE", "CANCELED", "FAILED"}

    async def test_a_service_callback_is_callable_or_left_out(
        self, backend: Any, engine: FakeEngine
    ) -> None:
        """C25: the third argument is optional: a function of future, task and state."""
        task = {**self.one_task(backend), "is_service": True}
        await engine.run(backend, task)
        for report in engine.reports.log:
            assert report.service_callback is None or callable(report.service_callback)

    @every_kind
    async def test_a_task_cancelled_at_once_ends(
        self, kind: str, backend: Any, engine: FakeEngine, gate: Gate
    ) -> None:
        """C26: a cancelled task is reported, started or not; the answer says which way."""
        self.need(backend, kind)
        uids = [f"task.{n:06}" for n in range(20)]
        await backend.submit_tasks(
            [
                samples.quick(kind, uid) if kind == PROMPT else samples.held(kind, uid, gate)
                for uid in uids
            ]
        )
        cancelled = [await backend.cancel_task(uid) for uid in uids]
        ends = [(await engine.reports.end(uid)).state for uid in uids]
        assert [end == TaskStates.CANCELED for end in ends] == cancelled
        if self.runs_tasks and kind != PROMPT:
            assert all(cancelled)

    async def test_cancelling_what_is_unknown_or_over_says_false(
        self, backend: Any, engine: FakeEngine
    ) -> None:
        """C27: no exception, and no second terminal state."""
        assert await backend.cancel_task("task.999999") is False
        await engine.run(backend, self.one_task(backend))
        assert await backend.cancel_task("task.000001") is False
        assert len(engine.reports.terminal("task.000001")) == 1

    async def test_cancelling_twice_reports_once(
        self, backend: Any, engine: FakeEngine, gate: Gate
    ) -> None:
        """C22, C27: a second request while the first is under way changes nothing."""
        kind = min(accepted_kinds(backend) - {PROMPT}, default=PROMPT)
        self.need(backend, kind, real=True)
        if kind == PROMPT:
            pytest.skip("a prompt cannot be held")
        await backend.submit_tasks([samples.held(kind, "task.000001", gate)])
        await gate.started("task.000001")
        await asyncio.gather(*(backend.cancel_task("task.000001") for _ in range(2)))
        await engine.shutdown(backend)
        assert [r.state for r in engine.reports.terminal("task.000001")] == [TaskStates.CANCELED]

    @held_kinds
    async def test_a_cancelled_task_really_stops(
        self, kind: str, backend: Any, engine: FakeEngine, gate: Gate
    ) -> None:
        """C28: the work ends, child processes and their children included."""
        self.need(backend, kind, real=True)
        if kind == FUNCTION and not self.stops_functions:
            pytest.skip("a sync function runs on here")
        await backend.submit_tasks([samples.held(kind, "task.000001", gate)])
        await gate.started("task.000001")
        assert await backend.cancel_task("task.000001") is True
        assert (await engine.reports.end("task.000001")).state == TaskStates.CANCELED
        await gate.ended("task.000001")

    async def test_the_result_of_what_cannot_be_stopped_is_dropped(
        self, backend: Any, engine: FakeEngine, gate: Gate
    ) -> None:
        """C28: a function that runs on is reported CANCELED at once, and then no more."""
        self.need(backend, FUNCTION, real=True)
        if self.stops_functions:
            pytest.skip("functions are stopped here")
        task = samples.held(FUNCTION, "task.000001", gate)
        await backend.submit_tasks([task])
        await gate.started("task.000001")
        assert await backend.cancel_task("task.000001") is True
        assert (await engine.reports.end("task.000001")).state == TaskStates.CANCELED
        gate.release("task.000001")
        await gate.ended("task.000001")
        await engine.run(backend, self.one_task(backend, "task.000002"))
        assert engine.reports.states("task.000001")[-1] == TaskStates.CANCELED
        assert task.get("return_value") is None

    @held_kinds
    async def test_the_backend_is_of_use_after_a_cancellation(
        self, kind: str, backend: Any, engine: FakeEngine, gate: Gate
    ) -> None:
        """C28: a cancelled task takes nothing with it that others need."""
        self.need(backend, kind, real=True)
        await backend.submit_tasks([samples.held(kind, "task.000001", gate)])
        await gate.started("task.000001")
        await backend.cancel_task("task.000001")
        (report,) = await engine.run(backend, self.one_task(backend, "task.000002"))
        assert report.state == TaskStates.DONE
        gate.release("task.000001")

    async def test_link_hooks_are_sync(self, backend: Any, tmp_path: Path) -> None:
        """C29: both can be called without awaiting; the explicit one names its target."""
        source, target = self.one_task(backend, "task.000001"), self.one_task(backend, "t.2")
        implicit = backend.link_implicit_data_deps(source, target)
        assert not inspect.isawaitable(implicit)
        if backend.supports_explicit_data_linking:
            made = backend.link_explicit_data_deps(source, target, file_name="data.txt")
            assert made["target"]
        else:
            made = backend.link_explicit_data_deps(source, target, file_name="data.txt")
            assert not inspect.isawaitable(made)

    async def test_shutdown_may_come_at_any_time_and_again(
        self, make_backend: Callable[[], Any]
    ) -> None:
        """C30: idempotent, before any use as well, and two at once; never raises."""
        backend = make_backend()
        await backend.shutdown()
        await asyncio.gather(backend.shutdown(), backend.shutdown())

    @held_kinds
    async def test_shutdown_ends_what_runs(
        self, kind: str, backend: Any, engine: FakeEngine, gate: Gate
    ) -> None:
        """C30: tasks that run are stopped and reported, without freezing the loop."""
        self.need(backend, kind, real=True)
        await backend.submit_tasks([samples.held(kind, "task.000001", gate)])
        await gate.started("task.000001")
        # A function that cannot be stopped is released only after `shutdown` has returned.
        await asyncio.wait_for(engine.shutdown(backend), PATIENCE_SECONDS)
        assert engine.reports.states("task.000001")[-1] == TaskStates.CANCELED
        if kind == FUNCTION and not self.stops_functions:
            gate.release("task.000001")
        await gate.ended("task.000001")

    @every_kind
    async def test_shutdown_leaves_no_task_without_an_end(
        self, kind: str, backend: Any, engine: FakeEngine
    ) -> None:
        """C22, C30: when it returns, every task has been told about, the waiting ones as well."""
        self.need(backend, kind)
        uids = [f"task.{n:06}" for n in range(100)]
        await backend.submit_tasks([samples.quick(kind, uid) for uid in uids])
        await engine.shutdown(backend)
        assert [len(engine.reports.terminal(uid)) for uid in uids] == [1] * 100

    async def test_a_later_owner_can_use_it_again(
        self, backend: Any, make_engine: Callable[..., FakeEngine]
    ) -> None:
        """C31: after one engine's shutdown another attaches, whose uids start from 1 again."""
        for uid in ("first", "second"):
            engine = make_engine(uid)
            (report,) = await engine.run(backend, self.one_task(backend))
            assert report.state == TaskStates.DONE
            await engine.shutdown(backend)

    @held_kinds
    async def test_an_earlier_owners_task_is_not_a_later_ones(
        self, kind: str, backend: Any, make_engine: Callable[..., FakeEngine], gate: Gate
    ) -> None:
        """C31: what an engine left behind with `skip_execution_backend=True` stays its own."""
        self.need(backend, kind, real=True)
        first = make_engine("first")
        await backend.submit_tasks([samples.held(kind, "task.000001", gate)])
        await gate.started("task.000001")
        first.close()
        second = make_engine("second")
        (report,) = await second.run(backend, self.one_task(backend, "task.000001"))
        assert report.state == TaskStates.DONE
        gate.release("task.000001")
        await gate.ended("task.000001")
        await second.shutdown(backend)
        assert [r.state for r in second.reports.terminal("task.000001")] == [TaskStates.DONE]

    async def test_output_is_captured_in_files(self, backend: Any, engine: FakeEngine) -> None:
        """C33: `capture_stdio` writes `<_work_dir>/<uid>.stdout` and `.stderr`."""
        self.need(backend, EXECUTABLE, real=True)
        task = samples.executable(
            "task.000001", "/bin/sh", "-c", "echo out; echo err >&2", capture_stdio=True
        )
        await engine.run(backend, task)
        directory = Path(backend._work_dir)
        assert task["stdout"] == str(directory / "task.000001.stdout")
        assert (directory / "task.000001.stdout").read_text() == "out\n"
        assert (directory / "task.000001.stderr").read_text() == "err\n"

    @every_kind
    async def test_finished_tasks_are_let_go(self, kind: str, backend: Any) -> None:
        """C34: the backend keeps no task that has ended."""
        self.need(backend, kind)

        class Described(dict[str, Any]):
            """A dict that takes weak references."""

        ended: dict[str, asyncio.Event] = {uid: asyncio.Event() for uid in ("task.1", "task.2")}

        def on_state(task: Any, state: Any) -> None:
            if state in TaskStates.terminal_states:
                ended[task["uid"]].set()

        backend.register_callback(on_state)
        first = Described(samples.quick(kind, "task.1"))
        kept = weakref.ref(first)
        await backend.submit_tasks([first])
        await asyncio.wait_for(ended["task.1"].wait(), PATIENCE_SECONDS)
        del first
        # A worker lets go of its last task when it takes the next one.
        await backend.submit_tasks([Described(samples.quick(kind, "task.2"))])
        await asyncio.wait_for(ended["task.2"].wait(), PATIENCE_SECONDS)
        gc.collect()
        assert kept() is None
