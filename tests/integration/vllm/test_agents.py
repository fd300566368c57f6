"""An agent on a real vLLM server, which reads the calls of tools in the model's text.

The model has random weights, so it calls a tool only because the server restricts its text.
"""

from typing import Any, Literal

from rhapsody import AITask, ComputeTask, Session
from rhapsody.backends import ConcurrentExecutionBackend
from rhapsody.backends import DragonVllmInferenceBackend as Backend

ASKED: dict[str, Any] = {"temperature": 0, "max_tokens": 60, "tool_choice": "paint"}


def paint(colour: Literal["red", "green"], twice: bool) -> dict[str, Any]:
    """Paint something.

    Args:
        colour: Its colour.
        twice: Whether to paint it twice.
    """
    return {"colour": colour, "twice": twice}


async def test_session_runs_the_calls_of_the_model(served: Backend) -> None:
    compute = ConcurrentExecutionBackend("thread")
    session = Session([compute, served])  # not closed: other tests use the server
    task = AITask("Paint it.", tools=[ComputeTask(function=paint, retries=1)], **ASKED)
    await session.submit_tasks(task)
    await task
    roles = [message["role"] for message in task.messages]
    assert roles == ["user", "assistant", "tool", "assistant"]
    [call] = task.tool_calls
    assert call["result"]["colour"] in ("red", "green")
    assert call["result"]["twice"] in (True, False)
    [asked] = task.messages[1]["tool_calls"]
    assert task.messages[2]["tool_call_id"] == call["id"] == asked["id"]
    assert task.response == task.messages[-1]["content"]
    assert session.get_statistics()["backends"]["concurrent"]["tasks"] == {"DONE": 1}
    await compute.shutdown()
    del session
