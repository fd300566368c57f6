"""Routing selects the backend of a task by name, kind and model."""

import asyncio

import pytest

from rhapsody import AITask, BaseTask, ComputeTask, Session
from rhapsody.api import TaskValidationError
from rhapsody.api.routing import Router
from tests.support.sessions import Compute, Inference, Recording, work

ROUTES = [("a", "second"), ("b", "first"), ("c", "second")]


async def test_task_goes_to_first_backend_of_its_kind() -> None:
    async with Session([Inference("ai", "m"), Compute("cpu")]) as session:
        tasks = [ComputeTask(function=work), AITask("hi"), ComputeTask(executable="true")]
        await session.submit_tasks(tasks)
        assert [task.backend for task in tasks] == ["cpu", "ai", "cpu"]
        await asyncio.gather(*tasks)


async def test_task_goes_to_named_backend() -> None:
    first, second = Recording("first"), Recording("second")
    async with Session([first, second]) as session:
        await session.submit_tasks([ComputeTask(function=work, uid="a", backend="second")])
        assert (first.submitted, second.submitted) == ([], ["a"])


async def test_model_selects_its_backend() -> None:
    async with Session([Inference("one", "small"), Inference("two", "large")]) as session:
        tasks = [AITask("hi", model="large"), AITask("hi", model="small"), AITask("hi")]
        await session.submit_tasks(tasks)
        assert [task.backend for task in tasks] == ["two", "one", "one"]


def test_group_keeps_the_order_of_tasks() -> None:
    first, second = Recording("first"), Recording("second")
    router = Router({"first": first, "second": second})
    tasks = [ComputeTask(function=work, uid=uid, backend=name) for uid, name in ROUTES]
    batches = [(backend, [task["uid"] for task in batch]) for backend, batch in router.group(tasks)]
    assert batches == [(second, ["a", "c"]), (first, ["b"])]


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (ComputeTask(function=work, backend="gpu"), "no backend 'gpu'; it has 'ai', 'cpu'"),
        (AITask("hi", backend="cpu"), "'cpu' cannot run a prompt task; these can: 'ai'"),
        (AITask("hi", model="huge"), "no backend serves the model 'huge'; served: 'small'"),
    ],
)
def test_unroutable_task_is_refused_with_alternatives(task: BaseTask, message: str) -> None:
    router = Router({"ai": Inference("ai", "small"), "cpu": Compute("cpu")})
    with pytest.raises(TaskValidationError, match=message):
        router.backend_for(task)


class Embedder(Inference):
    """Embeds only; with None it does not know yet what it takes."""

    ai_kinds: frozenset[str] | None = frozenset({"embed"})


def test_kind_of_ai_task_selects_its_backend() -> None:
    router = Router({"chat": Inference("chat", "m"), "vectors": Embedder("vectors", "m")})
    assert router.backend_for(AITask("hi")).name == "chat"
    assert router.backend_for(AITask("hi", kind="embed")).name == "vectors"


def test_backend_that_surely_takes_the_kind_comes_first() -> None:
    unknown = Embedder("unknown", "m")
    unknown.ai_kinds = None
    router = Router({"unknown": unknown, "vectors": Embedder("vectors", "m")})
    assert router.backend_for(AITask("hi", kind="embed")).name == "vectors"
    assert router.backend_for(AITask("hi", kind="classify")).name == "unknown"


def test_refused_kind_names_the_backends_that_take_it() -> None:
    router = Router({"chat": Inference("chat", "m"), "vectors": Embedder("vectors", "m")})
    message = "'chat' cannot run an AI task of kind 'embed'; these can: 'vectors'"
    with pytest.raises(TaskValidationError, match=message):
        router.backend_for(AITask("hi", kind="embed", backend="chat"))
    with pytest.raises(TaskValidationError, match="these can: none of the session"):
        router.backend_for(AITask("hi", kind="classify"))


def test_unsupported_kind_is_refused() -> None:
    with pytest.raises(TaskValidationError, match="no backend of the session runs prompt tasks"):
        Router({"cpu": Compute("cpu")}).backend_for(AITask("hi"))
