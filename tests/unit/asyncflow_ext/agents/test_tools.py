"""Tools of an engine: decorated functions are called on the loop, plain ones in a thread."""

import threading
from typing import Any

from asyncflow_ext.agents.tools import make_tool
from asyncflow_ext.decorators import make_decorator


async def test_decorated_sync_function_is_called_on_the_loop() -> None:
    calls = []

    def register(*args: Any) -> Any:
        calls.append(threading.get_ident())

        async def result() -> str:
            return "done"

        return result()

    @make_decorator(register, lambda options: None, takes_sync=True)
    def work(n: int) -> str:
        raise AssertionError

    assert await make_tool(work).call('{"n": 1}') == "done"
    assert calls == [threading.get_ident()]


async def test_plain_function_runs_in_a_thread() -> None:
    def plain(n: int, workflow_id: str = "") -> int:
        return threading.get_ident()

    tool = make_tool(plain)
    assert await tool.call('{"n": 1}') != threading.get_ident()
    assert list(tool.schema["function"]["parameters"]["properties"]) == ["n"]
