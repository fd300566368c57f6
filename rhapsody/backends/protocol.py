"""The backend protocol: the interface between the owner of tasks and the backend that runs them.

An owner is AsyncFlow's `WorkflowEngine` or Rhapsody's `Session`. The protocol is how the engine of
`radical.asyncflow` 0.6.0 uses a backend; `docs/backend-protocol.md` lists its clauses, and
`rhapsody.testing` has a test for each clause.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable, Iterable, Mapping, MutableMapping
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

from rhapsody.inference.kinds import GENERATE

__all__ = [
    "ALL_KINDS",
    "ATTEMPT_KEY",
    "COMPUTE_KINDS",
    "CONTEXT_KEY",
    "EXECUTABLE",
    "FUNCTION",
    "KEEP_KEY",
    "PROMPT",
    "PROMPT_KINDS",
    "REPORTED_STATES",
    "Attempt",
    "Backend",
    "KeptResult",
    "Task",
    "TaskCallback",
    "TaskStates",
    "accepted_ai_kinds",
    "accepted_kinds",
    "backends_for_ai_kind",
    "main_state",
    "task_kind",
    "task_name",
]

Task = MutableMapping[str, Any]
"""The owner's description of a task: a mutable mapping, the same object until the task ends."""

TaskCallback = Callable[[Any, str], Any]
"""Called as `callback(task, state)` on the owner's loop, with a plain `str` state."""

FUNCTION = "function"
EXECUTABLE = "executable"
PROMPT = "prompt"
COMPUTE_KINDS = frozenset({FUNCTION, EXECUTABLE})
PROMPT_KINDS = frozenset({PROMPT})
ALL_KINDS = COMPUTE_KINDS | PROMPT_KINDS
GENERATE_KINDS = frozenset({GENERATE})

ATTEMPT_KEY = "_attempt"
"""The key of a description with the `Attempt` of a repeated task, until a backend has it."""

CONTEXT_KEY = "_context"
"""The key of a description with the `contextvars.Context` of the call until a backend has it."""


KEEP_KEY = "_keep"
"""The key of a description whose owner accepts a `KeptResult`, until a backend has it."""


class KeptResult(NamedTuple):
    """A large result that its backend keeps until the owner fetches it.

    The result is freed with the last reference to `argument`.

    Attributes:
        argument: Stands for the result among the arguments of later tasks of the backend.
        fetch: Returns the result. Raises an exception if it is lost.
    """

    argument: Any
    fetch: Callable[[], Awaitable[Any]]


class Attempt(NamedTuple):
    """An attempt of a task whose owner repeats it after a failure.

    Attributes:
        task: Identifies the task: the same in all its attempts.
        number: Counts the attempts from 1.
        is_last: Whether a failure is final.
    """

    task: Hashable
    number: int
    is_last: bool


class TaskStates:
    """The states of a task: plain strings, the same for every backend."""

    PENDING: ClassVar[str] = "PENDING"
    RUNNING: ClassVar[str] = "RUNNING"
    DONE: ClassVar[str] = "DONE"
    FAILED: ClassVar[str] = "FAILED"
    CANCELED: ClassVar[str] = "CANCELED"
    terminal_states: ClassVar[frozenset[str]] = frozenset({DONE, FAILED, CANCELED})


REPORTED_STATES = TaskStates.terminal_states | {TaskStates.RUNNING}
"""The states that a backend reports, unless its `get_task_states_map` returns others."""


def task_kind(task: Mapping[str, Any]) -> str | None:
    """Return the kind of a task: the first of function, executable and prompt that is set.

    The presence of a key does not show the kind: AsyncFlow's descriptions have the other keys too,
    with the value None. A prompt may be empty.

    Args:
        task: The task's description.

    Returns:
        "function", "executable" or "prompt"; None if none of these keys is set.
    """
    for kind in (FUNCTION, EXECUTABLE, PROMPT):
        if task.get(kind):
            return kind
    return PROMPT if task.get(PROMPT) is not None else None


def task_name(task: Mapping[str, Any], kind: str | None) -> str:
    """Return the name of what a task runs.

    Args:
        task: The task's description.
        kind: The task's kind, from `task_kind`.

    Returns:
        The name of the function or executable; "prompt" for a prompt; "" if there is no kind.
    """
    if kind == FUNCTION:
        # AsyncFlow wraps functions, and keeps the name of the wrapped function in this key.
        name = task.get("_tel_executable") or getattr(task[FUNCTION], "__name__", None)
        return name or type(task[FUNCTION]).__name__
    return str(task[EXECUTABLE]) if kind == EXECUTABLE else kind or ""


@runtime_checkable
class Backend(Protocol):
    """The attributes and methods that an owner uses.

    To attach, the owner sets `_work_dir`, creates that directory, sets `is_attached`, appends its
    uid to `attached_to`, reads `name` and the two `supports_*` flags, and calls
    `register_callback`, in this order. It never starts a backend.
    """

    name: str
    """A non-empty name that never changes. Two backends of one owner must not share a name."""

    _work_dir: str
    """Directory for captured output, set by the owner and read when a task is submitted."""

    is_attached: bool
    """Whether an owner has attached; set by the owner."""

    attached_to: list[str]
    """Uids of all owners so far, the latest last."""

    supports_implicit_data_linking: bool
    supports_explicit_data_linking: bool

    def register_callback(self, func: TaskCallback) -> None:
        """Set the callback for reports of states; it replaces an earlier one.

        Raises:
            BackendInUseError: Another owner's callback is registered and that owner is still open.
        """

    def get_task_states_map(self) -> Any:
        """Return an object with DONE, RUNNING, CANCELED, FAILED and `terminal_states`.

        Can be called as soon as the backend exists; does not block.
        """

    async def submit_tasks(self, tasks: list[Any]) -> Any:
        """Accept tasks and return within milliseconds; the tasks run in the background.

        Never raises: a task that cannot run is reported FAILED with the reason. The mappings are
        the owner's own: the backend adds results to them and changes nothing else. Each task ends
        in exactly one of DONE, FAILED and CANCELED. A DONE task has `return_value` (functions) or
        `stdout` (executables and prompts); a FAILED task has `exception`.
        """

    async def cancel_task(self, uid: str) -> bool:
        """Stop a task and report it CANCELED.

        Returns:
            False if the uid is unknown or the task has ended; then nothing is reported.
        """

    def link_implicit_data_deps(self, src_task: Any, dst_task: Any) -> Any:
        """Link two dependent tasks. Called if `supports_implicit_data_linking` is true."""

    def link_explicit_data_deps(
        self,
        src_task: Any = None,
        dst_task: Any = None,
        file_name: str | None = None,
        file_path: str | None = None,
    ) -> Any:
        """Link one file. Called if `supports_explicit_data_linking` is true.

        Returns:
            A dict with at least `target`, the name at the destination.
        """

    async def shutdown(self) -> None:
        """Cancel all tasks and release all resources.

        Idempotent; never raises and never blocks the loop. Active tasks are reported CANCELED. The
        backend can be attached and used again.
        """


def main_state(backend: Any, state: Any) -> str | None:
    """Return the state of `TaskStates` that a backend's own state stands for.

    Args:
        backend: Any backend.
        state: A state that it reported.

    Returns:
        One of `REPORTED_STATES`; None if the backend has no such state.
    """
    get_states = getattr(backend, "get_task_states_map", None)
    own_states = get_states() if get_states is not None else None
    for name in REPORTED_STATES:
        if state == getattr(own_states, name, None):
            return name
    return None


def accepted_kinds(backend: Any) -> frozenset[str]:
    """Return the kinds of task that a backend takes.

    Args:
        backend: Any backend. One without `task_kinds`, such as AsyncFlow's own backends, is assumed
            to take functions and executables.

    Returns:
        A subset of {"function", "executable", "prompt"}.
    """
    return frozenset(getattr(backend, "task_kinds", COMPUTE_KINDS))


def accepted_ai_kinds(backend: Any) -> frozenset[str] | None:
    """Return the kinds of AI task that a backend takes.

    Args:
        backend: Any backend that takes prompts. One without `ai_kinds` is assumed to generate only.

    Returns:
        A subset of {"generate", "embed", "score", "classify"}; None if it is not known yet, because
        the model's server has not started.
    """
    kinds = getattr(backend, "ai_kinds", GENERATE_KINDS)
    return None if kinds is None else frozenset(kinds)


def backends_for_ai_kind(backends: Iterable[Any], kind: str) -> list[Any]:
    """Return the backends that take a kind of AI task; those that may take it come last."""
    known = [(backend, accepted_ai_kinds(backend)) for backend in backends]
    sure = [backend for backend, kinds in known if kinds is not None and kind in kinds]
    return sure + [backend for backend, kinds in known if kinds is None]
