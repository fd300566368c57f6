"""The `ai_task` decorator: the functions that it accepts."""

import functools
from typing import Any

import pytest

pytestmark = pytest.mark.asyncflow


async def test_decorated_function_keeps_name_and_docstring(flow: Any) -> None:
    @flow.ai_task
    async def summarise() -> str:
        """Summarise it."""
        return "hi"

    assert (summarise.__name__, summarise.__doc__) == ("summarise", "Summarise it.")


async def test_partial_of_async_function_can_be_decorated(flow: Any) -> None:
    async def ask(a: str, b: str) -> str:
        return a + b

    assert await flow.ai_task(functools.partial(ask, "x"))("y") == "<xy>"


async def test_method_can_be_decorated(flow: Any) -> None:
    class Critic:
        async def judge(self, work: str) -> str:
            return f"judge {work}"

    assert await flow.ai_task(Critic().judge)("it") == "<judge it>"


@pytest.mark.parametrize("thing", [lambda: "hi", "ask", print], ids=["lambda", "str", "print"])
async def test_decorated_object_must_be_async_function(flow: Any, thing: Any) -> None:
    with pytest.raises(TypeError, match="ai_task takes an async function that returns a prompt"):
        flow.ai_task(thing)
