"""The values that an ai_task gets, and the tasks that get its response."""

import asyncio
from typing import Any

import pytest

from tests.support.engines import Echo

pytestmark = pytest.mark.asyncflow


async def test_result_is_response(ask: Any) -> None:
    assert await ask("why") == "<why?>"


async def test_function_gets_value_of_function_task(ask: Any, three: Any) -> None:
    assert await ask(three()) == "<3?>"


async def test_values_are_passed_by_position_and_keyword(flow: Any, three: Any) -> None:
    @flow.ai_task
    async def both(a: int, *, b: int) -> str:
        return f"{a} {b}"

    assert await both(three(), b=three()) == "<3 3>"


async def test_futures_inside_containers_become_values(ask: Any, three: Any) -> None:
    future = three()
    assert await ask([1, {"a": (future, [future])}]) == "<[1, {'a': (3, [3])}]?>"


async def test_list_changed_after_call_does_not_change_arguments(ask: Any) -> None:
    responses = [ask("a")]
    for _ in range(2):
        responses.append(ask(responses))
    first, second = "<a?>", "<['<a?>']?>"
    assert await asyncio.wait_for(asyncio.gather(*responses), 20) == [
        first,
        second,
        f"<{[first, second]}?>",
    ]


async def test_arguments_without_futures_keep_their_identity(flow: Any, ai: Echo) -> None:
    given, seen = {"rows": [1, 2]}, []

    @flow.ai_task
    async def keep(rows: Any) -> str:
        seen.append(rows)
        return "x"

    await keep(given)
    assert seen[0] is given


async def test_function_gets_output_of_executable(flow: Any, ask: Any) -> None:
    @flow.executable_task
    async def hello() -> str:
        await asyncio.sleep(0)  # the stock engine registers an executable after this
        return "/bin/echo hello"

    assert await ask([hello()]) == "<['hello\\n']?>"


async def test_function_gets_response_of_ai_task(ask: Any) -> None:
    assert await ask(ask("a")) == "<<a?>?>"


async def test_function_gets_result_of_block(flow: Any, ask: Any, three: Any) -> None:
    @flow.block
    async def double() -> int:
        return 2 * int(await three())

    assert await ask(double()) == "<6?>"


async def test_function_gets_result_of_plain_future(ask: Any) -> None:
    plain = asyncio.get_running_loop().create_future()
    asked = ask({"a": plain})
    plain.set_result("later")
    assert await asked == "<{'a': 'later'}?>"


async def test_function_gets_result_of_asyncio_task(ask: Any) -> None:
    async def other() -> str:
        return "other"

    assert await ask(asyncio.ensure_future(other())) == "<other?>"


async def test_function_gets_result_of_finished_future(ask: Any, three: Any) -> None:
    future = three()
    await future
    assert await ask(future) == "<3?>"


async def test_function_task_gets_response(flow: Any, ask: Any) -> None:
    @flow.function_task
    async def length(response: str) -> int:
        return len(response)

    assert await length(ask("why")) == 6


async def test_executable_waits_for_response(flow: Any, ask: Any, ai: Echo) -> None:
    @flow.executable_task
    async def after(_response: Any) -> str:
        return "/bin/echo after"

    assert await after(ask("why")) == "after\n"
    assert ai.prompts == ["why?"]


async def test_chain_of_executable_ai_task_and_function(flow: Any, ask: Any) -> None:
    @flow.function_task
    async def simulate(seed: int) -> dict[str, int]:
        return {"energy": seed * seed}

    @flow.ai_task
    async def summarise(runs: list[dict[str, int]]) -> list[str]:
        return [f"energy {run['energy']}" for run in runs]

    @flow.ai_task
    async def decide(summaries: list[str]) -> str:
        return " or ".join(summaries)

    assert await decide(summarise([simulate(2), simulate(3)])) == "<<energy 4> or <energy 9>>"
