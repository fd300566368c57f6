"""The choice of the backend that runs the prompt of an ai_task."""

import re
from typing import Any

import pytest

from rhapsody import AITask
from rhapsody.api import ConfigurationError
from rhapsody.backends import ConcurrentExecutionBackend, NoopExecutionBackend
from tests.support.engines import Echo, MakeFlow

pytestmark = pytest.mark.asyncflow


async def test_only_inference_backend_needs_no_name(ask: Any, ai: Echo) -> None:
    await ask("hi")
    assert ai.prompts == ["hi?"]


@pytest.mark.parametrize("where", ["decorator", "call", "description", "AITask"])
async def test_name_selects_backend(make: MakeFlow, where: str) -> None:
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


async def test_model_selects_backend(make: MakeFlow) -> None:
    small, large = Echo("a", "small"), Echo("b", "large")
    flow = await make(small, large)

    @flow.ai_task(model="large")
    async def ask() -> str:
        return "hi"

    await ask()
    assert (small.prompts, large.prompts) == ([], ["hi"])


async def test_ambiguous_backend_is_rejected_with_names(make: MakeFlow) -> None:
    flow = await make(Echo("one"), Echo("two"))

    @flow.ai_task
    async def ask() -> str:
        return "hi"

    with pytest.raises(ConfigurationError, match=r"several .*\('one', 'two'\); name one"):
        ask()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"backend": "cpu"}, "backend 'cpu' cannot run prompts; these can: 'one', 'two'"),
        ({"backend": "gpu"}, "backend 'gpu' is not in the engine; these can: 'one', 'two'"),
        ({"model": "huge"}, "no backend serves the model 'huge'; served: 'small' by 'one'"),
        ({"backend": "one", "model": "large"}, "no backend serves the model 'large'"),
    ],
)
async def test_unable_backend_is_rejected_with_names_of_able_ones(
    make: MakeFlow, options: dict[str, Any], words: str
) -> None:
    flow = await make(
        ConcurrentExecutionBackend(name="cpu"), Echo("one", "small"), Echo("two", "large")
    )
    with pytest.raises(ConfigurationError, match=words):
        flow.ai_task(**options)


async def test_error_without_inference_backend_says_how_to_add_one(make: MakeFlow) -> None:
    flow = await make(ConcurrentExecutionBackend())
    with pytest.raises(ConfigurationError, match=re.escape("create(backend=[compute, inference])")):

        @flow.ai_task
        async def ask() -> str:
            return "hi"


async def test_unknown_backend_of_returned_ai_task_fails_task(flow: Any) -> None:
    @flow.ai_task
    async def ask() -> AITask:
        return AITask("hi", backend="cpu")

    with pytest.raises(ConfigurationError, match="'cpu' cannot run prompts; these can: 'ai'"):
        await ask()


async def test_no_op_backend_runs_prompts(make: MakeFlow) -> None:
    flow = await make(NoopExecutionBackend())

    @flow.ai_task
    async def ask() -> list[str]:
        return ["a", "b"]

    assert await ask() == ["", ""]


async def test_kind_that_no_backend_takes_is_refused(make: MakeFlow) -> None:
    vectors = Echo("vectors")
    vectors.ai_kinds = frozenset({"embed"})  # type: ignore[attr-defined]
    flow = await make(Echo("chat"), vectors)
    message = "'chat' cannot run an AI task of kind 'embed'; these can: 'vectors'"
    with pytest.raises(ConfigurationError, match=message):
        flow.ai_task(kind="embed", backend="chat")

    @flow.ai_task(kind="embed")
    async def embed() -> str:
        return "hi"

    await embed()
    assert vectors.prompts == ["hi"]
