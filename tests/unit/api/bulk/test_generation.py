"""Many rows through a model, with a scripted session."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest

from rhapsody.api.bulk.generation import Generation, RowCounts, plain
from rhapsody.api.tasks import AITask
from rhapsody.errors import (
    ConfigurationError,
    PartialFailureError,
    PromptError,
    ReplicaError,
    TaskCancelledError,
    TaskValidationError,
)
from rhapsody.inference.kinds import Classification, FloatArray, floats_of
from tests.support.waiting import until


class Model:
    """A session whose model responds with the prompt, in the order that `pick` chooses."""

    def __init__(self, pick: Callable[[int], int] = lambda _: 0) -> None:
        self.tasks: list[AITask] = []
        self.most = 0
        self._pick = pick
        self._open: list[tuple[AITask, asyncio.Future[Any]]] = []

    async def submit_tasks(self, tasks: Sequence[AITask]) -> list[asyncio.Future[Any]]:
        loop = asyncio.get_running_loop()
        futures = [loop.create_future() for _ in tasks]
        self.tasks += tasks
        for task, future in zip(tasks, futures, strict=True):
            self._open.append((task, future))
            loop.call_soon(self._answer_one)
        self.most = max(self.most, len(self._open))
        return futures

    def _answer_one(self) -> None:
        if not self._open:
            return
        task, future = self._open.pop(self._pick(len(self._open)))
        if "bad" in task["prompt"]:
            future.set_exception(PromptError("it is bad", 400))
        elif "part" in task["prompt"]:
            lost = ReplicaError("no server is left")
            future.set_exception(PartialFailureError(["a", None], [None, lost]))
        elif "lost" in task["prompt"]:
            future.set_exception(ReplicaError("no server is left"))
        elif "endless" not in task["prompt"]:
            task["response"] = task["prompt"].upper()
            future.set_result(task)
        else:
            self._open.append((task, future))

    def cancel_soon(self, tasks: Iterable[AITask]) -> None:
        uids = {task["uid"] for task in tasks}
        for task, future in self._open:
            if task["uid"] in uids:
                future.set_exception(TaskCancelledError(task["uid"]))


async def generate(
    model: Model, rows: Any, to: Path, prompt: Any = None, retry_errors: bool = False, **given: Any
) -> RowCounts:
    arguments: dict[str, Any] = {"columns": None, "at_once": None, "in_order": False}
    options = {name: given.pop(name) for name in list(given) if name not in arguments}
    generation = Generation(model, prompt, **{**arguments, **given}, options=options)
    return await generation.run(rows, to, retry_errors)


def fail_with(error: Exception) -> Any:
    async def submit_tasks(tasks: Sequence[AITask]) -> Any:
        raise error

    return submit_tasks


def results(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def to(tmp_path: Path) -> Path:
    return tmp_path / "out.jsonl"


async def test_every_row_has_one_result(to: Path) -> None:
    model = Model()
    rows = [{"text": "a", "n": 1}, {"text": "bad"}, {"other": "x"}, 3, {"text": "b"}]
    counts = await generate(model, rows, to, "Say {text}", max_tokens=4)
    assert counts == (2, 3, 0)
    found = {one["index"]: one for one in results(to)}
    assert found[0] == {"index": 0, "text": "a", "n": 1, "response": "SAY A", "error": None}
    assert found[1]["error"] == "it is bad"
    assert found[2]["error"] == "the row has no column 'text'; it has other"
    assert found[3]["error"] == "'a row' must be a mapping or a text, got 3"
    assert found[4]["response"] == "SAY B"
    assert {(task["priority"], task["max_tokens"]) for task in model.tasks} == {(-10, 4)}


async def test_prompt_is_a_function_or_the_column_of_that_name(to: Path) -> None:
    model = Model()
    await generate(model, ["a", {"prompt": "b"}], to)
    assert [task["prompt"] for task in model.tasks] == ["a", "b"]
    model = Model()
    await generate(model, [{"a": 1}, {}], to.with_name("2.jsonl"), lambda row: f"{row['a']}")
    assert [task["prompt"] for task in model.tasks] == ["1"]
    assert "raised KeyError('a')" in results(to.with_name("2.jsonl"))[0]["error"]


@pytest.mark.parametrize(
    ("template", "error"),
    [
        ("{", "the template does not fit the row"),
        ("{a.b}", "the template does not fit the row"),
        ("{}", "the template does not fit the row"),
    ],
)
async def test_template_that_does_not_fit_is_an_error(to: Path, template: str, error: str) -> None:
    await generate(Model(), [{"a": "x"}], to, template)
    assert results(to)[0]["error"].startswith(error)


async def test_finished_rows_are_not_run_again(to: Path) -> None:
    await generate(Model(), ["a", "bad"], to)
    model = Model()
    assert await generate(model, ["a", "bad", "c"], to) == (1, 0, 2)
    assert [task["prompt"] for task in model.tasks] == ["c"]
    assert await generate(model, ["a", "good", "c"], to, retry_errors=True) == (1, 0, 2)
    assert sorted(one["response"] for one in results(to)) == ["A", "C", "GOOD"]


async def test_errors_that_are_not_run_again_are_logged(
    to: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await generate(Model(), ["a", "bad"], to)
    assert not caplog.records
    await generate(Model(), ["a", "bad"], to)
    assert [record.getMessage() for record in caplog.records] == [
        f"Errors of an earlier run in {to}: 1. Their rows are not run again; pass "
        "retry_errors=True to run them"
    ]
    caplog.clear()
    await generate(Model(), ["a", "good"], to, retry_errors=True)
    assert not caplog.records


async def test_rows_in_progress_are_bounded(to: Path) -> None:
    model = Model()
    assert await generate(model, map(str, range(500)), to, at_once=10) == (500, 0, 0)
    assert model.most <= 10


async def test_results_are_in_order_if_asked(to: Path) -> None:
    model = Model(pick=lambda number: number - 1)  # the last one first
    rows = [f"{number}" if number % 7 else "bad" for number in range(300)]
    await generate(model, rows, to, at_once=20, in_order=True)
    assert [one["index"] for one in results(to)] == list(range(300))


async def test_only_chosen_columns_are_kept(to: Path) -> None:
    await generate(Model(), [{"id": 1, "prompt": "a", "index": 5}], to, columns=["id"])
    assert list(results(to)[0]) == ["index", "id", "response", "error"]


async def test_chosen_column_that_no_row_has_is_logged(
    to: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [{"prompt": "a"}, {"id": 1, "prompt": "b"}]
    await generate(Model(), rows, to, columns=["id", "ids"])
    assert [record.getMessage() for record in caplog.records] == [
        "No row has the column 'ids', which 'columns' asks for; the last row has id, prompt"
    ]


async def test_column_with_the_name_of_a_result_is_refused(to: Path) -> None:
    with pytest.raises(ConfigurationError, match="the rows have a column 'index'"):
        await generate(Model(), [{"index": 1, "prompt": "a"}], to)


async def test_later_row_with_the_name_of_a_result_fails_alone(to: Path) -> None:
    rows = [{"prompt": "a"}, {"index": 7, "prompt": "b"}, {"prompt": "c"}]
    assert await generate(Model(), rows, to) == (2, 1, 0)
    [error] = [one["error"] for one in results(to) if one["index"] == 1]
    assert "the rows have a column 'index'" in error


@pytest.mark.parametrize("error", [None, ReplicaError("no server is left")])
async def test_rows_are_submitted_while_their_source_waits(
    to: Path, error: Exception | None
) -> None:
    async def rows() -> AsyncIterator[str]:
        yield "a"
        yield "b"
        await until(lambda: len(results(to)) == 2)  # the rows that follow depend on the results
        yield "c"

    model = Model()
    if error is not None:
        model.submit_tasks = fail_with(error)  # type: ignore[method-assign]
        with pytest.raises(ReplicaError):
            await asyncio.wait_for(generate(model, rows(), to), 30)
        return
    assert await asyncio.wait_for(generate(model, rows(), to), 30) == (3, 0, 0)


@pytest.mark.parametrize("text", ["lost", "part of it"])
async def test_run_ends_if_no_server_is_left_and_continues_later(to: Path, text: str) -> None:
    with pytest.raises(ReplicaError, match="no server is left"):
        await generate(Model(), ["a", "endless", text], to)
    assert [one["index"] for one in results(to)] == [0]
    assert await generate(Model(), ["a", "b", "c"], to) == (2, 0, 1)


async def test_cancelling_cancels_the_tasks_in_progress(to: Path) -> None:
    model = Model()
    running = asyncio.ensure_future(generate(model, ["endless"], to))
    await until(lambda: model.tasks)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert results(to) == []


async def test_results_cannot_replace_the_rows(to: Path) -> None:
    to.write_text('"a"\n')
    with pytest.raises(ConfigurationError, match="another file than the rows"):
        await generate(Model(), str(to), to)


@pytest.mark.parametrize(
    ("rows", "error"),
    [
        ("missing.jsonl", FileNotFoundError),
        ("missing.csv", FileNotFoundError),
        ("rows.txt", ConfigurationError),
        (3, ConfigurationError),
    ],
)
async def test_rows_that_cannot_be_read_leave_no_file_of_results(
    to: Path, rows: Any, error: type[Exception]
) -> None:
    with pytest.raises(error):
        await generate(Model(), str(to.parent / rows) if isinstance(rows, str) else rows, to)
    assert not to.exists()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"max_length": 3}, TaskValidationError, "max_tokens"),
        ({"at_once": 0}, ConfigurationError, "'at_once' must be"),
        ({"prompt": 3}, ConfigurationError, "'prompt' must be a template"),
        ({"columns": "id"}, ConfigurationError, "'columns' must be a list of names"),
    ],
)
async def test_invalid_argument_is_refused_before_the_first_row(
    to: Path, arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        await generate(Model(), ["a"], to, **arguments)
    assert not to.exists()


def test_responses_of_all_kinds_become_json() -> None:
    array = FloatArray(floats_of(bytes(8)), (2,))
    label = Classification("good", {"good": 1.0})
    assert plain([array, label, "text", 0.5]) == [
        [0.0, 0.0],
        {"label": "good", "probabilities": {"good": 1.0}},
        "text",
        0.5,
    ]
