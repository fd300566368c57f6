"""Prompts with the text of a task that had not ended are refused."""

from typing import Any

import pytest

from rhapsody import AITask, ComputeTask
from rhapsody.api import TaskValidationError
from rhapsody.api.tasks.formatted import refuse_formatted_tasks


def formatted(task: Any, state: str) -> str:
    task["state"] = state
    return f"Explain {task}."


PENDING = formatted(ComputeTask(function=pow, uid="inner"), "PENDING")
RUNNING = formatted(AITask("Say (a, b).", uid="inner"), "RUNNING")
AFTER_ENDED = f"{formatted(ComputeTask(function=pow, uid='b'), 'DONE')} {PENDING}"
COMPONENT = "Explain <Component inner topic pending>."
CHAT = [{"role": "user", "content": PENDING}]
PARTS = [{"role": "user", "content": [{"type": "text", "text": PENDING}]}]


@pytest.mark.parametrize(
    "prompt",
    [
        PENDING,
        RUNNING,
        AFTER_ENDED,
        COMPONENT,
        ["a text", PENDING],
        [("query", PENDING)],
        CHAT,
        PARTS,
    ],
    ids=["pending", "running", "after ended", "component", "list", "pair", "chat", "parts"],
)
def test_prompt_with_the_text_of_a_pending_task_is_refused(prompt: Any) -> None:
    with pytest.raises(TaskValidationError, match="had not ended; await that task"):
        refuse_formatted_tasks("outer", prompt, {"inner"}.__contains__)


def test_message_says_what_to_do() -> None:
    with pytest.raises(TaskValidationError) as raised:
        refuse_formatted_tasks("outer", COMPONENT, {"inner"}.__contains__)
    assert str(raised.value) == (
        "Task 'outer': it contains the text '<Component inner topic pending' of a task that had "
        "not ended; await that task and use its result, or pass it to the function as an argument"
    )


@pytest.mark.parametrize(
    "prompt",
    [
        formatted(ComputeTask(function=pow, uid="inner"), "FAILED"),
        formatted(ComputeTask(function=pow, uid="inner"), "FAILED") + PENDING.replace("inner", "b"),
        "Why is <Component inner count_pending finished result=3> odd?",
        "Explain <Component inner topic finished result='2 pending'>.",
        "What does <Future pending> mean, and <Component pending>?",
        "Call Task(1, 2) with state=PENDING.",
        7,
        None,
    ],
    ids=[
        "ended",
        "ended and foreign",
        "ended count",
        "result",
        "future",
        "other text",
        "number",
        "none",
    ],
)
def test_other_prompts_are_accepted(prompt: Any) -> None:
    refuse_formatted_tasks("outer", prompt, {"inner"}.__contains__)


def test_text_of_a_task_of_another_program_is_accepted() -> None:
    refuse_formatted_tasks("outer", PENDING, set[str]().__contains__)
