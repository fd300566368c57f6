"""Which backend gets an ai_task's prompt."""

import re
from typing import Any

import pytest

from rhapsody import AITask
from rhapsody.api import ConfigurationError
from rhapsody.backends import ConcurrentExecutionBackend, NoopExecutionBackend
from tests.support.engines import Echo, MakeFlow

pytestmark = pytest.mark.asyncflow


async def test_with_one_inference_backend_no_name_is_needed(ask: Any, ai: Echo) -> None:
    await ask("hi")
    assert ai.prompts == ["hi?"]


@pytest.mark.parametrize("where", ["decorator", "call", "description", "AITask"])
async def test_with_several_the_name_says_which(make: MakeFlow, where: str) -> None:
    one, two = Echo("one"), Echo("two")
    flow = await make(one, two)
    on_decorator = {"decorator": "two", "AITask": "one"}.get(where)

    @flow.ai_task(backend=on_decorator)
    async def ask() -> Any:
        return AITask("hi", backend="two") if where == "AITask" else "hi"

    if where == "call":
        await ask(backend="two")
    elif where == "description":
        await ask(task_description={"backend": "two"})
    else:
        await ask()
    assert (one.prompts, two.prompts) == ([], ["hi"])


async def test_a_model_says_which(make: MakeFlow) -> None:
    small, large = Echo("a", "small"), Echo("b", "large")
    flow = await make(small, large)

    @flow.ai_task(model="large")
    async def ask() -> str:
        return "hi"

    await ask()
    assert (small.prompts, large.prompts) == ([], ["hi"])


async def test_with_several_and_no_name_a_call_is_refused_with_their_names(make: MakeFlow) -> None:
    flow = await make(Echo("one"), Echo("two"))

    @flow.ai_task
    async def ask() -> str:
        return "hi"

    with pytest.raises(ConfigurationError, match=r"several .*\('one', 'two'\); name one"):
        ask()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"backend": "cpu"}, "backend 'cpu' cannot answer prompts; these can: 'one', 'two'"),
        ({"backend": "gpu"}, "backend 'gpu' is not in the engine; these can: 'one', 'two'"),
        ({"model": "huge"}, "no backend serves the model 'huge'; served: 'small' by 'one'"),
        ({"backend": "one", "model": "large"}, "no backend serves the model 'large'"),
    ],
)
async def test_a_backend_that_cannot_is_refused_at_decoration_with_those_that_can(
    make: MakeFlow, options: dict[str, Any], words: str
) -> None:
    flow = await make(
        ConcurrentExecutionBackend(name="cpu"), Echo("one", "small"), Echo("two", "large")
    )
    with pytest.raises(ConfigurationError, match=words):
        flow.ai_task(**options)


async def test_without_an_inference_backend_decorating_says_how_to_get_one(make: MakeFlow) -> None:
    flow = await make(ConcurrentExecutionBackend())
    with pytest.raises(ConfigurationError, match=re.escape("create(backend=[compute, inference])")):

        @flow.ai_task
        async def ask() -> str:
            return "hi"


async def test_a_backend_that_an_ai_task_names_in_vain_fails_it(flow: Any) -> None:
    @flow.ai_task
    async def ask() -> AITask:
        return AITask("hi", backend="cpu")

    with pytest.raises(ConfigurationError, match="'cpu' cannot answer prompts; these can: 'ai'"):
        await ask()


async def test_the_no_op_backend_answers_prompts(make: MakeFlow) -> None:
    flow = await make(NoopExecutionBackend())

    @flow.ai_task
    async def ask() -> list[str]:
        return ["a", "b"]

    assert await ask() == ["", ""]
