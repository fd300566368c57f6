"""Values into an ai_task, and its response into other tasks."""

import asyncio
from typing import Any

import pytest

from tests.support.engines import Echo

pytestmark = pytest.mark.asyncflow


async def test_the_result_is_the_response(ask: Any) -> None:
    assert await ask("why") == "<why?>"


async def test_the_body_gets_the_value_of_a_function_task(ask: Any, three: Any) -> None:
    assert await ask(three()) == "<3?>"


async def test_values_come_by_position_and_by_keyword(flow: Any, three: Any) -> None:
    @flow.ai_task
    async def both(a: int, *, b: int) -> str:
        return f"{a} {b}"

    assert await both(three(), b=three()) == "<3 3>"


async def test_futures_inside_containers_are_values_too(ask: Any, three: Any) -> None:
    future = three()
    assert await ask([1, {"a": (future, [future])}]) == "<[1, {'a': (3, [3])}]?>"


async def test_what_a_list_of_futures_gets_after_the_call_is_no_part_of_it(ask: Any) -> None:
    answers = [ask("a")]
    for _ in range(2):
        answers.append(ask(answers))
    first, second = "<a?>", "<['<a?>']?>"
    assert await asyncio.wait_for(asyncio.gather(*answers), 20) == [
        first,
        second,
        f"<{[first, second]}?>",
    ]


async def test_arguments_without_futures_are_handed_over_as_they_are(flow: Any, ai: Echo) -> None:
    given, seen = {"rows": [1, 2]}, []

    @flow.ai_task
    async def keep(rows: Any) -> str:
        seen.append(rows)
        return "x"

    await keep(given)
    assert seen[0] is given


async def test_the_body_gets_the_output_of_an_executable_that_was_made_just_before(
    flow: Any, ask: Any
) -> None:
    @flow.executable_task
    async def hello() -> str:
        await asyncio.sleep(0.01)  # its registration goes on after the call
        return "/bin/echo hello"

    assert await ask([hello()]) == "<['hello\\n']?>"


async def test_the_body_gets_the_response_of_another_ai_task(ask: Any) -> None:
    assert await ask(ask("a")) == "<<a?>?>"


async def test_the_body_gets_the_result_of_a_block(flow: Any, ask: Any, three: Any) -> None:
    @flow.block
    async def double() -> int:
        return 2 * int(await three())

    assert await ask(double()) == "<6?>"


async def test_the_body_gets_the_result_of_a_plain_future(ask: Any) -> None:
    plain = asyncio.get_running_loop().create_future()
    asked = ask({"a": plain})
    plain.set_result("later")
    assert await asked == "<{'a': 'later'}?>"


async def test_the_body_gets_the_result_of_an_asyncio_task(ask: Any) -> None:
    async def other() -> str:
        return "other"

    assert await ask(asyncio.ensure_future(other())) == "<other?>"


async def test_the_body_gets_the_result_of_something_done_long_ago(ask: Any, three: Any) -> None:
    future = three()
    await future
    assert await ask(future) == "<3?>"


async def test_a_function_task_gets_the_response(flow: Any, ask: Any) -> None:
    @flow.function_task
    async def length(response: str) -> int:
        return len(response)

    assert await length(ask("why")) == 6


async def test_an_executable_waits_for_the_response(flow: Any, ask: Any, ai: Echo) -> None:
    @flow.executable_task
    async def after(_response: Any) -> str:
        return "/bin/echo after"

    assert await after(ask("why")) == "after\n"
    assert ai.prompts == ["why?"]


async def test_simulate_summarise_decide(flow: Any, ask: Any) -> None:
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
