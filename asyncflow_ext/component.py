"""A component of a workflow, a task or a block, from its call to its end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextvars import copy_context
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, Protocol

__all__ = ["Component", "Options", "Stage"]


class Stage(Enum):
    """How far a component has come."""

    WAITING = auto()
    """For its dependencies, or for its next attempt."""
    PREPARING = auto()
    """Its body is making the command or the prompt."""
    QUEUED = auto()
    """For its backend to take the next batch."""
    SUBMITTING = auto()
    """The backend is taking it."""
    SUBMITTED = auto()
    """The backend has it, or its body runs on the caller's loop."""


@dataclass(frozen=True)
class Options:
    """What a decorator says of all its calls.

    Attributes:
        is_service: Passed to the backend.
        backend: Name of the backend; the engine's default where None.
        capture_stdio: Executables write their output to files.
        retries: How often a failed attempt is repeated.
        backoff: Seconds before the first repetition; each later one waits twice as long.
        timeout: Seconds that an attempt may take; None is no limit.
    """

    is_service: bool = False
    backend: str | None = None
    capture_stdio: bool = False
    retries: int = 0
    backoff: float = 0.1
    timeout: float | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.is_service, bool):
            raise TypeError(f"'service' must be a boolean, got {type(self.is_service).__name__}")
        if isinstance(self.retries, bool) or not isinstance(self.retries, int) or self.retries < 0:
            raise ValueError(
                f"'retries' must be a whole number of at least 0, not {self.retries!r}"
            )
        if not _is_number(self.backoff) or not self.backoff >= 0:
            raise ValueError(f"'backoff' must be a number of seconds, not {self.backoff!r}")
        if self.timeout is not None and not (_is_number(self.timeout) and self.timeout > 0):
            raise ValueError(
                f"'timeout' must be a positive number of seconds, not {self.timeout!r}"
            )


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


class Engine(Protocol):
    """What a future needs of its engine."""

    def cancel(self, component: Component, msg: Any) -> bool:
        """Cancel a component that has not ended."""

    def release(self, component: Component) -> None:
        """Forget a component that has ended."""


class Component(asyncio.Future[Any]):
    """One call of a decorated function, and the future of its result.

    Cancelling it asks the engine, which stops the work. As of the stock engine's entries, `type`,
    `future` and `description` can be read as items.

    Attributes:
        type: "task" or "block".
        uid: Unique in this process.
        name: The function's name.
        state: As the stock engine says it.
        task, block: The description, by the one name or the other.
        description: What its backend gets.
        engine: The engine it belongs to, until it has ended.
        kind: "function", "executable", "prompt", "block" or "ai".
        options: What its decorator said.
        function: The function behind it.
        arguments: `(args, kwargs)` as they were given, if there are futures among them, for as
            long as an attempt may need them.
        dependencies: These futures.
        waiting: How many of them are not done.
        stage: How far it is.
        attempt: Repetitions so far.
        job: The asyncio task that runs its body, if one does.
        timer: Fires at its timeout, or when its next attempt is due.
        timed_out: The present attempt took too long.
        abandoned: Somebody cancelled it: there is no other attempt.
        cancel_message: What that somebody said.
        cancelling: Its backend has been asked to stop it, or will be.
        context: The context of its call, in which its body runs, if the engine runs it.
        members: The unfinished components made inside its body, if that runs here.
    """

    # One object for a call, and slots: what the garbage collector has to look at costs more than
    # all else where many are pending.
    __slots__ = (
        "abandoned",
        "arguments",
        "attempt",
        "block",
        "cancel_message",
        "cancelling",
        "context",
        "dependencies",
        "description",
        "engine",
        "function",
        "job",
        "kind",
        "members",
        "name",
        "options",
        "stage",
        "state",
        "task",
        "timed_out",
        "timer",
        "type",
        "uid",
        "waiting",
    )

    def __init__(
        self,
        engine: Engine,
        loop: asyncio.AbstractEventLoop,
        comp_type: str,
        kind: str,
        function: Callable[..., Any],
        options: Options,
        description: dict[str, Any],
    ) -> None:
        super().__init__(loop=loop)
        self.type = comp_type
        self.uid: str = description["uid"]
        self.state = "PENDING"
        self.name: str = description["name"]
        self.description = description
        setattr(self, comp_type, description)
        self.engine: Engine | None = engine
        self.kind = kind
        self.function = function
        self.options = options
        self.arguments: tuple[Any, ...] = ()
        self.dependencies: Sequence[asyncio.Future[Any]] = ()
        self.waiting = 0
        self.stage = Stage.WAITING
        self.attempt = 0
        self.job: asyncio.Task[None] | None = None
        self.timer: asyncio.TimerHandle | None = None
        self.timed_out = False
        self.abandoned = False
        self.cancel_message: Any = None
        self.cancelling = False
        self.context = None if kind == "function" else copy_context()
        self.members: set[Component] | None = None

    def __getitem__(self, key: str) -> Any:
        if key == "future":
            return self
        if key not in ("description", "type"):
            raise KeyError(key)
        return getattr(self, key)

    def cancel(self, msg: Any | None = None) -> bool:
        """Cancel the work.

        What no backend has yet is cancelled at once. Otherwise its backend is asked, and the
        future is cancelled when it confirms, refuses, or takes too long.

        Returns:
            False where it is done.
        """
        if self.done() or self.engine is None:
            return super().cancel(msg)
        return self.engine.cancel(self, msg)

    def cancel_now(self, msg: Any | None = None) -> None:
        """Cancel the future itself, whatever becomes of the work."""
        super().cancel(msg)
        self._release()

    def set_result(self, result: Any) -> None:
        """End it well."""
        super().set_result(result)
        self._release()

    def set_exception(self, exception: Any) -> None:
        """End it badly."""
        super().set_exception(exception)
        self._release()

    def _release(self) -> None:
        # Not by a done callback, which costs some objects more for each future that is pending.
        engine, self.engine = self.engine, None
        if engine is not None:
            engine.release(self)
        self.context = self.members = None
        self.arguments = self.dependencies = ()

    @property
    def id(self) -> str:
        """The number in its uid."""
        return self.uid.rpartition(".")[2]

    @property
    def runs_here(self) -> bool:
        """Whether its body runs on the caller's loop: blocks and AI tasks."""
        return self.kind in ("block", "ai")

    def stop_timer(self) -> None:
        """Take back its timeout or its next attempt."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
