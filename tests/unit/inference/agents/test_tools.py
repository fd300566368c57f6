"""Tools: schemas from type hints and docstrings, arguments, and results as text."""

import asyncio
import threading
from collections.abc import Callable
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, Field

from rhapsody.inference.agents.tools import Tool, as_text


class Point(BaseModel):
    x: int


def simulate(
    kelvin: int, substance: Literal["water", "ether"] = "water", *, at: Point | None = None
) -> dict[str, Any]:
    """Simulate a substance
    in a box.

    More about it.

    Args:
        kelvin: Temperature,
            in kelvin.
        at (Point): Where.

    Returns:
        substance: not a parameter.
    """
    return {"kelvin": kelvin, "substance": substance, "x": at.x if at else None}


def test_schema_comes_from_hints_and_docstring() -> None:
    function = Tool(simulate).schema["function"]
    assert (function["name"], function["description"]) == (
        "simulate",
        "Simulate a substance in a box.",
    )
    parameters = function["parameters"]
    assert parameters["required"] == ["kelvin"]
    assert parameters["additionalProperties"] is False
    properties = parameters["properties"]
    assert properties["kelvin"]["type"] == "integer"
    assert properties["kelvin"]["description"] == "Temperature, in kelvin."
    assert properties["substance"]["enum"] == ["water", "ether"]
    assert "description" not in properties["substance"]
    assert properties["at"]["description"] == "Where."


async def test_arguments_are_converted_and_result_is_json() -> None:
    assert (
        as_text(await Tool(simulate).call('{"kelvin": 4, "at": {"x": 2}}'))
        == '{"kelvin":4,"substance":"water","x":2}'
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("{", "Invalid JSON"),
        ("{}", "kelvin: Field required"),
        ('{"kelvin": "hot"}', "kelvin: Input should be a valid integer"),
        ('{"kelvin": 1, "colour": 2}', "colour: Extra inputs are not permitted"),
    ],
)
async def test_wrong_arguments_are_named(arguments: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        await Tool(simulate).call(arguments)


async def test_plain_function_runs_in_a_thread_and_async_one_on_the_loop() -> None:
    def plain() -> int:
        return threading.get_ident()

    async def waiting() -> int:
        return threading.get_ident()

    here = threading.get_ident()
    assert await Tool(plain).call("") != here
    assert await Tool(waiting).call("{}") == here


@pytest.mark.parametrize(
    "error", [SystemExit(3), KeyboardInterrupt(), StopIteration(1), asyncio.CancelledError()]
)
async def test_tool_that_would_end_the_program_fails(error: BaseException) -> None:
    def leave() -> None:
        raise error

    with pytest.raises(RuntimeError, match=type(error).__name__):
        await asyncio.wait_for(Tool(leave).call(""), 30)


async def test_async_tool_that_would_end_the_program_fails() -> None:
    async def leave() -> None:
        raise SystemExit(3)

    with pytest.raises(RuntimeError, match="SystemExit: 3"):
        await Tool(leave).call("")


async def test_tool_with_another_way_to_run_gets_the_converted_arguments() -> None:
    async def run(given: dict[str, Any]) -> Any:
        return given

    def work(n: int, uid: str = "") -> None: ...

    tool = Tool(work, run, hidden=("uid",))
    assert await tool.call('{"n": 1}') == {"n": 1}
    assert list(tool.schema["function"]["parameters"]["properties"]) == ["n"]


def test_text_is_a_result_as_it_is() -> None:
    assert as_text('say "hi"') == 'say "hi"'


async def test_result_without_json_is_text() -> None:
    def odd() -> Any:
        return {"what": object, "nan": float("nan")}

    assert "class" in as_text(await Tool(odd).call(""))


@pytest.mark.parametrize("name", ["copy", "json", "schema", "model_config"])
def test_parameter_may_have_any_name(name: str) -> None:
    scope: dict[str, Any] = {}
    exec(f"def work({name}: int): ...", scope)
    assert name in Tool(scope["work"]).schema["function"]["parameters"]["properties"]


def test_annotated_parameter_keeps_its_bounds() -> None:
    def work(n: Annotated[int, Field(ge=1)]) -> None: ...

    assert Tool(work).schema["function"]["parameters"]["properties"]["n"]["minimum"] == 1


def variadic(*args: int) -> None: ...


def unknown(what: threading.Thread) -> None: ...


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (variadic, "named parameters only"),
        (unknown, "must have types with a JSON schema"),
        (lambda: 1, "a function with a name"),
        ("text", "a function with a name"),
    ],
)
def test_impossible_tool_is_refused(function: Callable[..., Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        Tool(function)
