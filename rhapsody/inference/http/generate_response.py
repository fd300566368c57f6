"""The response of `POST /generate`: one result or error for each prompt."""

from __future__ import annotations

import json
import logging
from typing import Any

from rhapsody.errors import PromptError, ReplicaError
from rhapsody.inference.http.errors import error_body
from rhapsody.inference.prompts import Completion

__all__ = ["GenerateResponse"]

logger = logging.getLogger(__name__)


class GenerateResponse:
    """The results and errors of a request, encoded one by one as the prompts end.

    Text needs less memory than the objects, and Python's garbage collector, which holds the
    interpreter lock, does not look at it.

    Args:
        prompts: The number of prompts.
        timeout: The time limit of the request, in seconds.
    """

    def __init__(self, prompts: int, timeout: float) -> None:
        late = error_body(504, f"no response within the timeout of {timeout:g} s")["error"]
        self._results = ["null"] * prompts
        self._reasons = ["null"] * prompts
        self._versions = ["null"] * prompts
        self._errors = [json.dumps(late)] * prompts
        self._failures = prompts
        self._usage = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}

    def set_completion(self, position: int, completion: Completion) -> None:
        """Set the result of a prompt."""
        self._results[position] = json.dumps(completion.response)
        self._reasons[position] = json.dumps(completion.finish_reason)
        self._versions[position] = json.dumps(completion.model_version)
        self._errors[position] = "null"
        self._failures -= 1
        for kind in self._usage:
            self._usage[kind] += completion.usage.get(kind, 0)

    def set_error(self, position: int, error: Exception) -> None:
        """Set the error of a prompt. A prompt without an outcome has that of the time limit."""
        self._errors[position] = json.dumps(_prompt_error(error))

    def encode(self, elapsed: float) -> bytes:
        """Return the JSON body.

        Args:
            elapsed: Time since the request arrived, in seconds.
        """
        prompts, failures = len(self._results), self._failures
        status = "success" if not failures else "error" if failures == prompts else "partial"
        rest = {
            "usage": self._usage,
            "num_prompts": prompts,
            "total_time": elapsed,
            "avg_time_per_prompt": elapsed / prompts,
        }
        lists = {
            "results": self._results,
            "finish_reasons": self._reasons,
            "errors": self._errors,
            "model_versions": self._versions,
        }
        parts = [f'"{name}": [{", ".join(items)}]' for name, items in lists.items()]
        text = ", ".join([f'{{"status": "{status}"', *parts, json.dumps(rest)[1:]])
        return text.encode("ascii")


def _prompt_error(error: Exception) -> dict[str, Any]:
    if isinstance(error, PromptError):
        body = error_body(error.code, str(error), error.kind, error.param)
    elif isinstance(error, ReplicaError):
        body = error_body(503, error.reason)
    else:
        logger.error("a prompt of /generate failed", exc_info=error)
        body = error_body(500, "internal error; see the server's log")
    detail: dict[str, Any] = body["error"]
    return detail
