"""The error of a model server: its fields, its JSON body, its pickle."""

import pickle

import pytest

from rhapsody.inference.protocol.errors import RequestError, error_body


def test_body_has_the_fields_of_openai() -> None:
    assert error_body(RequestError("no", "top_p")) == {
        "error": {"message": "no", "type": "BadRequestError", "param": "top_p", "code": 400}
    }


@pytest.mark.parametrize(
    ("code", "kind"), [(401, "AuthenticationError"), (404, "NotFoundError"), (418, "APIError")]
)
def test_status_gives_the_kind(code: int, kind: str) -> None:
    assert RequestError("no", code=code).kind == kind


def test_given_kind_replaces_default_kind() -> None:
    assert RequestError("no", code=400, kind="VLLMValidationError").kind == "VLLMValidationError"


def test_cancelled_prompt_has_status_499() -> None:
    error = RequestError.cancelled()
    assert (error.code, error.kind) == (499, "Cancelled")


def test_pickle_keeps_all_fields() -> None:
    error = pickle.loads(pickle.dumps(RequestError("no", "top_p", 404, "Special")))
    assert (error.message, error.param, error.code, error.kind) == ("no", "top_p", 404, "Special")
