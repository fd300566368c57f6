"""What every backend shares: attachment, delivery, one end for each task, start and shutdown."""

import asyncio
import contextlib
import gc
import logging
import threading
import weakref
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from rhapsody.api.errors import (
    BackendError,
    BackendInUseError,
    TaskCancelledError,
    TaskTimeoutError,
    UnsupportedTaskError,
)
from rhapsody.backends import BaseBackend, NoopExecutionBackend, Work
from rhapsody.backends.attachment import DELIVERIES_PER_PASS
from rhapsody.backends.service import service_loop
from rhapsody.backends.work import task_exception
from rhapsody.testing.owners import FakeEngine, Reports
from rhapsody.testing.samples import describe
from tests.support.probe import Flag, Held, ProbeBackend, done_at_once

PATIENCE = 20


def task(uid: str = "task.000001", **fields: Any) -> dict[str, Any]:
    return describe(uid, "function", function=len, **fields)


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[FakeEngine]:
    engine = FakeEngine(tmp_path, "engine.1")
    yield engine
    engine.close()


@pytest.fixture
def other(tmp_path: Path) -> Iterator[FakeEngine]:
    engine = FakeEngine(tmp_path, "engine.2")
    yield engine
    engine.close()


class TestAttachment:
    async def test_a_second_owner_is_refused_while_the_first_is_open(
        self, engine: FakeEngine, other: FakeEngine
    ) -> None:
        backend = NoopExecutionBackend()
        engine.attach(backend)
        with pytest.raises(BackendInUseError, match=r"'noop'.*FakeEngine engine\.1") as caught:
            other.attach(backend)
        assert caught.value.backend_name == "noop"

    async def test_a_refused_owner_leaves_everything_as_it_was(
        self, engine: FakeEngine, other: FakeEngine
    ) -> None:
        backend = NoopExecutionBackend()
        engine.attach(backend)
        before = backend._work_dir, list(backend.attached_to), backend._callback_func
        with pytest.raises(BackendInUseError):
            other.attach(backend)
        assert (backend._work_dir, backend.attached_to, backend._callback_func) == before
        (report,) = await engine.run(backend, task())
        assert report.state == "DONE"

    async def test_the_same_owner_may_register_again(self, engine: FakeEngine) -> None:
        backend = NoopExecutionBackend()
        engine.attach(backend)
        engine.attach(backend)
        (report,) = await engine.run(backend, task())
        assert report.state == "DONE"

    @pytest.mark.parametrize("skip_execution_backend", [False, True])
    async def test_another_engine_may_attach_after_shutdown(
        self, skip_execution_backend: bool, engine: FakeEngine, other: FakeEngine
    ) -> None:
        backend = ProbeBackend()
        engine.attach(backend)
        if skip_execution_backend:
            engine.close()
        else:
            await engine.shutdown(backend)
        other.attach(backend)
        (report,) = await other.run(backend, task())
        assert report.state == "DONE"
        await backend.shutdown()

    async def test_an_owner_that_says_it_is_closed_makes_room(self, other: FakeEngine) -> None:
        class Owner:
            closed = False

            def on_state(self, task: Any, state: str) -> None: ...

        backend, owner = NoopExecutionBackend(), Owner()
        backend.register_callback(owner.on_state)
        with pytest.raises(BackendInUseError):
            other.attach(backend)
        owner.closed = True
        other.attach(backend)

    async def test_a_released_owner_makes_room(self, engine: FakeEngine, other: FakeEngine) -> None:
        backend = NoopExecutionBackend()
        engine.attach(backend)
        backend.release(other)  # not its to release
        with pytest.raises(BackendInUseError):
            other.attach(backend)
        backend.release(engine)
        other.attach(backend)

    async def test_a_forgotten_owner_is_not_kept_alive_and_makes_room(
        self, tmp_path: Path, other: FakeEngine
    ) -> None:
        backend = NoopExecutionBackend()
        engine = FakeEngine(tmp_path)
        engine.attach(backend)
        gone = weakref.ref(engine)
        del engine
        gc.collect()
        assert gone() is None
        other.attach(backend)

    def test_an_owner_whose_loop_is_closed_makes_room(self, tmp_path: Path) -> None:
        backend = NoopExecutionBackend()

        async def attach() -> FakeEngine:
            engine = FakeEngine(tmp_path)
            engine.attach(backend)
            return engine

        first = asyncio.run(attach())
        second = asyncio.run(attach())
        assert backend._callback_func == second.task_callbacks != first.task_callbacks

    async def test_a_later_owner_cancels_what_an_earlier_one_left_and_reports_nothing(
        self, engine: FakeEngine, other: FakeEngine
    ) -> None:
        held = Held()
        backend = ProbeBackend(held)
        engine.attach(backend)
        await backend.submit_tasks([task()])
        await held.inside.wait()
        engine.close()
        other.attach(backend)
        await held.cleaned_up.wait()
        await other.shutdown(backend)
        assert engine.reports.log == other.reports.log == []

    async def test_what_was_left_before_it_began_is_let_go_as_well(
        self, engine: FakeEngine, other: FakeEngine
    ) -> None:
        class Described(dict[str, Any]):
            """A dict that takes weak references."""

        backend = await ProbeBackend()
        engine.attach(backend)
        left = Described(task())
        kept = weakref.ref(left)
        await backend.submit_tasks([left])
        engine.close()
        other.attach(backend)
        del left
        await backend.submit_tasks([task()])
        await other.reports.end("task.000001")
        gc.collect()
        assert kept() is None
        await backend.shutdown()

    async def test_a_plain_callback_takes_over_the_tasks_of_the_one_before(self) -> None:
        held, first, second = Held(), Reports(), Reports()
        backend = ProbeBackend(held)
        backend.register_callback(first.callback)
        await backend.submit_tasks([task()])
        await held.inside.wait()
        backend.register_callback(second.callback)
        await backend.shutdown()
        assert first.log == []
        assert [report.state for report in second.log] == ["CANCELED"]

    async def test_the_callback_can_be_set_as_an_attribute(self) -> None:
        backend, reports = NoopExecutionBackend(), Reports()
        backend._callback_func = None
        backend._callback_func = reports.callback
        await backend.submit_tasks([task()])
        assert (await reports.end("task.000001")).state == "DONE"

    async def test_a_task_keeps_the_directory_of_its_own_owner(
        self, engine: FakeEngine, other: FakeEngine
    ) -> None:
        directories = []

        async def execute(work: Work) -> dict[str, Any]:
            directories.append(work.work_dir)
            return await done_at_once(work)

        backend = ProbeBackend(execute)
        for owner in (engine, other):
            owner.attach(backend)
            await owner.run(backend, task())
            await owner.shutdown(backend)
        assert [Path(directory).name for directory in directories] == ["engine.1", "engine.2"]

    async def test_one_that_attaches_during_a_shutdown_is_open_after_it(
        self, engine: FakeEngine, other: FakeEngine, tmp_path: Path
    ) -> None:
        stopping, stop = Flag(), Flag()

        async def slowly() -> None:
            stopping.set()
            await stop.wait()

        backend = await ProbeBackend(stop=slowly)
        engine.attach(backend)
        shutdown = asyncio.ensure_future(engine.shutdown(backend))
        await stopping.wait()
        other.attach(backend)
        stop.set()
        await shutdown
        with pytest.raises(BackendInUseError):
            FakeEngine(tmp_path, "engine.3").attach(backend)


class TestDelivery:
    async def test_many_results_wake_the_owner_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        backend, reports = await ProbeBackend(), Reports()
        backend.register_callback(reports.callback)
        loop = asyncio.get_running_loop()
        call_soon_threadsafe = loop.call_soon_threadsafe
        wakes = []

        def count(callback: Any, *args: Any, **kwargs: Any) -> asyncio.Handle:
            wakes.append(callback)
            return call_soon_threadsafe(callback, *args, **kwargs)

        monkeypatch.setattr(loop, "call_soon_threadsafe", count)
        tasks = [task(f"task.{n}") for n in range(300)]
        await backend.submit_tasks(tasks)
        # The loop stands still until the service loop has ended them all.
        service_loop().run_blocking(asyncio.sleep(0))
        while backend._works:
            service_loop().run_blocking(asyncio.sleep(0))
        for one in tasks:
            await reports.end(one["uid"])
        assert len(wakes) == 1
        await backend.shutdown()

    async def test_the_loop_gets_its_turn_between_many_results(self) -> None:
        backend = NoopExecutionBackend()
        seen, at_turn = [], []
        backend.register_callback(lambda task, state: seen.append(task["uid"]))
        await backend.submit_tasks([task(f"task.{n}") for n in range(2 * DELIVERIES_PER_PASS)])
        while len(seen) < 2 * DELIVERIES_PER_PASS:
            await asyncio.sleep(0)
            at_turn.append(len(seen))
        assert DELIVERIES_PER_PASS in at_turn

    async def test_calls_come_in_order_with_the_states(self) -> None:
        seen: list[Any] = []

        async def execute(work: Work) -> dict[str, Any]:
            self_running(work)
            for piece in "ab":
                work.attachment.call(partial(seen.append, piece))
            return await done_at_once(work)

        backend = ProbeBackend(execute)
        self_running = backend.running
        ended = asyncio.Event()

        def report(task: Any, state: str) -> None:
            seen.append(state)
            if state == "DONE":
                ended.set()

        backend.register_callback(report)
        await backend.submit_tasks([task()])
        await asyncio.wait_for(ended.wait(), PATIENCE)
        assert seen == ["RUNNING", "a", "b", "DONE"]
        await backend.shutdown()

    async def test_a_result_from_any_thread_comes_on_the_owners(self, engine: FakeEngine) -> None:
        async def execute(work: Work) -> dict[str, Any]:
            reporter = threading.Thread(
                target=backend.finish, args=(work, "DONE", {"return_value": 1})
            )
            reporter.start()
            return await done_at_once(work)

        backend = ProbeBackend(execute)
        engine.attach(backend)
        (report,) = await engine.run(backend, task())
        assert report.thread == threading.get_ident()
        await engine.shutdown(backend)
        assert len(engine.reports.terminal("task.000001")) == 1

    async def test_running_is_reported_once_and_never_after_the_end(
        self, engine: FakeEngine
    ) -> None:
        works = []

        async def execute(work: Work) -> dict[str, Any]:
            works.append(work)
            backend.running(work)
            backend.running(work)
            return await done_at_once(work)

        backend = ProbeBackend(execute)
        engine.attach(backend)
        await engine.run(backend, task())
        backend.running(works[0])
        await engine.shutdown(backend)
        assert engine.reports.states("task.000001") == ["RUNNING", "DONE"]

    async def test_a_callback_that_raises_stops_no_other_report(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        reports = Reports()

        def callback(task: Any, state: str) -> None:
            reports.callback(task, state)
            raise RuntimeError("the owner has a bug")

        backend = NoopExecutionBackend()
        backend.register_callback(callback)
        await backend.submit_tasks([task("task.1"), task("task.2")])
        await reports.end("task.1")
        await reports.end("task.2")
        assert "the owner has a bug" in caplog.text

    def test_an_owner_without_a_loop_is_told_on_the_one_that_submits(self) -> None:
        backend, reports = ProbeBackend(), Reports()
        backend.register_callback(reports.callback)

        async def submit() -> None:
            await backend.submit_tasks([task()])
            await reports.end("task.000001")
            await backend.shutdown()

        asyncio.run(submit())
        assert reports.states("task.000001") == ["DONE"]

    def test_what_waited_for_a_closed_loop_comes_on_the_next(self) -> None:
        held, reports = Held(), Reports()
        backend = ProbeBackend(held)
        backend.register_callback(reports.callback)

        async def submit_only() -> None:
            await backend.submit_tasks([task("task.1"), task("task.2")])
            await held.inside.wait()

        async def submit_and_wait() -> None:
            await backend.submit_tasks([task("task.3")])
            for uid in ("task.1", "task.2", "task.3"):
                await reports.end(uid)
            await backend.shutdown()

        asyncio.run(submit_only())
        held.go.set()
        while backend._works:
            service_loop().run_blocking(asyncio.sleep(0))
        asyncio.run(submit_and_wait())
        assert {report.state for report in reports.log} == {"DONE"}


class TestTasks:
    @pytest.mark.parametrize(
        ("changes", "reason"),
        [
            ({"uid": ""}, "'uid' must be a non-empty string"),
            ({"uid": 7}, "'uid' must be a non-empty string"),
            ({"uid": ["task"]}, "'uid' must be a non-empty string"),
            ({"function": None}, "none of 'function', 'executable' and 'prompt'"),
            ({"task_backend_specific_kwargs": [1]}, "must be a dict, not [1]"),
            ({"timeout": -1}, "'timeout' must be a positive number of seconds, not -1"),
            ({"timeout": True}, "'timeout' must be a positive number of seconds, not True"),
            ({"timeout": float("nan")}, "'timeout' must be a positive number"),
        ],
    )
    async def test_what_cannot_be_run_fails_with_the_reason(
        self, changes: dict[str, Any], reason: str
    ) -> None:
        backend = ProbeBackend()
        failed: asyncio.Queue[str] = asyncio.Queue()
        backend.register_callback(lambda task, state: failed.put_nowait(state))
        bad = {**task(), **changes}
        await backend.submit_tasks([bad])
        assert await asyncio.wait_for(failed.get(), PATIENCE) == "FAILED"
        assert isinstance(bad["exception"], UnsupportedTaskError)
        assert reason in str(bad["exception"])
        assert backend.starts == 0

    async def test_a_kind_that_is_not_taken_is_named_with_those_that_are(
        self, engine: FakeEngine
    ) -> None:
        class PromptsOnly(BaseBackend):
            task_kinds = frozenset({"prompt"})

        backend = PromptsOnly()
        engine.attach(backend)
        refused = task()
        await engine.run(backend, refused)
        assert "'PromptsOnly' cannot run a function task; it takes prompt tasks" in str(
            refused["exception"]
        )

    async def test_a_uid_in_use_fails_and_the_task_that_has_it_goes_on(self) -> None:
        held = Held()
        backend = ProbeBackend(held)
        reported: asyncio.Queue[tuple[Any, str]] = asyncio.Queue()
        backend.register_callback(lambda task, state: reported.put_nowait((task, state)))
        first, second = task(), task()
        await backend.submit_tasks([first, second])
        reports = [await asyncio.wait_for(reported.get(), PATIENCE)]
        held.go.set()
        reports.append(await asyncio.wait_for(reported.get(), PATIENCE))
        assert [(one is first, state) for one, state in reports] == [
            (False, "FAILED"),
            (True, "DONE"),
        ]
        assert "active already" in str(second["exception"])
        await backend.shutdown()

    async def test_an_execute_that_returns_no_fields_fails_its_task(
        self, engine: FakeEngine
    ) -> None:
        async def execute(work: Work) -> Any:
            return None

        backend = ProbeBackend(execute)
        engine.attach(backend)
        failing = task()
        (report,) = await engine.run(backend, failing)
        assert report.state == "FAILED"
        assert "ProbeBackend.execute returned None" in str(failing["exception"])
        await engine.shutdown(backend)

    async def test_fields_with_an_exception_fail_the_task_and_stay(
        self, engine: FakeEngine
    ) -> None:
        async def execute(work: Work) -> dict[str, Any]:
            return {"stdout": "half", "exception": ValueError("no")}

        backend = ProbeBackend(execute)
        engine.attach(backend)
        failed = task()
        (report,) = await engine.run(backend, failed)
        assert (report.state, failed["stdout"]) == ("FAILED", "half")
        await engine.shutdown(backend)

    @pytest.mark.parametrize("where", ["task", "options"])
    async def test_a_task_that_takes_too_long_fails(self, where: str, engine: FakeEngine) -> None:
        held = Held()
        backend = ProbeBackend(held)
        engine.attach(backend)
        limit: dict[str, Any] = {"timeout": 0.01}
        late = task(**limit) if where == "task" else task(task_backend_specific_kwargs=limit)
        (report,) = await engine.run(backend, late)
        assert report.state == "FAILED"
        assert isinstance(late["exception"], TaskTimeoutError)
        assert isinstance(late["exception"], TimeoutError)
        assert held.cleaned_up.is_set
        await engine.shutdown(backend)

    async def test_a_second_cancel_does_not_break_into_the_clean_up(
        self, engine: FakeEngine
    ) -> None:
        cleaning, finish = Flag(), Flag()

        async def clean_up() -> None:
            cleaning.set()
            await finish.wait()

        held = Held(clean_up)
        backend = ProbeBackend(held)
        engine.attach(backend)
        await backend.submit_tasks([task()])
        await held.inside.wait()
        first = asyncio.ensure_future(backend.cancel_task("task.000001"))
        await cleaning.wait()
        second = asyncio.ensure_future(backend.cancel_task("task.000001"))
        shutdown = asyncio.ensure_future(engine.shutdown(backend))
        await asyncio.sleep(0)  # both have asked the service loop
        service_loop().run_blocking(asyncio.sleep(0))  # and it has heard them
        finish.set()
        assert await first is True
        assert await second is True
        assert held.cleaned_up.is_set
        await shutdown
        assert engine.reports.states("task.000001") == ["CANCELED"]

    async def test_cancelling_what_ends_all_the_same_says_false(self, engine: FakeEngine) -> None:
        inside = Flag()

        async def execute(work: Work) -> dict[str, Any]:
            inside.set()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.Event().wait()
            return await done_at_once(work)

        backend = ProbeBackend(execute)
        engine.attach(backend)
        await backend.submit_tasks([task()])
        await inside.wait()
        assert await backend.cancel_task("task.000001") is False
        assert (await engine.reports.end("task.000001")).state == "DONE"
        await engine.shutdown(backend)

    @pytest.mark.parametrize("error", [StopIteration(3), SystemExit("bye"), KeyboardInterrupt()])
    async def test_an_exception_that_no_future_holds_is_wrapped(self, error: BaseException) -> None:
        wrapped = task_exception("task.1", error)
        future = asyncio.get_running_loop().create_future()
        future.set_exception(wrapped)
        assert future.exception() is wrapped
        assert type(error).__name__ in str(wrapped)
        assert wrapped.__cause__ is error


class TestLife:
    async def test_it_starts_by_itself_at_the_first_task(self, engine: FakeEngine) -> None:
        backend = ProbeBackend()
        engine.attach(backend)
        assert backend.state() == "IDLE"
        await engine.run(backend, task())
        assert backend.state() == "RUNNING"
        await engine.shutdown(backend)
        assert backend.state() == "STOPPED"

    async def test_awaiting_initialising_and_entering_start_it_once(self) -> None:
        backend = ProbeBackend()
        await asyncio.gather(backend.initialize(), backend.initialize())
        assert await backend is backend
        async with backend as entered:
            assert entered is backend
        assert (backend.starts, backend.stops) == (1, 1)

    async def test_a_failed_start_fails_its_tasks_and_a_later_one_works(
        self, engine: FakeEngine
    ) -> None:
        async def fail_once() -> None:
            if backend.starts == 1:
                raise BackendError("probe", "no licence")

        backend = ProbeBackend(start=fail_once)
        engine.attach(backend)
        first = task("task.1")
        (report,) = await engine.run(backend, first)
        assert (report.state, str(first["exception"])) == ("FAILED", "Backend 'probe': no licence")
        assert backend.state() == "FAILED"
        (report,) = await engine.run(backend, task("task.2"))
        assert report.state == "DONE"
        await engine.shutdown(backend)

    async def test_a_start_that_exits_ends_nothing_else(self) -> None:
        async def leave() -> None:
            raise SystemExit(2)

        with pytest.raises(BackendError, match="SystemExit"):
            await ProbeBackend(start=leave)
        await asyncio.wait_for(service_loop().run(asyncio.sleep(0)), PATIENCE)

    async def test_a_caller_that_gives_up_does_not_end_the_start_for_others(self) -> None:
        starting, go = Flag(), Flag()

        async def slowly() -> None:
            starting.set()
            await go.wait()

        backend = ProbeBackend(start=slowly)
        first = asyncio.ensure_future(backend.initialize())
        await starting.wait()
        second = asyncio.ensure_future(backend.initialize())
        first.cancel()
        go.set()
        await second
        assert (backend.starts, backend.state()) == (1, "RUNNING")
        await backend.shutdown()

    async def test_a_shutdown_ends_the_start_and_cancels_its_tasks(
        self, engine: FakeEngine
    ) -> None:
        starting, cleaned_up = Flag(), Flag()

        async def for_ever() -> None:
            starting.set()
            try:
                await asyncio.Event().wait()
            finally:
                await asyncio.sleep(0)
                cleaned_up.set()

        backend = ProbeBackend(start=for_ever)
        engine.attach(backend)
        await backend.submit_tasks([task()])
        waiting = asyncio.ensure_future(backend.initialize())
        await starting.wait()
        await engine.shutdown(backend)
        assert cleaned_up.is_set
        assert engine.reports.states("task.000001") == ["CANCELED"]
        with pytest.raises(BackendError, match="shut down while it was starting"):
            await waiting
        assert backend.state() == "STOPPED"

    async def test_giving_up_on_a_start_and_shutting_down_cleans_up_in_full(self) -> None:
        starting, cleaned_up = Flag(), Flag()

        async def for_ever() -> None:
            starting.set()
            try:
                await asyncio.Event().wait()
            finally:
                await asyncio.sleep(0.01)  # a second cancellation would strike here
                cleaned_up.set()

        backend = ProbeBackend(start=for_ever)
        waiting = asyncio.ensure_future(backend.initialize())
        await starting.wait()
        waiting.cancel()
        await asyncio.gather(backend.shutdown(), backend.shutdown())
        assert cleaned_up.is_set

    async def test_two_shutdowns_at_once_are_one(self) -> None:
        backend = await ProbeBackend()
        await asyncio.gather(backend.shutdown(), backend.shutdown())
        await backend.shutdown()
        assert backend.stops == 1

    async def test_a_caller_that_gives_up_does_not_end_the_shutdown(self) -> None:
        stopping, stop, stopped = Flag(), Flag(), Flag()

        async def slowly() -> None:
            stopping.set()
            await stop.wait()
            stopped.set()

        backend = await ProbeBackend(stop=slowly)
        shutdown = asyncio.ensure_future(backend.shutdown())
        await stopping.wait()
        shutdown.cancel()
        stop.set()
        await stopped.wait()
        await backend.shutdown()
        assert (backend.stops, backend.state()) == (1, "STOPPED")

    async def test_it_starts_again_after_a_shutdown(self, engine: FakeEngine) -> None:
        backend = ProbeBackend()
        engine.attach(backend)
        for uid in ("task.1", "task.2"):
            (report,) = await engine.run(backend, task(uid))
            assert report.state == "DONE"
            await backend.shutdown()
        assert (backend.starts, backend.stops) == (2, 2)

    async def test_a_task_that_comes_during_a_shutdown_waits_for_the_next_start(
        self, engine: FakeEngine
    ) -> None:
        stopping, stop = Flag(), Flag()

        async def slowly() -> None:
            stopping.set()
            await stop.wait()

        backend = await ProbeBackend(stop=slowly)
        engine.attach(backend)
        shutdown = asyncio.ensure_future(backend.shutdown())
        await stopping.wait()
        await backend.submit_tasks([task()])
        stop.set()
        await shutdown
        assert (await engine.reports.end("task.000001")).state == "DONE"
        await engine.shutdown(backend)

    async def test_a_stop_that_raises_is_logged(self, caplog: pytest.LogCaptureFixture) -> None:
        async def fail() -> None:
            raise OSError("the runtime has gone")

        backend = await ProbeBackend(stop=fail)
        await backend.shutdown()
        assert "the runtime has gone" in caplog.text
        assert backend.state() == "FAILED"

    async def test_when_shutdown_returns_every_owner_has_been_told_everything(
        self, engine: FakeEngine
    ) -> None:
        held = Held()
        backend = ProbeBackend(held)
        engine.attach(backend)
        uids = [f"task.{n}" for n in range(3 * DELIVERIES_PER_PASS)]
        await backend.submit_tasks([task(uid) for uid in uids])
        await held.inside.wait()
        await engine.shutdown(backend)
        assert len(engine.reports.log) == len(uids)
        assert {report.state for report in engine.reports.log} == {"CANCELED"}

    async def test_a_blocked_caller_does_not_hold_up_the_backend(self, engine: FakeEngine) -> None:
        ended = threading.Event()

        async def execute(work: Work) -> dict[str, Any]:
            ended.set()
            return await done_at_once(work)

        backend = await ProbeBackend(execute)
        engine.attach(backend)
        await backend.submit_tasks([task()])
        assert ended.wait(PATIENCE)  # blocks this thread, and its loop
        await engine.reports.end("task.000001")
        await engine.shutdown(backend)

    @pytest.mark.parametrize("name", ["", 7])
    def test_a_name_is_a_non_empty_string(self, name: Any) -> None:
        with pytest.raises(ValueError, match="non-empty string"):
            BaseBackend(name)

    def test_the_default_name_is_the_class(self) -> None:
        assert BaseBackend().name == "BaseBackend"

    async def test_state_changes_are_logged(self, caplog: pytest.LogCaptureFixture) -> None:
        with caplog.at_level(logging.INFO, "rhapsody.backends.base"):
            backend = await ProbeBackend()
        assert "backend 'probe' is running" in caplog.text
        await backend.shutdown()


class TestAnswer:
    """`answer`: one task, for whoever awaits it."""

    async def test_it_returns_the_result_fields(self) -> None:
        assert await NoopExecutionBackend().answer({"prompt": ["a", "b"]}) == {
            "response": ["", ""],
            "stdout": ["", ""],
            "return_value": ["", ""],
        }

    async def test_it_raises_what_the_task_failed_with(self) -> None:
        class Failing(BaseBackend):
            async def execute(self, work: Any) -> dict[str, Any]:
                raise OSError("no disk")

        with pytest.raises(OSError, match="no disk"):
            await Failing().answer({"function": print})

    async def test_it_refuses_what_the_backend_cannot_run(self) -> None:
        with pytest.raises(UnsupportedTaskError, match="cannot run a prompt task"):
            await BaseBackend().answer({"prompt": "hello"})

    async def test_the_owner_hears_nothing_of_it(self, engine: FakeEngine) -> None:
        backend = NoopExecutionBackend()
        engine.attach(backend)
        await backend.answer({"prompt": "hello"})
        assert engine.reports.log == []

    async def test_cancelling_it_stops_the_work(self) -> None:
        held = Held()
        backend = ProbeBackend(held)
        answering = asyncio.ensure_future(backend.answer(task()))
        await held.inside.wait()
        answering.cancel()
        with pytest.raises(asyncio.CancelledError):
            await answering
        await held.cleaned_up.wait()
        await backend.shutdown()

    async def test_a_shutdown_ends_it(self) -> None:
        held = Held()
        backend = ProbeBackend(held)
        answering = asyncio.ensure_future(backend.answer(task()))
        await held.inside.wait()
        await backend.shutdown()
        with pytest.raises(TaskCancelledError):
            await answering
