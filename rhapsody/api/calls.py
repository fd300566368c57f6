"""Calls of functions as tasks: `submit`, `map` and `executor` of a session."""

from __future__ import annotations

from collections.abc import (
    AsyncIterator,
    Callable,
    Generator,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from typing import Any, Protocol

from rhapsody.api.executor import SessionExecutor
from rhapsody.api.tasks import ComputeTask
from rhapsody.api.tasks.base import runs_a_loop
from rhapsody.backends.chunks import call_each, call_each_async
from rhapsody.backends.core.work import is_async
from rhapsody.errors import SessionError, TaskValidationError
from rhapsody.validation import must_be

__all__ = ["CallOwner", "Calls", "Results"]

NOT_OPTIONS = frozenset({"args", "arguments", "executable", "function", "kwargs", "uid"})
"""Fields of a task that every call sets itself."""


class CallOwner(Protocol):
    """The interface of `Session` that calls use."""

    def submit_soon(self, task: ComputeTask) -> None:
        """Submit a task in the next pass of the session's loop; thread-safe."""

    def cancel_soon(self, tasks: Iterable[ComputeTask]) -> None:
        """Ask the backends to cancel tasks; thread-safe."""

    def backend_for(self, task: ComputeTask) -> Any:
        """Return the backend that gets a task."""

    def add_executor(self, executor: SessionExecutor) -> None:
        """Shut an executor down before the backends; thread-safe."""


class Calls:
    """Submits calls of functions, all with the same options of tasks.

    `Session.options` makes one; `Session.submit`, `map` and `executor` are those without options.

    Args:
        owner: The session.
        options: Fields of each task, such as `timeout`.

    Raises:
        TaskValidationError: There is no such option, or its value is invalid.
    """

    def __init__(self, owner: CallOwner, options: Mapping[str, Any]) -> None:
        if wrong := sorted(NOT_OPTIONS & options.keys()):
            raise TaskValidationError(
                None, f"'{wrong[0]}' is not an option of calls; every call sets its own", wrong[0]
            )
        self._owner = owner
        self._options = dict(options)
        self._task(print, (), {})  # raises if an option is wrong

    def _task(
        self, function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> ComputeTask:
        return ComputeTask(function=function, args=args, kwargs=kwargs or None, **self._options)

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> ComputeTask:
        """Submit the call of a function as a task; see `Session.submit`."""
        task = self._task(fn, args, kwargs)
        self._owner.submit_soon(task)
        return task

    def map(
        self, fn: Callable[..., Any], /, *iterables: Iterable[Any], chunksize: int = 1
    ) -> Results:
        """Call a function with each item of iterables; see `Session.map`."""
        if not isinstance(chunksize, int) or chunksize < 1:
            raise ValueError(must_be("chunksize", "a whole number of at least 1", chunksize))
        calls = list(zip(*iterables))  # noqa: B905 - as `map`: it ends with the shortest
        name = getattr(fn, "__name__", type(fn).__name__)
        if chunksize == 1:
            tasks = [self.submit(fn, *args) for args in calls]
        else:
            each = call_each_async if is_async(fn) else call_each
            starts = range(0, len(calls), chunksize)
            tasks = [self.submit(each, fn, calls[at : at + chunksize]) for at in starts]
        return Results(self._owner, tasks, chunksize > 1, len(calls), name)

    def executor(self) -> SessionExecutor:
        """Return a `concurrent.futures.Executor`; see `Session.executor`."""
        executor = SessionExecutor(self._task, self._owner.backend_for)
        self._owner.add_executor(executor)
        return executor


class Results:
    """The results of `Session.map`, in the order of its calls.

    Iterate by `for` in a thread without an event loop, and otherwise by `async for`; or `await` the
    list of all results. A failed call raises its exception, and the calls after it are cancelled,
    as they are if the iteration is left early.

    Args:
        owner: The session.
        tasks: The tasks.
        are_chunks: Whether the result of each task is a list of results.
        number: The number of calls.
        name: The name of the function.
    """

    def __init__(
        self,
        owner: CallOwner,
        tasks: list[ComputeTask],
        are_chunks: bool,
        number: int,
        name: str,
    ) -> None:
        self._owner = owner
        self._tasks = tasks[::-1]  # so that `pop` returns the next one, and releases its result
        self._are_chunks = are_chunks
        self._number = number
        self._name = name

    def __len__(self) -> int:
        """Return the number of calls, whether their results were taken or not."""
        return self._number

    def __repr__(self) -> str:
        left = sum(not task.done for task in self._tasks)
        ended = f"{left} of its tasks have not ended" if left else "all of its tasks have ended"
        return f"<results of {self._number} calls of {self._name}; {ended}>"

    def __iter__(self) -> Iterator[Any]:
        if runs_a_loop():
            raise SessionError(
                "'for' over the results of map() would block the event loop of this thread; use "
                "'async for' or 'await'"
            )
        return self._results()

    def _results(self) -> Iterator[Any]:
        try:
            while self._tasks:
                self._tasks[-1].result()
                yield from self._values(self._tasks.pop().result())
        finally:
            self._cancel_rest()

    async def __aiter__(self) -> AsyncIterator[Any]:
        try:
            while self._tasks:
                await self._tasks[-1]
                for value in self._values(self._tasks.pop().result()):
                    yield value
        finally:
            self._cancel_rest()

    def __await__(self) -> Generator[Any, None, list[Any]]:
        return self._list().__await__()

    async def _list(self) -> list[Any]:
        return [value async for value in self]

    def _values(self, result: Any) -> Iterable[Any]:
        return result if self._are_chunks else (result,)

    def _cancel_rest(self) -> None:
        for task in self._tasks:  # its failure is not news: the iteration has ended without it
            task.mark_seen()
        left, self._tasks = [task for task in self._tasks if not task.done], []
        if left:
            self._owner.cancel_soon(left)
