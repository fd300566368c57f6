"""`@flow.ai_task`, on AsyncFlow's own engine and on Rhapsody's."""

import asyncio
import functools
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from rhapsody import AITask
from rhapsody.api import ConfigurationError, TaskValidationError
from rhapsody.backends import ConcurrentExecutionBackend, NoopExecutionBackend
from tests.support.engines import ENGINES, Echo, make_engine
from tests.support.waiting import until

pytestmark = pytest.mark.asyncflow

LIMIT_S = 20
MakeFlow = Callable[..., Awaitable[Any]]


@pytest.fixture(params=ENGINES)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
async def make(kind: str, tmp_path: Path) -> AsyncIterator[MakeFlow]:
    engines = []

    async def make(*backends: Any, **options: Any) -> Any:
        engine = await make_engine(kind, list(backends) or None, work_dir=str(tmp_path), **options)
        engines.append(engine)
        return engine

    yield make
    for engine in engines:
        await engine.shutdown()


@pytest.fixture
def ai() -> Echo:
    return Echo()


@pytest.fixture
async def flow(make: MakeFlow, ai: Echo) -> Any:
    """An engine that computes in threads and answers prompts with their echo."""
    return await make(ConcurrentExecutionBackend(name="cpu"), ai)


@pytest.fixture
def ask(flow: Any) -> Any:
    """An ai_task that asks what it is given."""

    @flow.ai_task
    async def ask(what: Any) -> str:
        return f"{what}?"

    return ask


@pytest.fixture
def three(flow: Any) -> Any:
    """A function task that returns 3."""

    @flow.function_task
    async def three() -> int:
        return 3

    return three


@pytest.fixture
def failing(flow: Any) -> Any:
    @flow.function_task
    async def failing() -> None:
        raise ValueError("intended")

    return failing


# -- values -------------------------------------------------------------------------------------


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


async def test_a_slow_body_delays_no_other_task(flow: Any, ask: Any, three: Any) -> None:
    gate = asyncio.Event()

    @flow.ai_task
    async def slow() -> str:
        await gate.wait()
        return "slow"

    waiting = slow()
    assert await asyncio.wait_for(three(), LIMIT_S) == 3
    assert await asyncio.wait_for(ask("quick"), LIMIT_S) == "<quick?>"
    assert not waiting.done()
    gate.set()
    assert await waiting == "<slow>"


async def test_two_hundred_at_once(ask: Any, ai: Echo) -> None:
    responses = await asyncio.gather(*(ask(i) for i in range(200)))
    assert responses == [f"<{i}?>" for i in range(200)]


# -- what the body returns ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "response"),
    [
        ("one", "<one>"),
        (["one", "two"], ["<one>", "<two>"]),
        ([{"role": "user", "content": "hi"}], "<hi>"),
    ],
)
async def test_a_text_texts_or_a_chat_are_prompts(flow: Any, prompt: Any, response: Any) -> None:
    @flow.ai_task
    async def ask() -> Any:
        return prompt

    assert await ask() == response


async def test_an_ai_task_is_a_prompt_with_options_of_its_own(flow: Any, ai: Echo) -> None:
    @flow.ai_task(temperature=1.0, max_tokens=9)
    async def ask() -> AITask:
        return AITask("hi", temperature=0.5, seed=7)

    assert await ask() == "<hi>"
    (asked,) = ai.asked
    assert (asked["temperature"], asked["max_tokens"], asked["seed"]) == (0.5, 9, 7)


async def test_an_ai_task_that_is_returned_has_the_results_and_no_other_options(flow: Any) -> None:
    mine = AITask("hi")

    @flow.ai_task(max_tokens=9)
    async def ask() -> AITask:
        return mine

    await ask()
    assert (mine.state, mine.response) == ("DONE", "<hi>")
    assert "max_tokens" not in mine


@pytest.mark.parametrize("prompt", ["", [], 7, [""], [{"content": "no role"}]], ids=repr)
async def test_what_is_no_prompt_fails_the_task_by_its_name(flow: Any, prompt: Any) -> None:
    @flow.ai_task
    async def summarise() -> Any:
        return prompt

    with pytest.raises(TaskValidationError, match="Task 'summarise': 'prompt' must be"):
        await summarise()


async def test_returning_nothing_fails_the_task(flow: Any) -> None:
    @flow.ai_task
    async def forgetful() -> None:
        pass

    with pytest.raises(TaskValidationError, match="'forgetful': its function returned None"):
        await forgetful()


# -- options ------------------------------------------------------------------------------------

OPTIONS = {"temperature": 0.5, "system_prompt": "be brief", "timeout": 5, "stop": ["."]}


def options_of(asked: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in asked.items() if name not in ("uid", "prompt")}


async def test_options_on_the_decorator(flow: Any, ai: Echo) -> None:
    @flow.ai_task(**OPTIONS)
    async def ask() -> str:
        return "hi"

    await ask()
    assert options_of(ai.asked[0]) == OPTIONS


async def test_options_of_a_call(ask: Any, ai: Echo) -> None:
    await ask("hi", **OPTIONS)
    assert options_of(ai.asked[0]) == OPTIONS


async def test_options_in_a_task_description(ask: Any, ai: Echo) -> None:
    await ask("hi", task_description=OPTIONS)
    assert options_of(ai.asked[0]) == OPTIONS


async def test_options_in_the_default_task_description(flow: Any, ai: Echo) -> None:
    @flow.ai_task
    async def ask(task_description: Any = {"temperature": 0.5}) -> str:  # noqa: B006
        return "hi"

    await ask()
    assert options_of(ai.asked[0]) == {"temperature": 0.5}


async def test_the_call_goes_before_the_decorator_and_for_that_call_only(
    flow: Any, ai: Echo
) -> None:
    @flow.ai_task(temperature=0.1, seed=1)
    async def ask() -> str:
        return "hi"

    await ask(temperature=0.9)
    await ask()
    assert [options_of(asked) for asked in ai.asked] == [
        {"temperature": 0.9, "seed": 1},
        {"temperature": 0.1, "seed": 1},
    ]


async def test_none_takes_an_option_of_the_decorator_back(flow: Any, ai: Echo) -> None:
    @flow.ai_task(temperature=0.1)
    async def ask() -> str:
        return "hi"

    await ask(temperature=None)
    assert ai.asked[0].get("temperature") is None


async def test_a_parameter_of_the_function_goes_before_an_option_of_its_name(
    flow: Any, ai: Echo
) -> None:
    @flow.ai_task(temperature=0.1)
    async def weather(place: str, temperature: int) -> str:
        return f"{place} at {temperature} degrees"

    assert await weather("home", temperature=30) == "<home at 30 degrees>"
    assert ai.asked[0]["temperature"] == 0.1


async def test_an_option_that_is_shadowed_goes_into_the_task_description(
    flow: Any, ai: Echo
) -> None:
    @flow.ai_task
    async def load(model: str) -> str:
        return model

    await load(model="ising", task_description={"model": "echo"})
    assert (ai.asked[0]["prompt"], ai.asked[0]["model"]) == ("ising", "echo")


WRONG: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"temprature": 1}, TypeError, "no option 'temprature'; did you mean 'temperature'?"),
    ({"nonsense": 1}, TypeError, r"no option 'nonsense'; options are backend, "),
    ({"temperature": -1}, TaskValidationError, "'temperature' must be .* not -1"),
    ({"timeout": "soon"}, TaskValidationError, "'timeout' must be .* not 'soon'"),
    ({"backend": 7}, TaskValidationError, "'backend' must be the name of a backend"),
    ({"on_text": "print"}, TaskValidationError, "'on_text' must be a plain function"),
    ({"on_text": print, "n": 2}, TaskValidationError, "'on_text' must be left out: a stream is"),
]


@pytest.mark.parametrize(("options", "error", "words"), WRONG)
async def test_a_wrong_option_is_refused_at_decoration(
    flow: Any, options: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        flow.ai_task(**options)


@pytest.mark.parametrize(("options", "error", "words"), WRONG)
async def test_a_wrong_option_in_a_description_is_refused_at_the_call(
    ask: Any, options: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        ask("hi", task_description=options)


@pytest.mark.parametrize(("options", "error", "words"), WRONG[2:])
async def test_a_wrong_option_is_refused_at_the_call(
    ask: Any, options: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        ask("hi", **options)


async def test_a_description_that_is_no_dict_is_refused(flow: Any, ask: Any) -> None:
    with pytest.raises(TypeError, match="'task_description' must be a dict of options, not str"):
        ask("hi", task_description="hot")


PLACES = ["decorator", "call", "AITask"]


@pytest.mark.parametrize("kind", ["ours"])  # the stock engine repeats nothing
@pytest.mark.parametrize("where", PLACES)
async def test_a_stream_is_not_repeated_from_its_beginning(
    flow: Any, kind: str, where: str
) -> None:
    on = {place: {"on_text": print} if place == where else {} for place in PLACES}

    async def ask() -> Any:
        return AITask("hi", **on["AITask"])

    async def asked() -> Any:
        made = flow.ai_task(retries=1, backoff=0, **on["decorator"])(ask)
        return await made(**on["call"])

    with pytest.raises(TypeError, match="an 'on_text' would get the beginning again"):
        await asked()


async def test_a_keyword_that_the_function_does_not_know_fails_the_task(ask: Any) -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'nonsense'"):
        await ask("hi", nonsense=1)


# -- which backend ------------------------------------------------------------------------------


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


# -- dry run ------------------------------------------------------------------------------------


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


# -- failures -----------------------------------------------------------------------------------


async def test_an_error_in_the_body_is_the_tasks(flow: Any, ai: Echo) -> None:
    @flow.ai_task
    async def bad() -> str:
        raise KeyError("intended")

    with pytest.raises(KeyError, match="intended"):
        await bad()
    assert ai.asked == []


async def test_a_failed_dependency_is_named_with_its_cause(ask: Any, failing: Any) -> None:
    from radical.asyncflow.errors import DependencyFailureError

    with pytest.raises(DependencyFailureError, match="Cannot execute 'ask' due to") as failed:
        await ask([1, failing()])
    assert failed.value.failed_dependencies == ["failing"]
    assert isinstance(failed.value.root_cause, ValueError)
    assert failed.value.__cause__ is failed.value.root_cause


async def test_all_failed_dependencies_are_named(flow: Any, ask: Any, failing: Any) -> None:
    from radical.asyncflow.errors import DependencyFailureError

    @flow.executable_task
    async def absent() -> str:
        return "/nonexistent/program"

    with pytest.raises(DependencyFailureError) as failed:
        await ask({"a": failing(), "b": absent()})
    assert sorted(failed.value.failed_dependencies) == ["absent", "failing"]


async def test_after_a_failed_dependency_the_body_does_not_run(ask: Any, failing: Any) -> None:
    from radical.asyncflow.errors import DependencyFailureError

    asked = ask(ask(failing()))
    with pytest.raises(DependencyFailureError) as failed:
        await asked
    assert failed.value.failed_dependencies == ["ask"]


async def test_a_failed_ai_task_fails_what_depends_on_it(flow: Any) -> None:
    from radical.asyncflow.errors import DependencyFailureError

    @flow.ai_task
    async def bad() -> str:
        raise ValueError("intended")

    @flow.function_task
    async def after(_response: str) -> None:
        pass

    with pytest.raises(DependencyFailureError) as failed:
        await after(bad())
    assert failed.value.failed_dependencies == ["bad"]


async def test_a_cancelled_dependency_cancels_the_task(ask: Any, ai: Echo) -> None:
    plain = asyncio.get_running_loop().create_future()
    asked = ask([plain])
    plain.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(asked, LIMIT_S)
    assert asked.cancelled()
    assert ai.asked == []


async def test_an_error_of_the_backend_is_the_tasks(make: MakeFlow) -> None:
    class Broken(Echo):
        async def answer(self, task: Any) -> dict[str, Any]:
            raise OSError("the wire is cut")

    flow = await make(Broken())

    @flow.ai_task
    async def ask() -> str:
        return "hi"

    with pytest.raises(OSError, match="the wire is cut"):
        await ask()


# -- cancelling ---------------------------------------------------------------------------------


@pytest.fixture
async def held(make: MakeFlow) -> tuple[Any, Echo, Any]:
    """An engine, its inference backend that does not answer, and an ai_task."""
    ai = Echo(held=True)
    flow = await make(ConcurrentExecutionBackend(name="cpu"), ai)

    @flow.ai_task
    async def ask(what: Any = "hi") -> str:
        return f"{what}"

    return flow, ai, ask


async def test_cancelling_before_it_starts_asks_nobody(held: tuple[Any, Echo, Any]) -> None:
    _, ai, ask = held
    asked = ask()
    asked.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asked
    other = ask("other")
    await until(lambda: ai.asked)
    assert ai.prompts == ["other"]
    other.cancel()


async def test_cancelling_while_it_waits_leaves_the_dependency_alone(
    held: tuple[Any, Echo, Any],
) -> None:
    _, ai, ask = held
    plain: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    first = ask("first")
    asked = ask([plain, first])
    await until(lambda: ai.asked)
    asked.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asked
    assert not plain.cancelled()
    ai.let_go.set()
    assert await first == "<first>"
    assert ai.prompts == ["first"]


async def test_cancelling_while_the_body_runs_stops_it(held: tuple[Any, Echo, Any]) -> None:
    flow, ai, _ = held
    events: list[str] = []

    @flow.ai_task
    async def slow() -> str:
        events.append("in")
        try:
            await asyncio.Event().wait()
        finally:
            events.append("out")
        return "never"

    asked = slow()
    await until(lambda: events)
    asked.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asked
    await until(lambda: events == ["in", "out"])
    assert ai.asked == []


async def test_cancelling_while_the_prompt_is_answered_reaches_the_backend(
    held: tuple[Any, Echo, Any],
) -> None:
    _, ai, ask = held
    asked = ask()
    await until(lambda: ai.asked)
    assert asked.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asked
    await until(lambda: ai.cancelled == 1)


async def test_cancelling_reaches_the_backend_that_was_named(make: MakeFlow) -> None:
    one, two = Echo("one", held=True), Echo("two", held=True)
    flow = await make(one, two)

    @flow.ai_task(backend="one")
    async def ask() -> str:
        return "hi"

    kept, asked = ask(), ask(backend="two")
    await until(lambda: one.asked and two.asked)
    asked.cancel()
    await until(lambda: two.cancelled == 1)
    assert one.cancelled == 0
    one.let_go.set()
    assert await kept == "<hi>"


async def test_cancelling_when_it_is_done_does_nothing(ask: Any) -> None:
    asked = ask("hi")
    await asked
    assert asked.cancel() is False
    assert asked.result() == "<hi?>"


async def test_a_cancelled_ai_task_cancels_what_depends_on_it(held: tuple[Any, Echo, Any]) -> None:
    flow, ai, ask = held

    @flow.function_task
    async def after(_response: str) -> None:
        pass

    asked = ask()
    waiting = after(asked)
    await until(lambda: ai.asked)
    asked.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(waiting, LIMIT_S)


async def test_awaiting_with_a_timeout_cancels_the_prompt(held: tuple[Any, Echo, Any]) -> None:
    _, ai, ask = held
    asked = ask()
    await until(lambda: ai.asked)
    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(asked, 0.01)
    await until(lambda: ai.cancelled == 1)


# -- blocks, scopes, shutdown -------------------------------------------------------------------


async def test_an_ai_task_works_inside_a_block(flow: Any, ask: Any, three: Any) -> None:
    @flow.block
    async def pipeline() -> str:
        return str(await ask(ask(three())))

    assert await pipeline() == "<<3?>?>"


async def test_cancelling_a_block_cancels_the_ai_tasks_inside(held: tuple[Any, Echo, Any]) -> None:
    flow, ai, ask = held
    inside = []

    @flow.block
    async def pipeline() -> None:
        inside.append(ask())
        await asyncio.Event().wait()

    block = pipeline()
    await until(lambda: ai.asked)
    block.cancel()
    with pytest.raises(asyncio.CancelledError):
        await block
    await until(lambda: ai.cancelled == 1)
    assert inside[0].cancelled()


async def test_a_body_may_run_tasks_of_its_own(flow: Any, three: Any) -> None:
    @flow.ai_task
    async def ask() -> str:
        return f"{await three()}"

    assert await ask() == "<3>"


def label(flow: Any, name: str) -> Any:
    descriptions = (component["description"] for component in flow.components.values())
    return next(d["workflow_id"] for d in descriptions if d["name"] == name)


async def test_a_workflow_scope_labels_it(held: tuple[Any, Echo, Any]) -> None:
    flow, ai, ask = held
    async with flow.workflow_scope("wf-1"):
        asked = ask()
    await until(lambda: ai.asked)
    assert label(flow, "ask") == "wf-1"
    ai.let_go.set()
    await asked


async def test_a_workflow_id_labels_it_and_does_not_reach_the_function(
    held: tuple[Any, Echo, Any],
) -> None:
    flow, ai, ask = held
    asked = ask(workflow_id="mine")
    await until(lambda: ai.asked)
    assert label(flow, "ask") == "mine"
    ai.let_go.set()
    await asked


async def test_shutting_the_engine_down_cancels_it_and_its_prompt(
    held: tuple[Any, Echo, Any],
) -> None:
    flow, ai, ask = held
    tasks = [ask(i) for i in range(5)]
    await until(lambda: len(ai.asked) == 5)
    await flow.shutdown()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(result, asyncio.CancelledError) for result in results)
    await until(lambda: ai.cancelled == 5)


# -- the decorator ------------------------------------------------------------------------------


async def test_a_decorated_function_keeps_its_name_and_docstring(flow: Any) -> None:
    @flow.ai_task
    async def summarise() -> str:
        """Summarise it."""
        return "hi"

    assert (summarise.__name__, summarise.__doc__) == ("summarise", "Summarise it.")


async def test_a_partial_of_an_async_function_can_be_decorated(flow: Any) -> None:
    async def ask(a: str, b: str) -> str:
        return a + b

    assert await flow.ai_task(functools.partial(ask, "x"))("y") == "<xy>"


async def test_a_method_can_be_decorated(flow: Any) -> None:
    class Critic:
        async def judge(self, work: str) -> str:
            return f"judge {work}"

    assert await flow.ai_task(Critic().judge)("it") == "<judge it>"


@pytest.mark.parametrize("thing", [lambda: "hi", "ask", print], ids=["lambda", "str", "print"])
async def test_what_is_no_async_function_is_refused(flow: Any, thing: Any) -> None:
    with pytest.raises(TypeError, match="ai_task takes an async function that returns a prompt"):
        flow.ai_task(thing)


async def test_extending_returns_the_engine_and_touches_no_other(tmp_path: Path) -> None:
    import radical.asyncflow

    import asyncflow_ext

    create = radical.asyncflow.WorkflowEngine.create
    one = await create(backend=Echo("a"), work_dir=str(tmp_path))
    two = await create(backend=Echo("b"), work_dir=str(tmp_path))
    try:
        assert asyncflow_ext.extend(one) is one
        assert hasattr(one, "ai_task")
        assert not hasattr(two, "ai_task")
        assert not hasattr(radical.asyncflow.WorkflowEngine, "ai_task")
    finally:
        await one.shutdown()
        await two.shutdown()


@pytest.mark.parametrize("thing", [None, object(), NoopExecutionBackend()])
def test_only_an_engine_can_be_extended(thing: Any) -> None:
    import asyncflow_ext

    with pytest.raises(TypeError, match=r"extend\(\) takes a radical.asyncflow WorkflowEngine"):
        asyncflow_ext.extend(thing)
