"""Options of an ai_task: on the decorator, in a call, in a returned AITask."""

from typing import Any

import pytest

from rhapsody import AITask
from rhapsody.api import TaskValidationError
from tests.support.engines import Echo

pytestmark = pytest.mark.asyncflow

OPTIONS = {"temperature": 0.5, "system_prompt": "be brief", "timeout": 5, "stop": ["."]}


def options_of(asked: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in asked.items() if name not in ("uid", "prompt")}


async def test_options_on_decorator(flow: Any, ai: Echo) -> None:
    @flow.ai_task(**OPTIONS)
    async def ask() -> str:
        return "hi"

    await ask()
    assert options_of(ai.asked[0]) == OPTIONS


async def test_options_in_call(ask: Any, ai: Echo) -> None:
    await ask("hi", **OPTIONS)
    assert options_of(ai.asked[0]) == OPTIONS


async def test_options_in_task_description(ask: Any, ai: Echo) -> None:
    await ask("hi", task_description=OPTIONS)
    assert options_of(ai.asked[0]) == OPTIONS


async def test_options_in_default_task_description(flow: Any, ai: Echo) -> None:
    @flow.ai_task
    async def ask(task_description: Any = {"temperature": 0.5}) -> str:  # noqa: B006
        return "hi"

    await ask()
    assert options_of(ai.asked[0]) == {"temperature": 0.5}


async def test_option_of_call_overrides_decorator(flow: Any, ai: Echo) -> None:
    @flow.ai_task(temperature=0.1, seed=1)
    async def ask() -> str:
        return "hi"

    await ask(temperature=0.9)
    await ask()
    assert [options_of(asked) for asked in ai.asked] == [
        {"temperature": 0.9, "seed": 1},
        {"temperature": 0.1, "seed": 1},
    ]


async def test_none_in_call_unsets_option_of_decorator(flow: Any, ai: Echo) -> None:
    @flow.ai_task(temperature=0.1)
    async def ask() -> str:
        return "hi"

    await ask(temperature=None)
    assert ai.asked[0].get("temperature") is None


async def test_parameter_of_function_shadows_option_of_same_name(flow: Any, ai: Echo) -> None:
    @flow.ai_task(temperature=0.1)
    async def weather(place: str, temperature: int) -> str:
        return f"{place} at {temperature} degrees"

    assert await weather("home", temperature=30) == "<home at 30 degrees>"
    assert ai.asked[0]["temperature"] == 0.1


async def test_shadowed_option_can_be_given_in_task_description(flow: Any, ai: Echo) -> None:
    @flow.ai_task
    async def load(model: str) -> str:
        return model

    await load(model="ising", task_description={"model": "echo"})
    assert (ai.asked[0]["prompt"], ai.asked[0]["model"]) == ("ising", "echo")


WRONG: list[tuple[dict[str, Any], type[Exception], str]] = [
    (
        {"temprature": 1},
        TypeError,
        "unknown ai_task option 'temprature'; did you mean 'temperature'",
    ),
    ({"nonsense": 1}, TypeError, r"unknown ai_task option 'nonsense'; known: adapter, backend, "),
    ({"temperature": -1}, TaskValidationError, "'temperature' must be .* got -1"),
    ({"timeout": "soon"}, TaskValidationError, "'timeout' must be .* got 'soon'"),
    ({"backend": 7}, TaskValidationError, "'backend' must be the name of a backend"),
    ({"on_text": "print"}, TaskValidationError, "'on_text' must be a plain function"),
    ({"on_text": print, "n": 2}, TaskValidationError, "'on_text' needs one response to one prompt"),
]


@pytest.mark.parametrize(("options", "error", "words"), WRONG)
async def test_wrong_option_is_rejected_at_decoration(
    flow: Any, options: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        flow.ai_task(**options)


@pytest.mark.parametrize(("options", "error", "words"), WRONG)
async def test_wrong_option_in_task_description_is_rejected_at_call(
    ask: Any, options: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        ask("hi", task_description=options)


@pytest.mark.parametrize(("options", "error", "words"), WRONG[2:])
async def test_wrong_option_is_rejected_at_call(
    ask: Any, options: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        ask("hi", **options)


async def test_task_description_must_be_dict(flow: Any, ask: Any) -> None:
    with pytest.raises(TypeError, match="'task_description' must be a dict of options, got str"):
        ask("hi", task_description="hot")


PLACES = ["decorator", "call", "AITask"]


@pytest.mark.parametrize("kind", ["ours"])  # the stock engine repeats nothing
@pytest.mark.parametrize("where", PLACES)
async def test_on_text_with_retries_is_rejected(flow: Any, kind: str, where: str) -> None:
    on: dict[str, dict[str, Any]] = {
        place: {"on_text": print} if place == where else {} for place in PLACES
    }

    async def ask() -> Any:
        return AITask("hi", **on["AITask"])

    async def asked() -> Any:
        made = flow.ai_task(retries=1, backoff=0, **on["decorator"])(ask)
        return await made(**on["call"])

    with pytest.raises(
        TypeError, match="a retry would repeat the text that 'on_text' has already received"
    ):
        await asked()


async def test_unknown_keyword_fails_task(ask: Any) -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'nonsense'"):
        await ask("hi", nonsense=1)
