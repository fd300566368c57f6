"""A component of a workflow, a task or a block, and the future of its result."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from contextvars import Context, copy_context
from enum import IntEnum, auto
from typing import Annotated, Any, ClassVar, Protocol

from pydantic import BeforeValidator, Field, InstanceOf

from rhapsody.backends.core.retries import RetryPolicy
from rhapsody.backends.protocol import Attempt, KeptResult
from rhapsody.errors import EngineError, TaskTimeoutError
from rhapsody.resources import MAX_PRIORITY, Resources
from rhapsody.validation import Fault, StrictModel, ZeroOrMore

__all__ = [
    "AI",
    "BLOCK",
    "EXECUTABLE",
    "FUNCTION",
    "PROMPT",
    "TASK",
    "Component",
    "Event",
    "KeptComponent",
    "Options",
    "Stage",
    "Timers",
    "description_of",
    "is_pending",
    "loop_error",
]


TASK, BLOCK = "task", "block"
"""The types of components; "block" is also a kind."""

FUNCTION, EXECUTABLE, PROMPT, AI = "function", "executable", "prompt", "ai"
"""The kinds of tasks."""


class Stage(IntEnum):
    """The stage of a component; `state_machine.TRANSITIONS` defines the moves between stages."""

    WAITING = auto()
    """Its dependencies are not all done, or it is launched in the next pass of the loop."""
    PAUSING = auto()
    """An attempt failed, and the next one is due after a pause."""
    PREPARING = auto()
    """Its function is running, and will return the command or the prompt."""
    QUEUED = auto()
    """It is in the queue of its backend."""
    SUBMITTING = auto()
    """The call of the backend's `submit_tasks` has not returned."""
    SUBMITTED = auto()
    """The backend accepted it."""
    RUNNING = auto()
    """Its body runs on the caller's loop."""
    CANCEL_PENDING = auto()
    """Cancelled while SUBMITTING; the backend is asked to stop it when it has accepted it."""
    CANCELLING = auto()
    """Cancelled, and the backend was asked to stop it."""
    TIMEOUT_PENDING = auto()
    """Timed out while SUBMITTING; the backend is asked to stop it when it has accepted it."""
    TIMING_OUT = auto()
    """Timed out, and the backend was asked to stop it."""
    STOPPING_BODY = auto()
    """Timed out, and its body on the caller's loop was interrupted."""
    KEPT = auto()
    """Its task is done, and the backend keeps the result, which nobody has asked for."""
    FETCHING = auto()
    """The result that the backend has kept is on its way."""
    DONE = auto()
    """It has a result."""
    FAILED = auto()
    """It has an exception."""
    CANCELLED = auto()
    """Its future is cancelled."""


def as_paths(paths: Any) -> Any:
    """Return a list of paths as a tuple of strings, and any other value unchanged."""
    if isinstance(paths, (list, tuple)) and all(isinstance(p, (str, os.PathLike)) for p in paths):
        return tuple(map(os.fspath, paths))
    return paths


FIRST_STAGE = Stage.WAITING
"""A constant, since `Stage.WAITING` takes 50 ns in Python 3.11, for each component."""


class Event(IntEnum):
    """An event in the life of a component."""

    PREPARE = auto()
    """Its function is called for the command or the prompt."""
    RUN = auto()
    """Its body starts on the caller's loop."""
    QUEUE = auto()
    """It enters the queue of its backend."""
    SUBMIT = auto()
    """Its backend is called with its batch."""
    ACCEPT = auto()
    """The backend's `submit_tasks` returned."""
    START = auto()
    """The backend reported that it runs."""
    SUCCEED = auto()
    """The attempt succeeded; the outcome is the value."""
    KEEP = auto()
    """The attempt succeeded; the outcome is the `KeptResult`."""
    FETCH = auto()
    """Somebody asks for the result that its backend keeps."""
    REJECT = auto()
    """`submit_tasks` raised; the outcome is the error."""
    FAIL = auto()
    """The attempt failed; the outcome is the error."""
    END = auto()
    """The run ends before it was run; the outcome is the error."""
    FAIL_DEPENDENCY = auto()
    """A dependency failed; the outcome is the error, and no attempt follows."""
    STOP = auto()
    """The backend reported that it was cancelled, or its body raised `CancelledError`."""
    CANCEL = auto()
    """Its owner cancels it."""
    TIMEOUT = auto()
    """The attempt took too long."""
    GIVE_UP = auto()
    """The backend refused to stop it, or did not confirm in time; or its body did not end."""
    RESUME = auto()
    """The pause before the next attempt is over."""
    RECALL = auto()
    """The journal has its result; the outcome is the result fields."""
    ABANDON = auto()
    """A dependency was cancelled, or the engine shuts down; it ends at once."""


Files = Annotated[tuple[str, ...], BeforeValidator(as_paths)] | Callable[..., Any] | None
FILES = "a list of paths, or a function that returns one"


class Options(StrictModel):
    """The options of a decorator, for all calls of its function.

    Attributes:
        service: Passed to the backend.
        backend: Name of the backend; None: the engine's default.
        capture_stdio: Executables write their output to files.
        retries: How often a failed attempt is repeated.
        backoff: Seconds before the first repetition; each later one waits twice as long.
        timeout: Seconds that an attempt may run; None: no limit. Waiting for the backend is not
            counted, except for prompts.
        resources: What each task asks for.
        priority: Tasks of higher priority start first.
        journal: The engine's journal, if it has one, recalls and records the results.
        cache: Equal calls share one recorded result, also within a run.
        version: Replaces the hash of the function's code in the journal.
        inputs: Files that the result depends on, or a function that returns them for the
            arguments of a call.
        outputs: Files that a recalled result needs, or such a function; if one is missing, the
            call runs again.
        expected: Seconds that a task is expected to run; None: its timeout. A task that cannot
            end before the walltime is not started.
        queue_timeout: Seconds that an attempt may wait for its start; None: no limit.

    Raises:
        TypeError: An option is unknown, or `service` is not a bool.
        ValueError: Another option has a wrong value.
    """

    noun: ClassVar[str] = "task option"

    service: Annotated[bool, Field(description="a boolean")] = False
    backend: Annotated[str | None, Field(description="the name of a backend")] = None
    capture_stdio: Annotated[bool, Field(description="a boolean")] = False
    retries: ZeroOrMore = 0
    backoff: Annotated[
        float, Field(ge=0, description="a number of seconds that is not negative")
    ] = 0.1
    timeout: Annotated[float | None, Field(gt=0, description="a positive number of seconds")] = None
    resources: InstanceOf[Resources] | None = None
    priority: Annotated[
        int,
        Field(
            ge=-MAX_PRIORITY,
            le=MAX_PRIORITY,
            description=f"a whole number from {-MAX_PRIORITY} to {MAX_PRIORITY}",
        ),
    ] = 0
    journal: Annotated[bool, Field(description="a boolean")] = True
    cache: Annotated[bool, Field(description="a boolean")] = False
    version: Annotated[str | None, Field(description="a string")] = None
    expected: Annotated[float | None, Field(gt=0, description="a positive number of seconds")] = (
        None
    )
    inputs: Annotated[Files, Field(description=FILES)] = None
    outputs: Annotated[Files, Field(description=FILES)] = None
    queue_timeout: Annotated[
        float | None, Field(gt=0, description="a positive number of seconds")
    ] = None

    @property
    def retry_policy(self) -> RetryPolicy:
        """How often a failed attempt is repeated, and after which pauses."""
        return RetryPolicy(self.retries, self.backoff)

    @classmethod
    def refuse(cls, fault: Fault) -> Exception:
        """Return a TypeError for an unknown option, as Python raises for an unknown argument."""
        kind = TypeError if fault.unknown or fault.field == "service" else ValueError
        return kind(fault.message)


class HandlesEvents(Protocol):
    """The interface of `StateMachine` that components use.

    Attributes:
        ended: A plain future that is done.
    """

    ended: asyncio.Future[None]

    def launch(self, component: Component) -> None:
        """Start an attempt; all dependencies are done."""

    def handle(self, component: Component, event: Event, outcome: Any = None) -> bool:
        """Apply an event; False if the component's stage does not allow it."""

    def release(self, component: Component) -> None:
        """Forget a component that has ended."""


class TaskQueue(Protocol):
    """The interface of `BackendQueue` that the state machine uses.

    Attributes:
        reports_running: Whether the backend reports the start of every function and executable.
        carries_contexts: Whether the backend runs functions in the context of their calls.
        keeps_history: Whether the backend records its tasks, and does not count attempts.
        keeps_results: Whether the backend may keep large results until they are fetched.
    """

    reports_running: bool
    keeps_history: bool
    carries_contexts: bool
    keeps_results: bool

    def cancel(self, component: Component) -> None:
        """Ask the backend to stop a component."""

    def time_out(self, component: Component, error: TaskTimeoutError) -> None:
        """Ask the backend to stop a component that took too long."""

    def stop_when_accepted(
        self, component: Component, error: TaskTimeoutError | None = None
    ) -> None:
        """Ask the backend to stop a component that ended before its `submit_tasks` returned."""


class Timers:
    """The timers of one attempt, one attribute for each purpose.

    Attributes:
        timeout: The attempt takes too long.
        pause: The next attempt is due.
        confirmation: The backend takes too long to confirm that it stopped the task.
        body_stop: The interrupted body takes too long to end.
        queue: The attempt waits too long for its start.
        waited_too_long: Whether it did.
    """

    __slots__ = ("body_stop", "confirmation", "pause", "queue", "timeout", "waited_too_long")

    def __init__(self) -> None:
        self.queue: asyncio.TimerHandle | None = None
        self.waited_too_long = False
        self.timeout: asyncio.TimerHandle | None = None
        self.pause: asyncio.TimerHandle | None = None
        self.confirmation: asyncio.TimerHandle | None = None
        self.body_stop: asyncio.TimerHandle | None = None

    def stop(self) -> None:
        """Stop all timers."""
        for timer in (
            self.timeout,
            self.pause,
            self.confirmation,
            self.body_stop,
            self.queue,
        ):
            if timer is not None:
                timer.cancel()


class Component(asyncio.Future[Any]):
    """One call of a decorated function, and the future of its result.

    Its items `type`, `future` and `description` are those of the stock engine's entries.

    Attributes:
        uid: Unique in this process.
        state: The state in the terms of the stock engine: "PENDING", "RUNNING", "DONE", "FAILED"
            or "CANCELLED". The engine itself reads `stage` only.
        description: The dict that its backend gets.
        machine: Its state machine, until it has ended.
        kind: "function", "executable", "prompt", "block" or "ai".
        options: The options of its decorator.
        function: The decorated function.
        arguments: The `(args, kwargs)` of the call, if they contain futures, until no attempt
            needs them.
        dependencies: The futures among the arguments.
        dependents: The components of its engine that wait for its end. None: there are none.
        waiting: The number of dependencies that are not done.
        stage: Its stage.
        attempt: The number of attempts that failed.
        job: The asyncio task that runs its body, if there is one.
        queue: The queue of its backend. None: it has not been queued.
        timers: The timers of the current attempt. None: no timer was started.
        cancel_message: The argument of `cancel`.
        kept: The result that its backend keeps. None: it keeps none.
        uses_kept: Whether its arguments stand for results that its backend keeps.
        siblings: The unfinished components of the block that called it. None: no block did.
        context: The context of its call, in which its body or its function runs. None: a function
            task without context variables, or whose backends run functions in processes.
        members: The unfinished components called by its body. None: it has no body.
        call: Its call in the journal. None: it is not journaled, or not yet.
        conversation: Its conversation with a model that calls tools. None: it has none.
    """

    # One object per call, with slots: if many tasks are pending, the garbage collector takes most
    # of the time, and its time grows with the number of objects.
    __slots__ = (
        "arguments",
        "attempt",
        "context",
        "dependencies",
        "dependents",
        "description",
        "function",
        "kind",
        "machine",
        "options",
        "queue",
        "stage",
        "state",
        "uid",
        "waiting",
    )

    # Most tasks have none of these. Of the others they are in the dict that every future may have.
    job: asyncio.Task[None] | None = None
    timers: Timers | None = None
    cancel_message: Any = None
    kept: KeptResult | None = None
    uses_kept = False
    siblings: set[Component] | None = None
    members: set[Component] | None = None
    call: Any = None
    conversation: Any = None

    def __init__(
        self,
        machine: HandlesEvents,
        loop: asyncio.AbstractEventLoop,
        kind: str,
        function: Callable[..., Any],
        options: Options,
        description: dict[str, Any],
    ) -> None:
        super().__init__(loop=loop)
        self.uid: str = description["uid"]
        self.state = "PENDING"
        self.description = description
        self.machine: HandlesEvents | None = machine
        self.kind = kind
        self.function = function
        self.options = options
        self.arguments: tuple[Any, ...] = ()
        self.dependencies: Sequence[asyncio.Future[Any]] = ()
        self.dependents: list[Component] | None = None
        self.waiting = 0
        self.stage = FIRST_STAGE
        self.attempt = 0
        self.queue: TaskQueue | None = None
        self.context = None if kind == FUNCTION else copy_context()

    def __repr__(self) -> str:
        # As a future, such as "<Component pending>", with its uid and its name.
        return f"<Component {self.uid} {self.name} {super().__repr__().partition(' ')[2]}"

    def __getitem__(self, key: str) -> Any:
        if key == "future":
            return self
        if key not in ("description", "type"):
            raise KeyError(key)
        return getattr(self, key)

    @property
    def type(self) -> str:
        """Its type, "task" or "block"."""
        return BLOCK if self.kind == BLOCK else TASK

    @property
    def name(self) -> str:
        """The name of its function."""
        name: str = self.description["name"]
        return name

    @property
    def task(self) -> dict[str, Any]:
        """The description of a task; a block has no such attribute."""
        return self._description_as(TASK)

    @property
    def block(self) -> dict[str, Any]:
        """The description of a block; a task has no such attribute."""
        return self._description_as(BLOCK)

    def _description_as(self, comp_type: str) -> dict[str, Any]:
        if self.type != comp_type:
            raise AttributeError(f"'{self.name}' is a {self.type} and has no '{comp_type}'")
        return self.description

    @property
    def id(self) -> str:
        """The number in its uid."""
        return self.uid.rpartition(".")[2]

    def handle(self, event: Event, outcome: Any = None) -> bool:
        """Apply an event.

        Args:
            event: What happened.
            outcome: The value of SUCCEED, or the error of FAIL and FAIL_DEPENDENCY.

        Returns:
            False if the stage does not allow the event; then nothing changes.
        """
        machine = self.machine
        return machine is not None and machine.handle(self, event, outcome)

    def current_attempt(self) -> Attempt | None:
        """Return its current attempt; None if a failure is not repeated."""
        return self.options.retry_policy.attempt(self.uid, self.attempt)

    def cancel(self, msg: Any | None = None) -> bool:
        """Cancel the work.

        A component that no backend has is cancelled at once. Otherwise its backend is asked to
        stop it, and the future is cancelled when the backend confirms, refuses, or takes too long.

        Returns:
            False if the component has ended.

        Raises:
            EngineError: The loop of its engine is closed; only a shutdown can cancel it.
        """
        if self.done() or self.machine is None:
            return super().cancel(msg)
        if self.get_loop().is_closed():
            raise loop_error(f"'{self.name}' cannot be cancelled", self.get_loop())
        self.cancel_message = msg
        self.machine.handle(self, Event.CANCEL)
        return True

    def keep(self, result: KeptResult) -> bool:
        """Become a `KeptComponent`.

        Returns:
            Whether somebody waits for the result.
        """
        self.kept = result
        self.arguments = self.dependencies = ()
        self.__class__ = KeptComponent  # so that other components need no check
        return bool(getattr(self, "_callbacks", None))  # which the `repr` of a future shows, too

    def end_kept(self) -> None:
        """Become an ordinary component again, which is about to end.

        Its state machine has released it already, when its task ended.
        """
        self.kept = self.machine = None
        self.__class__ = Component

    def end_cancelled(self) -> None:
        """Cancel the future itself, even if the work does not stop."""
        try:
            super().cancel(self.cancel_message)
        except RuntimeError:  # a closed loop cannot call those who wait
            if not self.get_loop().is_closed():
                raise
        self._release()

    def __await__(self) -> Generator[Any, None, Any]:
        if self.machine is not None:
            loop = self.get_loop()
            if loop is not asyncio.get_running_loop():
                raise loop_error(f"'{self.name}' cannot be awaited here", loop)
            yield _Waiter(self, self.machine.ended)
        try:
            return self.result()
        finally:
            del self  # else its exception would refer to it, through this frame

    __iter__ = __await__

    def set_result(self, result: Any) -> None:
        """End the component with a result."""
        super().set_result(result)
        self._release()

    def set_exception(self, exception: Any) -> None:
        """End the component with an exception."""
        super().set_exception(exception)
        self._release()

    def _release(self) -> None:
        # A done callback would cost several objects for each pending future.
        machine, self.machine = self.machine, None
        if machine is not None:
            machine.release(self)
        self.queue = self.context = None
        if self.members is not None:
            self.members = None
        if self.timers is not None:
            self.timers = None
        self.arguments = self.dependencies = ()


class KeptComponent(Component):
    """A component whose task is done and whose backend keeps the result.

    The result is fetched when the program waits for the component or looks at it. As a future the
    component is done when the result is there. Later tasks of the same backend do without.
    """

    __slots__ = ()

    # The methods do not use `super()`: the class may change while another thread is in one.

    def _ask(self) -> None:
        loop = self.get_loop()
        if asyncio._get_running_loop() is loop:
            self.handle(Event.FETCH)
        else:  # in another thread, or between two runs of the loop
            with suppress(RuntimeError):  # it is closed
                loop.call_soon_threadsafe(self.handle, Event.FETCH)

    def done(self) -> bool:
        """Ask for the result; return whether it is there."""
        self._ask()
        return asyncio.Future.done(self)

    def result(self) -> Any:
        """Ask for the result, and return it if it is there."""
        self._ask()
        return asyncio.Future.result(self)

    def exception(self) -> BaseException | None:
        """Ask for the result, and return the exception if it could not be fetched."""
        self._ask()
        return asyncio.Future.exception(self)

    def add_done_callback(
        self, callback: Callable[[Any], object], /, *, context: Context | None = None
    ) -> None:
        """Ask for the result, and call a function when it is there."""
        self._ask()
        asyncio.Future.add_done_callback(self, callback, context=context)

    def cancel(self, msg: Any | None = None) -> bool:
        """Drop the result. Tasks that use it already are not affected."""
        self.cancel_message = msg
        return self.handle(Event.CANCEL)


class _Waiter:
    """What an asyncio task waits for if it awaits a component.

    It wakes the task with a plain future. With a component the task would look up `result` by a
    new string each time (CPython: `task_wakeup` in `_asynciomodule.c`). The interpreter's cache of
    attributes keeps some hundred of these strings. In Python 3.10 and 3.11 they lie between the
    objects of tasks, whose memory then cannot be returned to the system.

    Args:
        component: The component.
        ended: A plain future that is done.
    """

    __slots__ = ("_asyncio_future_blocking", "_component", "_ended", "_wake")

    def __init__(self, component: Component, ended: asyncio.Future[None]) -> None:
        self._asyncio_future_blocking = True
        self._component = component
        self._ended = ended

    def __repr__(self) -> str:
        # Without the component's own `repr`, which includes its callbacks.
        return f"<await of {self._component.uid} {self._component.name}>"

    def get_loop(self) -> asyncio.AbstractEventLoop:
        return self._component.get_loop()

    def cancel(self, msg: Any | None = None) -> bool:
        return self._component.cancel(msg)

    def add_done_callback(
        self, wake: Callable[[asyncio.Future[None]], object], *, context: Context
    ) -> None:
        self._wake = wake
        self._component.add_done_callback(self, context=context)

    def __call__(self, _: Component) -> None:
        self._wake(self._ended)


def is_pending(future: asyncio.Future[Any]) -> bool:
    """Return whether a future waits for a task, without asking for a kept result."""
    return type(future) is not KeptComponent and not future.done()


def loop_error(fault: str, loop: asyncio.AbstractEventLoop) -> EngineError:
    """Return the error about the use of an engine on another loop than its own.

    Args:
        fault: What cannot be done.
        loop: The loop of the engine.
    """
    closed = " is closed; create an engine in each asyncio.run()"
    other = " is another one; use an engine only on the loop that created it"
    return EngineError(
        f"{fault}: the engine's event loop {loop!r}{closed if loop.is_closed() else other}"
    )


def description_of(future: asyncio.Future[Any]) -> dict[str, Any] | None:
    """Return the description of a component of any engine; None for another future."""
    if isinstance(future, Component):
        return future.description
    description = getattr(future, "task", None) or getattr(future, "block", None)
    return description if isinstance(description, dict) else None
