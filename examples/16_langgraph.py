"""A LangGraph agent on a served model: its tools are tasks of a session.

LangGraph keeps the loop: the model responds, calls tools, gets their results, and responds again.
Rhapsody serves the model with the OpenAI API, and runs each call of a tool as a task, here on
processes of this machine. The embedded model is not a real model: it calls each tool whose name
stands in the question.

Needs `pip install langgraph langchain-openai`; pass the URL of another server and the name of its
model to use a real one. Takes a few seconds.

    python examples/16_langgraph.py
    python examples/16_langgraph.py http://localhost:8000/v1 Qwen/Qwen2.5-7B-Instruct
"""

import asyncio
import math
import os
import sys

try:
    import httpx
    from langchain_core.tools import tool
    from langchain_openai import ChatOpenAI
    from langgraph.graph import START, MessagesState, StateGraph
    from langgraph.prebuilt import ToolNode, tools_condition
except ImportError:
    sys.exit(
        f"This example needs LangGraph: {sys.executable} -m pip install langgraph langchain-openai"
    )

from rhapsody import ComputeTask, Session
from rhapsody.backends import ConcurrentExecutionBackend, DragonVllmInferenceBackend

QUESTION = "Use period for a pendulum of 2.5 m, and machine to say where you run."


def swing(length: float) -> str:
    """Compute a period, in a worker process."""
    return f"{math.tau * math.sqrt(length / 9.81):.3f} s, computed by process {os.getpid()}"


async def ask(session: Session, url: str, model: str, http: httpx.AsyncClient) -> None:
    @tool
    async def period(length: float) -> str:
        """Return how long a pendulum of a length in metres takes to swing there and back."""
        return (await session.submit(swing, length)).return_value

    @tool
    async def machine() -> str:
        """Return the operating system of the machine."""
        task = ComputeTask(executable="uname")
        await session.submit_tasks(task)
        await task
        return task.stdout.strip()

    served = ChatOpenAI(
        base_url=url, api_key="any", model=model, max_tokens=40, http_async_client=http
    )
    chat = served.bind_tools([period, machine])

    async def respond(state: MessagesState) -> dict:
        return {"messages": [await chat.ainvoke(state["messages"])]}

    graph = StateGraph(MessagesState)
    graph.add_node("model", respond)
    graph.add_node("tools", ToolNode([period, machine]))
    graph.add_edge(START, "model")
    graph.add_conditional_edges("model", tools_condition)
    graph.add_edge("tools", "model")
    result = await graph.compile().ainvoke({"messages": [("user", QUESTION)]})
    for message in result["messages"]:
        for call in getattr(message, "tool_calls", ()):
            print(f"The model calls {call['name']} {call['args']}")
        if message.type == "tool":
            print(f"  {message.name} returns {message.content}")
    print(f"Answer: {result['messages'][-1].content}")
    print(f"Tasks: {session.get_statistics()['tasks']}")


async def main() -> None:
    backend = DragonVllmInferenceBackend(
        None, "embedded", engine="embedded", launcher="local", host="127.0.0.1", port=0
    )
    async with (
        Session([ConcurrentExecutionBackend("process")]) as session,
        httpx.AsyncClient() as http,
    ):
        if len(sys.argv) > 2:
            await ask(session, sys.argv[1], sys.argv[2], http)
            return
        async with backend:
            await ask(session, f"{backend.get_endpoint()}/v1", "embedded", http)


if __name__ == "__main__":
    asyncio.run(main())
