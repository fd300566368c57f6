"""A component of a workflow, a task or a block, from its call to its end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextvars import copy_context
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, Protocol

__all__ = ["Component", "ComponentFuture", "Options", "Stage"]


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


class ComponentFuture(asyncio.Future[Any]):
    """The future of a component. Cancelling it asks the engine, which stops the work."""

    # Slots, since a future's own dict costs as much again as the future.
    __slots__ = ("block", "component", "id", "state", "task")

    id: str
    state: str
    component: Component | None
    """What it is the future of, until that has ended."""

    def __init__(self, *, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop=loop)
        self.component = None

    def cancel(self, msg: Any | None = None) -> bool:
        """Cancel the component.

        A component that no backend has yet is cancelled at once. Otherwise its backend is asked,
        and the future is cancelled when it confirms, refuses, or takes too long.

        Returns:
            False where the future is done.
        """
        if self.done() or self.component is None:
            return super().cancel(msg)
        return self.component.engine.cancel(self.component, msg)

    def cancel_now(self, msg: Any | None = None) -> None:
        """Cancel the future itself, whatever becomes of the work."""
        super().cancel(msg)
        self._release()

    def set_result(self, result: Any) -> None:
        """End the component, well."""
        super().set_result(result)
        self._release()

    def set_exception(self, exception: Any) -> None:
        """End the component, badly."""
        super().set_exception(exception)
        self._release()

    def _release(self) -> None:
        # By a done callback this would cost some objects more for each future that is pending.
        component, self.component = self.component, None
        if component is not None:
            component.engine.release(component)


class Component:
    """One call of a decorated function.

    As of the stock engine's entries, `type`, `future` and `description` can be read as items.

    Attributes:
        type: "task" or "block".
        uid: Unique in this process.
        name: The function's name.
        future: The future of its result.
        description: What its backend gets.
        engine: The engine it belongs to.
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

    __slots__ = (
        "abandoned",
        "arguments",
        "attempt",
        "cancel_message",
        "cancelling",
        "context",
        "dependencies",
        "description",
        "engine",
        "function",
        "future",
        "job",
        "kind",
        "members",
        "name",
        "options",
        "stage",
        "timed_out",
        "timer",
        "type",
        "uid",
        "waiting",
    )

    def __init__(
        self,
        engine: Engine,
        comp_type: str,
        kind: str,
        function: Callable[..., Any],
        options: Options,
        description: dict[str, Any],
        future: ComponentFuture,
    ) -> None:
        self.type = comp_type
        self.uid: str = description["uid"]
        self.name: str = description["name"]
        self.future = future
        self.description = description
        self.engine = engine
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
        self.members: set[ComponentFuture] | None = None

    def __getitem__(self, key: str) -> Any:
        if key not in ("description", "future", "type"):
            raise KeyError(key)
        return getattr(self, key)

    @property
    def runs_here(self) -> bool:
        """Whether its body runs on the caller's loop: blocks and AI tasks."""
        return self.kind in ("block", "ai")

    def stop_timer(self) -> None:
        """Take back its timeout or its next attempt."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None

    def cancel_members(self) -> None:
        """Cancel what was made inside its body and has not ended."""
        for member in list(self.members or ()):
            member.cancel()
