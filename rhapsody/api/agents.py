"""Agents of a session: AI tasks whose model calls tools, which are tasks of the session."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any, Protocol

from rhapsody.api.tasks import AITask, ComputeTask
from rhapsody.api.tasks.tools import example_call, make_agent
from rhapsody.backends.protocol import PROMPT, TaskStates, task_kind
from rhapsody.errors import (
    TaskCancelledError,
    TaskValidationError,
    UnsupportedTaskError,
    WalltimeReached,
    message_of,
)
from rhapsody.inference.agents.agent import Conversation
from rhapsody.inference.agents.tools import is_schema
from rhapsody.sampling import SAMPLING_FIELDS

__all__ = ["SessionAgents", "check_tools", "is_agent", "is_turn"]

AnyTask = MutableMapping[str, Any]

TURN_FIELDS = SAMPLING_FIELDS | {"adapter", "cache", "journal", "model", "priority", "version"}
"""Fields that the task of a turn has from the agent's."""

TURN_RESULTS = (
    "finish_reason",
    "message",
    "model_version",
    "parsed",
    "response",
    "response_logprobs",
    "return_value",
    "stdout",
    "usage",
)


class Owner(Protocol):
    """The submissions of a session."""

    def on_state(self, task: AnyTask, state: str) -> None:
        """Record the state of an agent."""

    async def cancel(self, uid: str) -> bool:
        """Cancel the task of a turn or of a call."""


def is_agent(task: Mapping[str, Any]) -> bool:
    """Return whether a task is an AI task whose model may call functions."""
    return bool(task.get("tools")) and task_kind(task) == PROMPT and not is_turn(task)


def is_turn(task: Mapping[str, Any]) -> bool:
    """Return whether a task is one response to an agent: its tools are schemas."""
    tools: Any = task.get("tools")
    return bool(tools) and is_schema(tools[0])


def check_tools(task: AnyTask, backend_for: Callable[[AnyTask], Any]) -> None:
    """Check that the session has backends for an agent's tools.

    Args:
        task: The agent.
        backend_for: Returns the backend of a task.

    Raises:
        TaskValidationError: The message names the tool.
    """
    for tool in task["tools"]:
        call = example_call(tool)
        if call is None:
            continue
        try:
            backend_for(call)
        except TaskValidationError as error:
            name = getattr(call["function"], "__name__", "?")
            raise TaskValidationError(
                task["uid"],
                f"the tool '{name}': {str(error).partition(': ')[2]}",
                "tools",
                tool,
            ) from None


class SessionAgents:
    """The agents of a session that run now.

    Args:
        submit: The session's `submit_tasks`, which is held weakly. None: no agent can run.

    Attributes:
        waits: By uid, the uids of the turns and the calls that an agent waits for.
    """

    def __init__(self, submit: Callable[[Any], Any] | None = None) -> None:
        self._submit = (lambda: None) if submit is None else weakref.WeakMethod(submit)
        self.waits: dict[str, set[str]] = {}
        self._running: dict[str, asyncio.Task[None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._conversations: dict[str, Conversation] = {}
        """By uid, from the first attempt of an agent to its end."""

    def start(self, owner: Owner, task: AnyTask, backend: Any) -> None:
        """Run an agent, and report its states.

        Args:
            owner: Gets the reports.
            task: The agent.
            backend: Responds.
        """
        running = asyncio.get_running_loop().create_task(self._run(owner, task, backend))
        self._running[task["uid"]] = running
        self._tasks.add(running)
        running.add_done_callback(self._tasks.discard)

    def stop(self, uid: str) -> asyncio.Task[None] | None:
        """Stop an agent without a report; return what runs it until it has stopped.

        Args:
            uid: The agent's. None is returned unless it runs.
        """
        self._conversations.pop(uid, None)
        self.waits.pop(uid, None)
        running = self._running.pop(uid, None)
        if running is not None:
            # After its first step: a coroutine cancelled before that never runs.
            running.get_loop().call_soon(running.cancel)
        return running

    async def wait_stopped(self) -> None:
        """Wait for the agents that were stopped."""
        if self._tasks:
            await asyncio.wait(list(self._tasks))

    def _report(self, owner: Owner, task: AnyTask, state: str, error: Any = None) -> None:
        if self._running.get(task["uid"]) is not asyncio.current_task():
            return  # it was stopped
        if state in TaskStates.terminal_states:
            del self._running[task["uid"]]
        if error is not None:
            task["exception"] = error
            task["stderr"] = message_of(error)
        owner.on_state(task, state)

    async def _run(self, owner: Owner, task: AnyTask, backend: Any) -> None:
        if self._running.get(task["uid"]) is not asyncio.current_task():
            return  # it was stopped before it began
        submit = self._submit()
        if submit is None:  # the session is no longer referenced
            self._report(owner, task, TaskStates.CANCELED)
            return

        waits = self.waits.setdefault(task["uid"], set())

        async def run(inner: AITask | ComputeTask) -> Any:
            waits.add(inner["uid"])
            try:
                [future] = await submit(inner)
                await asyncio.shield(future)
            except asyncio.CancelledError:
                await owner.cancel(inner["uid"])
                raise
            finally:
                waits.discard(inner["uid"])
            return inner.result()

        async def respond(fields: Mapping[str, Any]) -> dict[str, Any]:
            turn = _turn_of(fields, backend.name)
            await run(turn)
            if turn.get("message") is None:
                raise UnsupportedTaskError(
                    task["uid"], f"backend '{backend.name}' does not support 'tools'"
                )
            return {name: turn[name] for name in TURN_RESULTS if name in turn}

        try:
            agent = make_agent(task, run)
            conversation = self._conversations.setdefault(task["uid"], Conversation())
            task.update(messages=conversation.messages, tool_calls=conversation.calls)
            self._report(owner, task, TaskStates.RUNNING)
            result = await agent.run(task, respond, conversation)
        except asyncio.CancelledError:
            self._report(owner, task, TaskStates.CANCELED)
        except TaskCancelledError:  # a turn was cancelled
            self._report(owner, task, TaskStates.CANCELED)
        except WalltimeReached as error:
            self._report(owner, task, TaskStates.CANCELED, error)
        except Exception as error:
            self._report(owner, task, TaskStates.FAILED, error)
        else:
            if self._running.get(task["uid"]) is asyncio.current_task():
                task.update(result)
            self._report(owner, task, TaskStates.DONE)


def _turn_of(fields: Mapping[str, Any], backend: str) -> AITask:
    """Return the task of one response of the model."""
    given = {name: fields[name] for name in TURN_FIELDS if fields.get(name) is not None}
    turn = AITask(fields["prompt"], backend=backend, **given)
    turn["tool_choice"] = fields["tool_choice"]
    turn["tools"] = fields["tools"]  # schemas, which an AITask of the user must not have
    return turn
