"""Session: runs independent tasks on any number of backends, without a workflow engine."""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import uuid
import weakref
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    Callable,
    Collection,
    Iterable,
    MutableMapping,
    Sequence,
)
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, aclosing, nullcontext
from contextvars import copy_context
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rhapsody.api.calls import Calls, Results
from rhapsody.api.completion import AsCompleted
from rhapsody.api.executor import SessionExecutor
from rhapsody.api.journaling import SessionJournal
from rhapsody.api.observation import Observation
from rhapsody.api.routing import Router
from rhapsody.api.session_loop import SessionLoop, wait_on_any_loop
from rhapsody.api.submissions.checks import refuse_tasks_as_arguments
from rhapsody.api.submissions.parts import after_part, in_parts
from rhapsody.api.submissions.submission import AnyTask
from rhapsody.api.submissions.submissions import Submissions
from rhapsody.api.tasks import ComputeTask
from rhapsody.api.tasks.base import runs_a_loop
from rhapsody.api.tasks.fields import check_folder_uid
from rhapsody.api.walltime import SessionWalltime
from rhapsody.backends.core.html import as_html
from rhapsody.backends.core.nested_runs import (
    REPORT_SECONDS,
    WaitQueue,
    is_in_task,
    run_calls_here,
)
from rhapsody.backends.protocol import TaskStates
from rhapsody.errors import SessionError, TaskValidationError
from rhapsody.journal import Journal
from rhapsody.streaming import OnText, queued_callbacks, stream_pieces
from rhapsody.suggest import suggest_parameters
from rhapsody.validation import checked_path
from rhapsody.walltime import check_walltime

if TYPE_CHECKING:
    from rhapsody.api.bulk.generation import PromptOf, RowCounts
    from rhapsody.report.live_page import LivePage
    from rhapsody.telemetry.manager import TelemetryManager

__all__ = ["Session"]

logger = logging.getLogger(__name__)


class Session:
    """Submits tasks to backends and waits for them.

    In asyncio code use `async with Session(...) as session`, `await session.submit_tasks(tasks)`
    and `await task`. In a script or a notebook use `with Session(...) as session` and
    `session.run(tasks)`, which block. A session belongs to one event loop, that of its first use.

    Args:
        backends: One backend or several, with different names. Closing the session shuts them
            down.
        uid: Name of the session. None: a random name.
        work_dir: Captured output goes to `<work_dir>/<uid>/`. None: the current directory.
        journal: File of the journal, which is created if it does not exist. The results of
            finished tasks are kept there, and a later run of the program does not repeat them.
            None: no journal.
        walltime: Seconds after which the batch job of the program ends, if the batch system does
            not say. The walltime is observed if this or `journal` is given.
        walltime_margin: Seconds before the end of the walltime, or after SIGTERM or SIGUSR1, in
            which running tasks may finish and no new ones are started. What is left then fails
            with `WalltimeReached`, which `wait_tasks` and `run` raise.

    Raises:
        ConfigurationError: The uid is not the name of a directory, or a path is none.
        SessionError: Two backends have the same name.
        BackendInUseError: A backend belongs to another session or engine that is still open.
        JournalError: The journal cannot be used, for example because another program uses it.
    """

    @suggest_parameters
    def __init__(
        self,
        backends: Any | Iterable[Any] | None = None,
        uid: str | None = None,
        work_dir: str | os.PathLike[str] | None = None,
        journal: str | os.PathLike[str] | None = None,
        walltime: float | None = None,
        walltime_margin: float = 60.0,
    ) -> None:
        self.uid = uid or f"rhapsody.session.{uuid.uuid4().hex[:8]}"
        check_folder_uid(self.uid)
        check_walltime(walltime, walltime_margin)
        self.work_dir = os.path.abspath(checked_path("work_dir", work_dir or ""))
        self.backends: dict[str, Any] = {}
        self.closed = False
        self._close_task: asyncio.Task[None] | None = None
        self._submissions = Submissions(self._reattach, self.submit_tasks)
        self._loop = SessionLoop(self.uid, self._submissions)
        self._executors: weakref.WeakSet[SessionExecutor] = weakref.WeakSet()
        self._observation = Observation(self.uid, self._submissions)
        self.journal: Journal | None = None
        if backends is None:
            backends = []
        elif hasattr(backends, "submit_tasks") or isinstance(backends, str):
            backends = [backends]
        elif not isinstance(backends, Iterable):
            raise SessionError(f"a session needs backends, got {backends!r}")
        try:
            for backend in backends:
                self.add_backend(backend)
            if journal is not None:
                self._open_journal(journal)
            if journal is not None or walltime is not None:
                self._observe_walltime(walltime, walltime_margin)
        except BaseException:
            for backend in self.backends.values():
                _detach(backend, self)
            raise
        self._observation.serve_if_wanted(self)

    def _open_journal(self, path: str | os.PathLike[str]) -> None:
        self.journal = Journal(path)
        recording = SessionJournal(self.journal, self._submissions.on_recalled)
        self._submissions.journal = recording
        self._observation.add_recalled(recording.recalled)

    def _observe_walltime(self, walltime: float | None, margin: float) -> None:
        submissions = self._submissions
        submissions.walltime = SessionWalltime(
            walltime,
            margin,
            submissions.active,
            submissions.agents.waits,
            lambda task: submissions.cancel_soon([task]),
            submissions.end_run,
            self.journal,
        )

    def add_backend(self, backend: Any) -> None:
        """Add a backend.

        Raises:
            SessionError: The session is closed, or already has a backend of this name.
            BackendInUseError: The backend belongs to another owner that is still open.
        """
        self._check_open()
        if isinstance(backend, type) or not hasattr(backend, "submit_tasks"):
            made = f"{backend.__name__}()" if isinstance(backend, type) else "get_backend(name)"
            raise SessionError(f"a session needs backends, got {backend!r}; make one: {made}")
        if backend.name in self.backends:
            raise SessionError(
                f"the session already has a backend named '{backend.name}'; "
                "make this one with another name=..."
            )
        backend._work_dir = os.path.join(self.work_dir, self.uid)
        backend.is_attached = True
        backend.attached_to.append(self.uid)
        backend.register_callback(self._on_state)
        self.backends[backend.name] = backend
        self._observation.add_backend(backend)

    async def submit_tasks(
        self, tasks: Sequence[AnyTask] | AnyTask
    ) -> list[asyncio.Future[AnyTask]]:
        """Submit tasks, and return as soon as their backends have them.

        Args:
            tasks: ComputeTasks, AITasks, or dicts with the same fields; or a single one.
                Backends write the results into these objects.

        Returns:
            One future per task, in order. Its result is the task, as if the task were awaited.

        Raises:
            TaskValidationError: A task is invalid, was submitted before, has a uid that is taken,
                or names a backend that does not exist or cannot run it. No task was submitted.
            SessionError: The session is closed, has no backends, or belongs to another loop.
            BackendInUseError: A backend was shut down, and another open owner uses it now.
            WalltimeReached: The run ends, because its batch job ends.
        """
        self._check_ready()
        tasks = _as_list(tasks)
        loop = self._loop.bind(asyncio.get_running_loop())
        with self._submissions.checks.reserve(len(tasks)) as uids:
            batches = await self._submissions.checks.group(tasks, Router(self.backends), uids)
            for backend, _ in batches:
                self._reattach(backend)
            futures = await self._submissions.submit(batches, loop)
        found: list[asyncio.Future[AnyTask]] = []
        for part in in_parts(tasks):
            found += [futures[task["uid"]] for task in part]
            await after_part(tasks)
        return found

    def _reattach(self, backend: Any) -> None:
        reattach = getattr(backend, "reattach", None)
        if reattach is not None:
            work_dir = os.path.join(self.work_dir, self.uid)
            reattach(self._on_state, work_dir, self._observation.runs[backend.name].history)

    def _on_state(self, task: AnyTask, state: str) -> None:
        # A bound method: a backend regards the object of the method as its owner.
        self._submissions.on_state(task, state)

    def options(self, **options: Any) -> Calls:
        """Return `submit`, `map` and `executor` for calls with options.

        `session.options(timeout=10).submit(fn, 1, timeout=2)` limits the task to 10 seconds and
        calls `fn(1, timeout=2)`.

        Args:
            **options: Fields of `ComputeTask`, such as `backend`, `timeout`, `retries`, `resources`
                and `priority`.

        Raises:
            TaskValidationError: There is no such option, or its value is invalid.
        """
        return Calls(self, options)

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> ComputeTask:
        """Submit the call of a function as a task, and return the task at once.

        `await` the task, or call its `result()` in a thread without an event loop. There `submit`
        works from any thread.

        Args:
            fn: The function, sync or async.
            *args: Its positional arguments.
            **kwargs: Its keyword arguments. Options of the task are set by `options`.

        Raises:
            TaskValidationError: The call is invalid, or no backend can run it.
            SessionError: The session is closed, has no backends, or belongs to another loop.
        """
        return Calls(self, {}).submit(fn, *args, **kwargs)

    def map(
        self, fn: Callable[..., Any], /, *iterables: Iterable[Any], chunksize: int = 1
    ) -> Results:
        """Call a function with each item of iterables, each call as a task of its own.

        All calls are submitted at once. The results are in the order of the calls, whichever ends
        first. A failed call raises its exception at its place in this order, and the calls after it
        are cancelled.

        Args:
            fn: The function, sync or async.
            *iterables: One for each positional argument of the function, as for `map`.
            chunksize: The number of calls in one task. More than 1 is faster for short calls.

        Returns:
            The results: iterate by `for` in a thread without an event loop, otherwise by
            `async for`, or `await` the list.

        Raises:
            TaskValidationError: As for `submit`.
            SessionError: As for `submit`.
            ValueError: `chunksize` is not a whole number of at least 1.
        """
        return Calls(self, {}).map(fn, *iterables, chunksize=chunksize)

    def executor(self) -> SessionExecutor:
        """Return a `concurrent.futures.Executor` that runs functions on the session's backends.

        It can be used from any thread, also while the session's loop is blocked. Its calls are not
        tasks of the session: a journal, telemetry and `cancel_all` leave them out.
        """
        return Calls(self, {}).executor()

    def as_completed(self, tasks: Iterable[AnyTask] | AnyTask = ()) -> AsCompleted:
        """Return an iterator over tasks in the order in which they end.

        Iterate by `for` in a thread without an event loop, otherwise by `async for`. It yields the
        tasks themselves, failed ones too. `add` adds tasks meanwhile.

        Args:
            tasks: Submitted tasks, or a single one.

        Raises:
            SessionError: A task was not submitted to this session, or on another event loop.
        """
        given = [tasks] if isinstance(tasks, MutableMapping) else tasks
        # The iterator keeps the session, whose tasks it waits for.
        return AsCompleted(lambda task: self._submissions.find(task), self._loop.call, given)

    def cancel_all(self) -> list[Any]:
        """Ask the backends to cancel all tasks that have not ended, and return these tasks.

        Returns at once: wait for the ends by `wait_tasks` or `as_completed`.
        """
        return self._loop.cancel_all()

    def submit_soon(self, task: ComputeTask) -> None:
        """Submit a new task without waiting for its backend; `submit` uses it.

        Raises:
            TaskValidationError: As for `submit`.
            SessionError: As for `submit`.
        """
        backend = self.backend_for(task)
        refuse_tasks_as_arguments(task)
        self._loop.submit_soon(task, backend)

    def cancel_soon(self, tasks: Iterable[AnyTask]) -> None:
        """Ask the backends to cancel tasks, and return at once; thread-safe."""
        given = list(tasks)
        self._loop.call(lambda: self._submissions.cancel_soon(given))

    def backend_for(self, task: AnyTask) -> Any:
        """Return the backend that gets a task.

        Raises:
            TaskValidationError: No backend can run it.
            SessionError: The session is closed, or has no backends.
        """
        self._check_ready()
        [(backend, _)] = Router(self.backends).group([task])
        return backend

    def add_executor(self, executor: SessionExecutor) -> None:
        """Shut an executor down when the session closes; `executor` uses it."""
        self._executors.add(executor)

    async def stream(self, task: AnyTask) -> AsyncGenerator[str, None]:
        """Submit an AI task and yield its response piece by piece, while the model writes it.

        At the end the task has its results. Leaving the iteration early cancels the task.

        Args:
            task: A new task with one prompt and without `on_text`.

        Raises:
            TaskValidationError: The task has an `on_text`, or `submit_tasks` refuses it.
            Exception: The task failed.
        """
        if task.get("on_text") is not None:
            raise TaskValidationError(
                task.get("uid"), "it has an 'on_text'; leave that out to stream the task"
            )

        async def run_task(on_text: OnText) -> None:
            task["on_text"] = on_text
            try:
                [future] = await self.submit_tasks(task)
                await asyncio.shield(future)
            except asyncio.CancelledError:
                await self.cancel(task)
                raise
            finally:
                del task["on_text"]

        async with aclosing(stream_pieces(run_task)) as pieces:
            async for piece in pieces:
                yield piece

    async def generate_from(
        self,
        rows: str | os.PathLike[str] | Iterable[Any] | AsyncIterable[Any],
        prompt: PromptOf = None,
        *,
        to: str | os.PathLike[str],
        columns: Collection[str] | None = None,
        at_once: int | None = None,
        in_order: bool = False,
        retry_errors: bool = False,
        **options: Any,
    ) -> RowCounts:
        """Run an AI task for each row of data, and append the results to a file as they come.

        The memory does not depend on the number of rows. Each result has the `index` of its row,
        the row's own columns, the `response`, and the `error` if the row failed; other rows
        continue. After an interrupt or a kill, the same call continues the file: rows that have a
        result are not run again.

        Args:
            rows: A file of rows that ends in `.jsonl`, `.csv` or `.parquet` (needs pyarrow), or an
                iterable or async iterable of mappings and texts. A plain iterator is called on the
                running loop, so it should not block.
            prompt: A template as for `str.format` with columns of the row, such as
                "Summarise: {text}"; or a function of the row that returns a prompt. None: the
                column `prompt`, or the text that a row is.
            to: The file of results, which ends in `.jsonl`, `.csv` or `.parquet`. A Parquet file
                is written after the last row, and until then its results are in a file beside it.
            columns: Columns of the rows that go into the results. None: all.
            at_once: Rows in progress at a time. None: 2048.
            in_order: Whether results are written in the order of the rows. A slow row then holds up
                the writing of those after it.
            retry_errors: Whether rows whose result is an error are run again.
            **options: Fields of each `AITask`, such as `kind`, `max_tokens`, `backend`, `timeout`
                and `priority`, which is -10 by default: interactive work comes first.

        Returns:
            The number of rows that are `done`, `failed`, or had a result `before`.

        Raises:
            ConfigurationError: An argument or the file of results is invalid.
            TaskValidationError: There is no such option, or its value is invalid.
            ReplicaError: No model server is left; the same call continues later.
            OSError: A file cannot be read or written.
        """
        from rhapsody.api.bulk.generation import Generation

        generation = Generation(
            self, prompt, columns=columns, at_once=at_once, in_order=in_order, options=options
        )
        return await generation.run(rows, to, retry_errors)

    async def wait_tasks(
        self,
        tasks: Sequence[AnyTask] | AnyTask,
        timeout: float | None = None,
        progress: bool = False,
    ) -> list[AnyTask]:
        """Wait until tasks have ended. Failures of tasks are not raised.

        Args:
            tasks: Submitted tasks, or a single one.
            timeout: Longest wait in seconds. None: no limit.
            progress: Show a live table, in a notebook below the cell and otherwise on standard
                error, or plain lines if standard error is not a terminal.

        Returns:
            The tasks, in the order given.

        Raises:
            TimeoutError: Some tasks have not ended in time; they continue to run.
                (`asyncio.TimeoutError` on Python 3.10.)
            SessionError: A task was not submitted to this session, or on another event loop.
            WalltimeReached: Some tasks were not run, because the batch job ends.
        """
        tasks = _as_list(tasks)
        view: AbstractContextManager[Any] = nullcontext()
        if progress:
            from rhapsody.report.live import LiveView

            view = LiveView(list(self._observation.runs.values()))
        with view:
            pending = await self._submissions.wait(tasks, timeout)
        if pending:
            ended = len(tasks) - pending
            raise asyncio.TimeoutError(
                f"{ended} of {len(tasks)} tasks ended within {timeout:g} s; the others continue"
            )
        reached = self._submissions.reached
        if reached is not None and any(task.get("exception") is reached for task in tasks):
            raise reached
        return list(tasks)

    async def cancel(self, task: AnyTask | str) -> bool:
        """Cancel one task.

        Args:
            task: The task or its uid.

        Returns:
            True if the task was cancelled, so that awaiting it raises `TaskCancelledError`; False
            if it has ended or is unknown.

        Raises:
            SessionError: The task was submitted on an event loop that is closed.
        """
        return await self._submissions.cancel(task if isinstance(task, str) else task["uid"])

    def get_statistics(self) -> dict[str, Any]:
        """Return counts and latencies of the session's tasks so far.

        Returns:
            `tasks`: number of tasks by state. `backends`: for each backend, by name, its `tasks`
            by state, the `latency_seconds` of its last 20,000 tasks from submission to end
            (`count`, `mean`, `p50`, `p90`, `p99`, `max`), and its own statistics as `backend`.
        """
        return self._observation.statistics()

    def report(self, path: str | os.PathLike[str], title: str | None = None) -> Path:
        """Write a self-contained HTML page about the session's tasks so far.

        The page shows when and where each task ran, tasks per second, batch sizes, latencies, and
        why tasks failed. It draws the last 20,000 tasks of each backend and counts all of them.
        Writing takes about a second for 20,000 tasks, in the calling thread. The method may be
        called at any time, even on a closed session, and from any thread.

        Args:
            path: The file. An existing file is replaced.
            title: Heading of the page. None: the session's uid.

        Returns:
            The file.

        Raises:
            OSError: The file cannot be written.
        """
        return self._observation.write_page(path, title)

    def serve_page(self, port: int = 0, title: str | None = None) -> LivePage:
        """Serve the report as a live page, at an address of this machine with a secret in it.

        Works also while the program is busy. The page costs nothing while nobody looks at it.
        Closing the session shows the last state in open pages, and then stops the server.

        Args:
            port: The port at 127.0.0.1. 0: a free one.
            title: Heading of the page. None: the session's uid.

        Returns:
            The page: print its `url`. `close()` closes it.

        Raises:
            SessionError: The session is closed.
            ResourceError: The port is in use.
        """
        self._check_open()
        return self._observation.serve_page(self, port, title)

    def _repr_html_(self) -> str:
        """Return the session for a notebook: its backends, and their tasks by state."""
        facts = {"uid": self.uid, "state": "closed" if self.closed else "open"}
        return as_html("Session", facts, self._observation.table())

    def _check_open(self) -> None:
        if self.closed or self._close_task is not None:
            raise SessionError(f"session {self.uid} is closed; make a new one")

    def _check_ready(self) -> None:
        self._check_open()
        if not self.backends:
            raise SessionError("the session has no backends; pass some to Session([...])")
        if self._submissions.reached is not None:
            raise self._submissions.reached

    async def close(self) -> None:
        """Cancel tasks that have not ended and shut the session's backends down. Idempotent.

        It must be awaited. In a script without an event loop, use `with Session(...)` instead. In a
        forked child it leaves the session to the parent.
        """
        if self.closed or self._loop.is_of_the_parent:
            return
        if self._close_task is None:
            self._close_task = asyncio.get_running_loop().create_task(self._close())
        if not await wait_on_any_loop(self._close_task):
            raise SessionError(
                f"session {self.uid} was being closed on an event loop that does not run any more"
            )

    async def _close(self) -> None:
        # First, so that no retry and no call starts a backend again after its shutdown.
        self._submissions.closing = True
        for executor in list(self._executors):
            executor.shutdown(wait=False, cancel_futures=True)
        try:
            await self._submissions.stop_agents()
            self._submissions.cancel_waiting()  # a backend that gets them would start again
            shutdowns = [backend.shutdown() for backend in self.backends.values()]
            for error in await asyncio.gather(*shutdowns, return_exceptions=True):
                if isinstance(error, BaseException):
                    logger.error("a backend did not shut down cleanly", exc_info=error)
            self._submissions.cancel_remaining()
            self._submissions.unseen_failures.log()
            if self._submissions.walltime is not None:
                self._submissions.walltime.stop()
            if self.journal is not None:
                await self.journal.close()
            await self._observation.stop()
        finally:
            self.closed = True

    async def __aenter__(self) -> Session:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    def run(
        self,
        tasks: Sequence[AnyTask] | AnyTask,
        timeout: float | None = None,
        progress: bool = False,
        return_exceptions: bool = False,
    ) -> list[AnyTask]:
        """Submit tasks and block until they have ended, for scripts and notebooks.

        If an event loop runs in this thread, as in a notebook, `run` blocks that loop. Inside a
        function that is a task in a thread itself, the thread also runs the tasks that it waits
        for, so that a full pool cannot deadlock.

        Args:
            tasks: As for `submit_tasks`.
            timeout: Longest wait in seconds. None: no limit. A thread that runs tasks itself keeps
                it only when their calls have ended, as for `ComputeTask.result`.
            progress: As for `wait_tasks`.
            return_exceptions: Also return tasks that failed or were cancelled, with their
                `exception`. If False, the exception of the first of them is raised when all tasks
                have ended.

        Returns:
            The tasks, in order.

        Raises:
            Exception: A task failed.
            TaskCancelledError: A task was cancelled.
            TaskValidationError: As for `submit_tasks`.
            TimeoutError: As for `wait_tasks`.
            WalltimeReached: As for `wait_tasks`.
        """
        from rhapsody.backends.core.service_loop import service_loop

        if is_in_task() and runs_a_loop():
            # The thread may have to run the tasks itself, which it cannot within a loop.
            with ThreadPoolExecutor(1, thread_name_prefix="rhapsody-nested-run") as thread:
                run = functools.partial(self.run, tasks, timeout, progress, return_exceptions)
                return thread.submit(copy_context().run, run).result()
        tasks = _as_list(tasks)
        calls = WaitQueue(timeout)
        with queued_callbacks(tasks, calls.put_nowait), run_calls_here(calls):
            try:
                service_loop().run_blocking(self._run(tasks, timeout, progress), calls)
            except asyncio.TimeoutError:
                # The last call in this thread may have ended the last task.
                wait = self._submissions.wait
                if not calls.is_late or service_loop().run_blocking(wait(tasks, REPORT_SECONDS)):
                    raise
        failed = (task["exception"] for task in tasks if task["state"] != TaskStates.DONE)
        if not return_exceptions and (error := next(failed, None)) is not None:
            raise error
        return tasks

    async def _run(
        self, tasks: Sequence[AnyTask] | AnyTask, timeout: float | None, progress: bool
    ) -> list[AnyTask]:
        await self.submit_tasks(tasks)
        return await self.wait_tasks(tasks, timeout, progress)

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        from rhapsody.backends.core.service_loop import service_loop

        service_loop().run_blocking(self.close())

    async def start_telemetry(
        self, resource_poll_interval: float = 5.0, **options: Any
    ) -> TelemetryManager:
        """Record events, spans and metrics of this session's tasks from now on.

        Args:
            resource_poll_interval: Seconds between two readings of the backends' statistics.
            **options: Passed to `rhapsody.telemetry.manager.TelemetryManager`.

        Returns:
            The manager. Closing the session stops it.
        """
        backends = self.backends.values()
        return await self._observation.start_telemetry(backends, resource_poll_interval, options)

    def get_telemetry(self) -> TelemetryManager:
        """Return the manager that `start_telemetry` started.

        Raises:
            SessionError: Telemetry was not started.
        """
        if self._submissions.telemetry is None:
            raise SessionError("telemetry was not started; await session.start_telemetry() first")
        return self._submissions.telemetry


def _as_list(tasks: Sequence[AnyTask] | AnyTask) -> list[AnyTask]:
    if not isinstance(tasks, Iterable):
        raise TaskValidationError(
            None, f"tasks must be a task or a list of tasks, got {type(tasks).__name__}"
        )
    return [tasks] if isinstance(tasks, MutableMapping) else list(tasks)


def _detach(backend: Any, owner: Any) -> None:
    detach = getattr(backend, "detach", None)
    if detach is not None:
        detach(owner)
