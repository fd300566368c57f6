"""A `concurrent.futures.Executor` over the backends of a session."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, InvalidStateError
from concurrent.futures import wait as wait_for
from contextlib import suppress
from functools import partial
from itertools import chain, islice
from typing import Any

from rhapsody.api.tasks import ComputeTask
from rhapsody.backends.chunks import call_each, call_each_async
from rhapsody.backends.core.retries import policy_of
from rhapsody.backends.core.service_loop import service_loop
from rhapsody.backends.core.work import is_async
from rhapsody.backends.protocol import ATTEMPT_KEY
from rhapsody.errors import QueueTimeoutError, SessionError, TaskCancelledError

__all__ = ["SessionExecutor"]

MakeTask = Callable[[Callable[..., Any], Sequence[Any], Mapping[str, Any]], ComputeTask]


class SessionExecutor(Executor):
    """Runs functions on the backends of a session, for code that takes an executor.

    It may be used from any thread. Its futures need no event loop of the caller's, so they work
    also if the session's own loop is blocked. `Future.cancel` also stops a call that runs.

    `Session.executor` makes it.

    Args:
        make_task: Makes a task of a call.
        backend_for: Returns the backend for a task.
    """

    def __init__(self, make_task: MakeTask, backend_for: Callable[[ComputeTask], Any]) -> None:
        self._make_task = make_task
        self._backend_for = backend_for
        self._lock = threading.Lock()
        self._is_shut_down = False
        self._futures: set[Future[Any]] = set()

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Submit the call of a function.

        Raises:
            RuntimeError: The executor was shut down.
            SessionError: The session is closed, or its backend only runs tasks of its owner.
            TaskValidationError: No backend of the session runs functions.
        """
        task = self._make_task(fn, args, kwargs)
        backend = self._backend_for(task)
        if not hasattr(backend, "run_one"):
            raise SessionError(
                f"an executor needs a backend with 'run_one', which '{backend.name}' lacks; use "
                "session.submit()"
            )
        future: Future[Any] = Future()
        with self._lock:
            if self._is_shut_down:
                raise RuntimeError("cannot schedule new futures after shutdown")
            self._futures.add(future)
        call = asyncio.run_coroutine_threadsafe(_run(backend, task), service_loop().loop)
        future.add_done_callback(partial(self._on_future_done, call))
        call.add_done_callback(partial(_settle, future))
        return future

    def _on_future_done(self, call: Future[Any], future: Future[Any]) -> None:
        with self._lock:
            self._futures.discard(future)
        if future.cancelled():
            future.set_running_or_notify_cancel()  # wakes `concurrent.futures.wait`
            call.cancel()

    def map(
        self,
        fn: Callable[..., Any],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        **options: Any,
    ) -> Iterator[Any]:
        """Return an iterator over the results of calls, as `ProcessPoolExecutor.map` does."""
        if chunksize < 1:
            raise ValueError(f"chunksize must be at least 1, got {chunksize}")
        if chunksize == 1:
            return super().map(fn, *iterables, timeout=timeout, **options)
        calls = zip(*iterables)  # noqa: B905 - as `map`: it ends with the shortest
        each: Callable[..., Any] = call_each_async if is_async(fn) else call_each
        chunks = iter(lambda: list(islice(calls, chunksize)), [])
        results = super().map(partial(each, fn), chunks, timeout=timeout, **options)
        return chain.from_iterable(results)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Accept no more calls. The session and its backends stay open.

        Args:
            wait: Return when all futures are done.
            cancel_futures: Cancel the calls that have not ended.
        """
        with self._lock:
            self._is_shut_down = True
            futures = list(self._futures)
        if cancel_futures:
            for future in futures:
                future.cancel()
        if wait:
            wait_for(futures)


async def _run(backend: Any, task: ComputeTask) -> Any:
    """Run a task, and repeat it after failures if it has `retries`."""
    policy, failed = policy_of(task), 0
    while True:
        if policy.retries:
            task[ATTEMPT_KEY] = policy.attempt(task["uid"], failed)
        try:
            return (await backend.run_one(task))["return_value"]
        except (TaskCancelledError, QueueTimeoutError):
            raise
        except Exception:
            if policy.is_last(failed):
                raise
        await asyncio.sleep(policy.pause(failed))
        failed += 1


def _settle(future: Future[Any], call: Future[Any]) -> None:
    """Give a future the outcome of its call, unless it was cancelled."""
    error = None if call.cancelled() else call.exception()
    if call.cancelled() or isinstance(error, TaskCancelledError):
        future.cancel()  # its backend was shut down
        return
    with suppress(InvalidStateError):  # it was cancelled in this moment
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(call.result())
