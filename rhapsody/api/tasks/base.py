"""The base of tasks: dicts with validated fields that can be awaited."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator, Mapping
from contextvars import Context
from itertools import count
from queue import Empty
from typing import Any, ClassVar, NoReturn, TypeVar

from pydantic import ValidationError

from rhapsody.backends.core.html import as_html
from rhapsody.backends.core.nested_runs import Attempts, WaitQueue
from rhapsody.backends.core.retries import RESULT_KEYS
from rhapsody.backends.protocol import TaskStates
from rhapsody.errors import SessionError, TaskValidationError, describe_error
from rhapsody.suggest import did_you_mean
from rhapsody.validation import FieldValidator, brief, plain_number

__all__ = ["BaseTask", "Truth", "check_loop", "runs_a_loop", "validation_error"]

T = TypeVar("T", bound="BaseTask")

RESULT_FIELDS = RESULT_KEYS | {"from_journal"}
JOURNAL_FIELDS = frozenset({"cache", "inputs", "journal", "outputs", "version"})
COMMON_FIELDS = JOURNAL_FIELDS | {
    "backend",
    "backoff",
    "priority",
    "retries",
    "task_backend_specific_kwargs",
    "timeout",
    "uid",
}

EXECUTABLE_OPTIONS = frozenset(
    {"cores", "cpus", "cwd", "env", "gpus", "memory", "nodes", "ranks", "shell", "stdin", "workers"}
)

_uids = count(1)


class Truth(int):
    """True or False, also as the result of a call: for `task.done` and `task.done()`."""

    def __call__(self) -> bool:
        """Return the bool."""
        return bool(self)

    def __repr__(self) -> str:
        return repr(bool(self))


YES, NO = Truth(True), Truth(False)


FIELDS_ELSEWHERE = {
    **dict.fromkeys(("max_retries", "num_retries", "retry"), "did you mean 'retries'?"),
    **dict.fromkeys(
        ("depends", "depends_on", "dependencies", "inputs_from"),
        "tasks of a session are independent; in a workflow, pass the future of one task to another",
    ),
}
"""Names that other systems have for fields of tasks, each with what to use here."""

ENDED: Any = object()
"""Stands in the place of a future that a task has dropped."""


class BaseTask(dict[str, Any]):
    """Base class of `ComputeTask` and `AITask`.

    Two tasks are equal if their uids are equal.
    """

    __slots__ = ("__weakref__", "_attempts", "_future", "_seen")

    known_fields = RESULT_FIELDS | COMMON_FIELDS
    takes_own_fields: ClassVar[bool] = True
    """Whether users may add fields of their own."""
    foreign_fields: Mapping[str, str] = {}
    """Fields that belong elsewhere and would be ignored here, each with the place to use."""

    _kinds: ClassVar[dict[str, type[BaseTask]]] = {}
    """The kind of task that a dict with a certain field describes."""
    _validator: FieldValidator
    _future: asyncio.Future[Any] | None
    _attempts: Attempts | None
    _seen: bool | None

    def __init_subclass__(cls, described_by: tuple[str, ...] = ()) -> None:
        BaseTask._kinds.update(dict.fromkeys(described_by, cls))

    def __init__(self, fields: dict[str, Any], extra: dict[str, Any]) -> None:
        if extra:
            self._check_extra(fields.get("uid"), extra)
            for field, value in extra.items():
                if value is not None:
                    fields[field] = plain_number(value) if field in self.known_fields else value
        try:
            validated = self._validator.validate(fields)
        except ValidationError as error:
            fault = self._validator.find_fault(error, fields)
            raise validation_error(
                fields.get("uid"), fault.message, fault.field, fault.value
            ) from None
        super().__init__(validated)
        _set_future(self, None)
        _set_attempts(self, None)
        _set_seen(self, False)
        if "uid" not in validated:
            self["uid"] = f"task.{next(_uids):06d}"

    def _check_extra(self, uid: Any, extra: Mapping[str, Any]) -> None:
        """Refuse fields of the other kind of task and typos, and accept the user's own."""
        cutoff = 0.8 if self.takes_own_fields else 0.0
        for field, value in extra.items():
            hint = ""
            if field in self.foreign_fields:
                hint = self.foreign_fields[field] if value is not None else ""
            elif field in FIELDS_ELSEWHERE:
                hint = FIELDS_ELSEWHERE[field]
            elif field in EXECUTABLE_OPTIONS:  # a ComputeTask names the place where they belong
                hint = "it is an option of functions and executables"
            elif field not in self.known_fields:
                hint = did_you_mean(field, self.known_fields, cutoff)
            if hint:
                raise validation_error(uid, f"unknown field '{field}'; {hint}", field, value)

    def _refuse(self, field: str, value: Any, message: str) -> NoReturn:
        raise validation_error(self["uid"], message, field, value)

    def validate(self) -> None:
        """Validate the fields again, after they were changed.

        Raises:
            TaskValidationError: A field is invalid; the message names it and the expected value.
        """
        type(self)(**{k: v for k, v in self.items() if k not in RESULT_FIELDS})

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> BaseTask:
        """Make an AITask from a dict with a prompt, and a ComputeTask from any other.

        Args:
            fields: Field names to values.

        Raises:
            TaskValidationError: The dict describes neither kind, or a field is invalid.
        """
        kinds = [kind for field, kind in cls._kinds.items() if fields.get(field) is not None]
        if not kinds:
            raise TaskValidationError(
                fields.get("uid"),
                "set 'function' or 'executable' for a compute task, 'prompt' for an AI task; "
                f"got only {sorted(fields)}",
            )
        made: BaseTask = kinds[0](**{k: v for k, v in fields.items() if k not in RESULT_FIELDS})
        made.update({k: v for k, v in fields.items() if k in RESULT_FIELDS})
        return made

    @property
    def done(self) -> Truth:
        """Whether the task has ended: it is DONE, FAILED or CANCELED; also as `done()`."""
        return YES if self.get("state") in TaskStates.terminal_states else NO

    def cancelled(self) -> bool:
        """Return whether the task is CANCELED."""
        return bool(self.get("state") == TaskStates.CANCELED)

    def result(self, timeout: float | None = None) -> Any:
        """Return the task's result, and block this thread until the task has ended.

        Inside a function that is a task in a thread itself, the thread also runs the task that it
        waits for, so that a full pool cannot deadlock.

        Args:
            timeout: Longest wait in seconds. None: no limit. A thread that runs the task itself
                keeps it only when the call has ended; it lets other threads begin first for 0.1 s.

        Returns:
            The function's return value, the executable's standard output, or the response.

        Raises:
            Exception: The task failed.
            TaskCancelledError: The task was cancelled.
            TimeoutError: The task has not ended in time; it continues.
                (`asyncio.TimeoutError` on Python 3.10.)
            SessionError: The task has not ended, and this thread runs an event loop, which must
                not be blocked; or the task was not submitted.
        """
        self.mark_seen()
        future = self._future
        if future is None or future is ENDED:
            if not self.done:
                raise self._not_submitted()
            if self.get("exception") is not None:
                raise self["exception"]
        else:
            if not future.done():
                _block_until_done(self["uid"], future, timeout, self._attempts)
            future.result()
        return self.get("return_value", self.get("stdout"))

    def add_done_callback(
        self, callback: Callable[[Any], Any], *, context: Context | None = None
    ) -> None:
        """Call a function at the end of the task with its future, as `asyncio.Future` does."""
        self._submitted_future().add_done_callback(callback, context=context)

    def remove_done_callback(self, callback: Callable[[Any], Any]) -> int:
        """Remove a function that was added by `add_done_callback`; return how often it was."""
        return self._submitted_future().remove_done_callback(callback)

    @property
    def is_seen(self) -> bool:
        """Whether the program has asked for the task's result."""
        return bool(self._seen)

    def mark_seen(self) -> None:
        """Note that the program has asked for the task's result, and learns of a failure."""
        _set_seen(self, True)

    def bind_attempts(self, attempts: Attempts) -> None:
        """Set the calls that a thread may make while it waits; sessions call this."""
        _set_attempts(self, attempts)

    def offer_attempts_to(self, queue: WaitQueue) -> None:
        """Let this thread, which waits for the task, run it if it is a thread of the same pool."""
        if self._attempts is not None:
            self._attempts.offer_to(queue)

    def bind_future(self, future: asyncio.Future[Any]) -> None:
        """Set the future that `await task` waits for; sessions call this."""
        _set_future(self, future)

    def drop_future(self) -> None:
        """Drop the future, whose result the task is; sessions call this.

        Each would otherwise keep the other, and a large result with them, until the next garbage
        collection.
        """
        _set_future(self, ENDED)
        _set_attempts(self, None)

    def __await__(self) -> Generator[Any, None, Any]:
        future = self._submitted_future()
        # Shielded: a waiter that gives up, such as `asyncio.wait_for`, must not cancel the future.
        return asyncio.shield(future).__await__()

    def _submitted_future(self) -> asyncio.Future[Any]:
        self.mark_seen()
        future = self._future
        if future is None:
            raise self._not_submitted()
        if future is ENDED:
            future = asyncio.get_running_loop().create_future()
            future.set_result(self)
        check_loop(self["uid"], future)
        return future

    def _not_submitted(self) -> SessionError:
        return SessionError(
            f"task {self['uid']} was not submitted; await session.submit_tasks([task]) first"
        )

    def __missing__(self, field: str) -> Any:
        if field in self.known_fields:
            return None
        raise KeyError(field)

    def __getattr__(self, name: str) -> Any:
        if name in ("_future", "_attempts", "_seen"):
            return None
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"{type(self).__name__} has no field '{name}'") from None

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, BaseTask) and self["uid"] == other["uid"]

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(self["uid"])

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the fields, but not the future, which belongs to the submitting process."""
        return _rebuild, (type(self), dict(self))

    def __repr__(self) -> str:
        parts = [self["uid"], self._subject()]
        for field in ("model", "backend", "state", "exception", "response", "return_value"):
            value = self.get(field)
            if value is not None:
                plain = field in ("model", "backend", "state")
                parts.append(f"{field}={value if plain else brief(value)}")
        return f"{type(self).__name__}({', '.join(parts)})"

    def _repr_html_(self) -> str:
        """Return the task for a notebook: its state, its result, and where it ran."""
        execution = self["execution"]
        error, value = self["exception"], self.get("return_value", self["response"])
        facts = {
            "uid": self["uid"],
            "what": self._subject(),
            "backend": self["backend"],
            "state": self.get("state", "not submitted"),
            "result": None if value is None else brief(value),
            "exception": None if error is None else describe_error(error),
        }
        if execution is not None:
            facts["seconds"] = format(execution.ended_at - execution.submitted_at, ".3g")
            facts["host"], facts["worker"] = execution.host, execution.worker
        return as_html(type(self).__name__, facts)

    def _subject(self) -> str:
        raise NotImplementedError


def check_loop(uid: str, future: asyncio.Future[Any]) -> None:
    """Check that a task that has not ended belongs to the running loop.

    Raises:
        SessionError: Its loop is another one, or is closed, and would never wake the caller.
    """
    loop = future.get_loop()
    if future.done() or loop is asyncio.get_running_loop():
        return
    if loop.is_closed():
        raise SessionError(
            f"task {uid} was submitted on an event loop that is closed; submit and await a task in "
            "the same asyncio.run()"
        )
    raise SessionError(f"task {uid} was submitted on another event loop; await it on that loop")


def _block_until_done(
    uid: str,
    future: asyncio.Future[Any],
    timeout: float | None,
    attempts: Attempts | None = None,
) -> None:
    """Block this thread until a future is done that belongs to the loop of another thread.

    Args:
        uid: The task's uid.
        future: The task's future.
        timeout: Longest wait in seconds. None: no limit.
        attempts: Calls to make in this thread until then. A thread of a full pool may have to run
            the task itself.
    """
    loop = future.get_loop()
    if runs_a_loop():
        raise SessionError(
            f"task {uid} has not ended, and result() would block the event loop of this thread; "
            "await the task first"
        )
    if not loop.is_running():
        raise SessionError(
            f"task {uid} was submitted on an event loop that does not run any more; submit a task "
            "and wait for it in the same asyncio.run()"
        )
    ends = WaitQueue(timeout)
    loop.call_soon_threadsafe(future.add_done_callback, ends.put_nowait)
    if attempts is not None:
        attempts.offer_to(ends)
    try:
        ends.get_in_time()
    except Empty:
        raise asyncio.TimeoutError(
            f"task {uid} did not end within {timeout:g} s; it continues"
        ) from None
    finally:
        if attempts is not None:
            attempts.withdraw_from(ends)


def runs_a_loop() -> bool:
    """Return whether an event loop runs in this thread."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def validation_error(uid: Any, message: str, field: str, value: Any) -> TaskValidationError:
    """Return the error for a field; a uid that is not a str is left out."""
    return TaskValidationError(uid if isinstance(uid, str) else None, message, field, value)


_set_future = BaseTask._future.__set__  # type: ignore[union-attr]  # the slot, not the field
_set_attempts = BaseTask._attempts.__set__  # type: ignore[union-attr]  # the slot, not the field
_set_seen = BaseTask._seen.__set__  # type: ignore[union-attr]  # the slot, not the field


def _rebuild(kind: type[T], fields: dict[str, Any]) -> T:
    task = kind.__new__(kind)
    task.update(fields)
    return task
