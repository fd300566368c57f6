"""A run of many requests, with a scripted target."""

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from rhapsody.errors import PartialFailureError, PromptError, ReplicaError
from rhapsody.inference.bulk.run import BulkRun, Finished, read_lines

CHAT = "/v1/chat/completions"
FIELDS = {"response": "a text", "finish_reason": "stop", "usage": {}}


class Model:
    """Answers each request with one text; "slow" ones never, and "bad" ones with an error."""

    def __init__(self) -> None:
        self.asked: list[Mapping[str, Any]] = []
        self.most = 0
        self._now = 0

    def model_for(self, name: Any) -> str:
        return "m"

    async def run(self, model: str, task: Mapping[str, Any]) -> Mapping[str, Any]:
        self.asked.append(task)
        self._now += 1
        self.most = max(self.most, self._now)
        await asyncio.sleep(0)
        self._now -= 1
        text = task["prompt"][0]["content"]
        if text == "bad":
            raise PromptError("it is bad", 400)
        if text == "lost":
            raise ReplicaError("no server is left")
        if text == "lost in part":
            raise PartialFailureError(["a", None], [None, ReplicaError("no server is left")])
        return FIELDS


def line(custom_id: str, text: str = "Hello", url: str = CHAT) -> bytes:
    body = {"messages": [{"role": "user", "content": text}]}
    return json.dumps({"custom_id": custom_id, "url": url, "body": body}).encode() + b"\n"


async def run_all(
    tmp_path: Path, *lines: bytes, finished: Finished | None = None, **options: Any
) -> tuple[BulkRun, Model, dict[str, bool]]:
    source = tmp_path / "in.jsonl"
    source.write_bytes(b"".join(lines))
    model, written = Model(), {}

    def write(text: str, failed: bool) -> None:
        written[json.loads(text)["custom_id"]] = failed

    run = BulkRun(model, write, finished or Finished(), **options)
    await run.run(read_lines(source))
    return run, model, written


async def test_every_line_has_one_result(tmp_path: Path) -> None:
    run, model, written = await run_all(tmp_path, line("a"), b"\n", b"{\n", line("b", "bad"))
    assert written == {"a": False, "line-3": True, "b": True}
    assert run.counts == {"done": 1, "errors": 2}
    assert {task["priority"] for task in model.asked} == {-10}


async def test_finished_requests_are_not_sent_again(tmp_path: Path) -> None:
    finished = Finished()
    assert finished.take({"custom_id": "a", "error": None})
    assert finished.take({"custom_id": "b", "error": {"message": "it is bad"}})
    run, model, written = await run_all(
        tmp_path, line("a"), line("b"), line("c"), finished=finished
    )
    assert (list(written), len(model.asked)) == (["c"], 1)
    assert run.counts == {"done": 1, "before": 2}


def test_errors_are_not_finished_if_they_are_retried() -> None:
    finished = Finished(retry_errors=True)
    assert not finished.take({"custom_id": "b", "error": {"message": "it is bad"}})
    assert finished.ids == set()


async def test_requests_in_progress_are_bounded(tmp_path: Path) -> None:
    lines = [line(str(number)) for number in range(50)]
    _, model, written = await run_all(tmp_path, *lines, at_once=3)
    assert len(written) == 50
    assert model.most <= 3


async def test_other_route_is_an_error_of_its_line(tmp_path: Path) -> None:
    _, _, written = await run_all(tmp_path, line("a"), url="/v1/embeddings")
    assert written == {"a": True}


@pytest.mark.parametrize("text", ["lost", "lost in part"])
async def test_run_ends_if_no_server_is_left(tmp_path: Path, text: str) -> None:
    with pytest.raises(ReplicaError, match="no server is left"):
        await run_all(tmp_path, line("a", text), line("b"))


async def test_line_that_is_too_long_is_skipped(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(b"a\n" + b"x" * 3_000_000 + b"\nb\n" + b"y" * 20)
    found = [one async for one in read_lines(path, limit=10)]
    assert found == [(1, b"a\n"), (2, None), (3, b"b\n"), (4, None)]
