from pathlib import Path
from typing import Any

import pytest

from rhapsody.backends import NoopExecutionBackend
from rhapsody.testing.owners import FakeEngine
from rhapsody.testing.samples import describe


@pytest.mark.parametrize(
    ("fields", "result"),
    [
        ({"function": len}, {"return_value": None}),
        (
            {"executable": "/bin/false"},
            {"stdout": "", "stderr": "", "exit_code": 0, "return_value": ""},
        ),
        ({"prompt": "hi"}, {"response": "", "stdout": "", "return_value": ""}),
        ({"prompt": ["a", "b"]}, {"response": ["", ""]}),
        ({"prompt": [{"role": "user", "content": "hi"}]}, {"response": ""}),
        ({"prompt": [[{"role": "user", "content": "hi"}]] * 2}, {"response": ["", ""]}),
    ],
)
async def test_placeholder_has_shape_of_result(
    fields: dict[str, Any], result: dict[str, Any], tmp_path: Path
) -> None:
    backend, engine = NoopExecutionBackend(), FakeEngine(tmp_path)
    engine.attach(backend)
    task = describe("task.1", "any", **fields)
    (report,) = await engine.run(backend, task)
    assert report.state == "DONE"
    assert {key: task[key] for key in result} == result


async def test_run_one_needs_no_owner() -> None:
    assert (await NoopExecutionBackend().run_one({"prompt": ["a", "b"]}))["response"] == ["", ""]


async def test_backend_is_not_started(tmp_path: Path) -> None:
    backend, engine = NoopExecutionBackend(), FakeEngine(tmp_path)
    engine.attach(backend)
    await backend.submit_tasks([describe("task.1", "function", function=len)])
    assert backend.state() == "IDLE"
    await engine.reports.end("task.1")
