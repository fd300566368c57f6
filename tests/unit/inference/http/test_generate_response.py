"""The response of `/generate`."""

import json
from typing import Any

from rhapsody.errors import PromptError, ReplicaError
from rhapsody.inference.http.generate_response import GenerateResponse
from rhapsody.inference.prompts import Completion

USAGE = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}


def respond(*outcomes: Completion | Exception | None) -> dict[str, Any]:
    response = GenerateResponse(len(outcomes), 5)
    for position, outcome in enumerate(outcomes):
        if isinstance(outcome, Completion):
            response.set_completion(position, outcome)
        elif outcome is not None:
            response.set_error(position, outcome)
    body: dict[str, Any] = json.loads(response.encode(4.0))
    return body


def test_results_are_in_order_and_tokens_are_added() -> None:
    body = respond(
        Completion(["\u00e9"], ["stop"], USAGE),
        Completion(["a", "b"], ["stop", "length"], USAGE, model_version="7"),
    )
    assert body == {
        "status": "success",
        "results": ["\u00e9", ["a", "b"]],
        "finish_reasons": ["stop", ["stop", "length"]],
        "errors": [None, None],
        "model_versions": [None, "7"],
        "usage": {"prompt_tokens": 2, "completion_tokens": 4, "total_tokens": 6},
        "num_prompts": 2,
        "total_time": 4.0,
        "avg_time_per_prompt": 2.0,
    }


def test_each_failed_prompt_has_its_error() -> None:
    body = respond(
        Completion(["a"], ["stop"], USAGE),
        PromptError("too long", 400, "BadRequestError", "prompt"),
        ReplicaError("it died", "log"),
        None,
    )
    assert body["status"] == "partial"
    assert body["results"] == ["a", None, None, None]
    assert [error and error["code"] for error in body["errors"]] == [None, 400, 503, 504]
    assert "within the timeout of 5 s" in body["errors"][3]["message"]


def test_all_failed_is_an_error() -> None:
    assert (respond(ReplicaError("it died", "log")))["status"] == "error"


def test_unexpected_error_is_not_sent(caplog: Any) -> None:
    body = respond(RuntimeError("a secret"))
    assert "secret" not in json.dumps(body)
    assert "a secret" in caplog.text
