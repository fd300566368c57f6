"""Refused values are explained in one sentence."""

from pathlib import Path
from typing import Annotated, Any

import pytest
from pydantic import Field, ValidationError
from typing_extensions import TypedDict

from rhapsody.errors import ConfigurationError
from rhapsody.validation import (
    Count,
    Fault,
    FieldValidator,
    NonEmptyStr,
    Seconds,
    StrictModel,
    ZeroOrMore,
    checked_path,
    is_number,
    must_be,
    plain_numbers,
)


class Fields(TypedDict, total=False):
    count: Count
    retries: ZeroOrMore
    name: NonEmptyStr
    timeout: Seconds
    secret: Annotated[str, Field(min_length=8, repr=False, description="a long text")]


FIELDS = FieldValidator(Fields)


class Settings(StrictModel):
    count: Count
    retries: ZeroOrMore = 0
    timeout: Seconds = 1.0
    service: Annotated[bool, Field(description="a boolean")] = False


def fault_of(**given: Any) -> Fault:
    with pytest.raises(ValidationError) as refused:
        FIELDS.validate(given)
    return FIELDS.find_fault(refused.value, given)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("count", 0, "'count' must be a whole number of at least 1, got 0"),
        ("count", True, "'count' must be a whole number of at least 1, got True"),
        ("count", 1.0, "'count' must be a whole number of at least 1, got 1.0"),
        ("count", "1", "'count' must be a whole number of at least 1, got '1'"),
        ("retries", -1, "'retries' must be a whole number of at least 0, got -1"),
        ("name", "", "'name' must be a non-empty string, got ''"),
        ("name", b"x", "'name' must be a non-empty string, got b'x'"),
        ("timeout", 0, "'timeout' must be a number of seconds above 0, got 0"),
        ("timeout", "5", "'timeout' must be a number of seconds above 0, got '5'"),
        ("timeout", True, "'timeout' must be a number of seconds above 0, got True"),
        ("timeout", float("nan"), "'timeout' must be a number of seconds above 0, got nan"),
    ],
)
def test_wrong_value_is_explained(field: str, value: Any, message: str) -> None:
    fault = fault_of(**{field: value})
    assert fault.message == message
    assert (fault.field, fault.value is value) == (field, True)


@pytest.mark.parametrize(
    "given",
    [{}, {"count": 1}, {"timeout": 1}, {"timeout": float("inf")}, {"name": "caf\udce9.txt"}],
    ids=repr,
)
def test_only_given_fields_are_validated(given: dict[str, Any]) -> None:
    assert FIELDS.validate(given) == given


@pytest.mark.parametrize(
    ("field", "value"), [("count", "int64(3)"), ("retries", "uint8(0)"), ("timeout", "float32(2)")]
)
def test_numpy_scalar_becomes_a_number(field: str, value: str) -> None:
    numpy = pytest.importorskip("numpy")
    scalar = eval(value, vars(numpy))
    for validated in (
        FIELDS.validate({field: scalar})[field],
        getattr(Settings(**{"count": 1, field: scalar}), field),
    ):
        assert (validated, type(validated)) == (scalar.item(), type(scalar.item()))


@pytest.mark.parametrize("value", ["bool_(True)", "float64(1)", "int64(0)", "array([1])"])
def test_invalid_numpy_value_is_refused(value: str) -> None:
    numpy = pytest.importorskip("numpy")
    fault_of(count=eval(value, vars(numpy)))


def test_secret_value_is_not_repeated() -> None:
    fault = fault_of(secret="hidden")
    assert fault == Fault("secret", None, "'secret' must be a long text")


def test_long_value_is_shortened() -> None:
    assert len(must_be("count", "a whole number", "x" * 1000)) < 120


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"count": 0}, "'count' must be a whole number of at least 1, got 0"),
        ({}, "'count' is missing; it must be a whole number of at least 1"),
        ({"count": 1, "service": 1}, "'service' must be a boolean, got 1"),
        (
            {"count": 1, "servce": True},
            "unknown field 'servce'; did you mean 'service'? "
            "Known: count, retries, service, timeout",
        ),
    ],
)
def test_model_raises_one_sentence(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match="'") as refused:
        Settings(**given)
    assert str(refused.value) == message


def test_model_keeps_valid_values() -> None:
    settings = Settings(count=2, service=True)
    assert (settings.count, settings.service) == (2, True)


def test_numpy_scalars_are_replaced_everywhere() -> None:
    np = pytest.importorskip("numpy")
    plain = plain_numbers({np.int64(1): np.float32(0.5), "list": [np.int32(2), "x"], "n": None})
    assert plain == {1: 0.5, "list": [2, "x"], "n": None}
    assert [type(key) for key in plain] == [int, str, str]
    assert type(plain["list"][0]) is int


def test_path_is_checked() -> None:
    assert checked_path("journal", Path("a/b")) == "a/b"
    assert checked_path("journal", b"a") == "a"
    with pytest.raises(ConfigurationError, match="'journal' must be a path, got 5"):
        checked_path("journal", 5)


@pytest.mark.parametrize("value", [0, -1.5, float("inf"), 10**300])
def test_number_fits_a_float(value: float) -> None:
    assert is_number(value)


@pytest.mark.parametrize("value", [None, "1", True, 1j, float("nan"), 10**400])
def test_what_is_no_number(value: object) -> None:
    assert not is_number(value)
