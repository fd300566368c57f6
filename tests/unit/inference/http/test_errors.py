"""Error responses: the status, the headers and the format of each error."""

import json
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request

from rhapsody.errors import OverloadedError, PromptError, ReplicaError
from rhapsody.inference.http.bodies import BodyError
from rhapsody.inference.http.errors import error_body, error_response
from rhapsody.inference.protocol.process import MAX_BODY_BYTES


def respond(error: Exception, path: str = "/generate") -> tuple[web.Response, dict[str, Any]]:
    response = error_response(make_mocked_request("POST", path), error)
    assert isinstance(response.text, str)
    body = json.loads(response.text)
    assert body.keys() == {"error"}
    return response, body["error"]


@pytest.mark.parametrize(
    ("error", "status", "kind", "message"),
    [
        (BodyError("prompts: missing", "prompts"), 400, "BadRequestError", "prompts: missing"),
        (PromptError("too long", 422, "TooLong", "prompt"), 422, "TooLong", "too long"),
        (ReplicaError("none is left"), 503, "ServiceUnavailable", "none is left"),
        (web.HTTPUnauthorized(), 401, "AuthenticationError", "Authorization: Bearer <key>"),
        (web.HTTPNotFound(), 404, "NotFoundError", "/generate does not exist; try /health"),
        (web.HTTPMethodNotAllowed("POST", ["GET"]), 405, "MethodNotAllowed", "only GET"),
        (web.HTTPRequestEntityTooLarge(1, 2), 413, "RequestTooLarge", str(MAX_BODY_BYTES)),
        (web.HTTPNotImplemented(text="not here"), 501, "NotImplementedError", "not here"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
def test_error_has_status_kind_and_message(
    error: Exception, status: int, kind: str, message: str
) -> None:
    response, body = respond(error)
    assert response.status == body["code"] == status
    assert body["type"] == kind
    assert message in body["message"]


def test_invalid_field_is_named_as_param() -> None:
    assert respond(BodyError("wrong", "timeout"))[1]["param"] == "timeout"
    assert respond(PromptError("wrong", 400, "BadRequestError", "n"))[1]["param"] == "n"


@pytest.mark.parametrize("error", [OverloadedError(5, 5), ReplicaError("gone")])
def test_temporary_errors_ask_to_retry(error: Exception) -> None:
    response, _ = respond(error)
    assert response.status == 503
    assert response.headers["Retry-After"] == "1"


def test_log_lines_of_a_server_are_not_sent() -> None:
    _, body = respond(ReplicaError("it died", "a secret path"))
    assert "secret" not in body["message"]


def test_text_of_unexpected_errors_is_not_sent() -> None:
    response, body = respond(RuntimeError("a secret"))
    assert response.status == 500
    assert body["message"] == "internal error; see the server's log"


def test_headers_of_http_errors_are_kept() -> None:
    error = web.HTTPUnauthorized(headers={"WWW-Authenticate": "Bearer", "X-Other": "1"})
    response, _ = respond(error)
    assert response.headers["WWW-Authenticate"] == "Bearer"
    assert "X-Other" not in response.headers
    assert respond(web.HTTPMethodNotAllowed("POST", ["GET"]))[0].headers["Allow"] == "GET"


def test_kind_defaults_to_the_name_of_the_status() -> None:
    assert error_body(404, "no")["error"]["type"] == "NotFoundError"
    assert error_body(418, "no")["error"]["type"] == "Error"
    assert error_body(404, "no", "Own")["error"]["type"] == "Own"


def test_message_has_no_control_sequences() -> None:
    _, body = respond(BodyError("\x1b[31munknown field '\x1b]0;title\x07a'"))
    assert body["message"] == "unknown field 'a'"
