"""ai_tasks in a dry run."""

from typing import Any

import pytest

from rhapsody.inference.kinds import Classification
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
        (("a", "b"), {"kind": "score"}, float),
        ("a", {"kind": "classify"}, Classification),
        (["a", "b"], {"kind": "classify"}, [Classification, Classification]),
    ],
)
async def test_dry_run_returns_placeholder_in_shape_of_response(
    make: MakeFlow, prompt: Any, options: dict[str, Any], shape: Any
) -> None:
    flow = await make(dry_run=True)

    @flow.ai_task(**options)
    async def ask() -> Any:
        return prompt

    assert shape_of(await ask()) == shape


def shape_of(value: Any) -> Any:
    return [shape_of(item) for item in value] if isinstance(value, list) else type(value)


async def test_dry_run_calls_function_and_needs_no_backend(make: MakeFlow) -> None:
    flow = await make(dry_run=True)
    calls = []

    @flow.ai_task(backend="gpu", model="huge")
    async def ask(what: str) -> str:
        calls.append(what)
        return what

    assert isinstance(await ask("hi"), str)
    assert calls == ["hi"]


async def test_dry_run_rejects_unknown_option(make: MakeFlow) -> None:
    flow = await make(dry_run=True)
    with pytest.raises(TypeError, match="did you mean 'temperature'"):
        flow.ai_task(temprature=1)
