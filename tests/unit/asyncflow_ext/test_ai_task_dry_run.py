"""ai_tasks in a dry run."""

from typing import Any

import pytest

from tests.support.engines import MakeFlow

pytestmark = pytest.mark.asyncflow


@pytest.mark.parametrize(
    ("prompt", "options", "shape"),
    [
        ("hi", {}, str),
        (["a", "b"], {}, [str, str]),
        ([{"role": "user", "content": "hi"}], {}, str),
        ("hi", {"n": 2}, [str, str]),
        (["a", "b"], {"n": 2}, [[str, str], [str, str]]),
    ],
)
async def test_a_dry_run_gives_a_stand_in_of_the_right_shape(
    make: MakeFlow, prompt: Any, options: dict[str, Any], shape: Any
) -> None:
    flow = await make(dry_run=True)

    @flow.ai_task(**options)
    async def ask() -> Any:
        return prompt

    assert shape_of(await ask()) == shape


def shape_of(value: Any) -> Any:
    return [shape_of(item) for item in value] if isinstance(value, list) else type(value)


async def test_a_dry_run_runs_the_body_and_asks_for_no_backend(make: MakeFlow) -> None:
    flow = await make(dry_run=True)
    bodies = []

    @flow.ai_task(backend="gpu", model="huge")
    async def ask(what: str) -> str:
        bodies.append(what)
        return what

    assert isinstance(await ask("hi"), str)
    assert bodies == ["hi"]


async def test_a_dry_run_still_refuses_a_wrong_option(make: MakeFlow) -> None:
    flow = await make(dry_run=True)
    with pytest.raises(TypeError, match="no option 'temprature'"):
        flow.ai_task(temprature=1)
