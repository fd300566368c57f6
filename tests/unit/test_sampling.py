"""The sampling parameters of a prompt."""

from typing import Any

import pydantic
import pytest

from rhapsody.inference.embedded.sampling import PARAMETERS
from rhapsody.inference.vllm.versions import server_root
from rhapsody.sampling import SAMPLING_FIELDS, is_model_class


class Model(pydantic.BaseModel):
    number: int


def test_embedded_model_knows_every_sampling_field() -> None:
    assert SAMPLING_FIELDS <= PARAMETERS


@pytest.mark.vllm
def test_vllm_knows_every_sampling_field() -> None:
    root = server_root()
    assert root is not None
    source = (root / "sampling_params.py").read_text(encoding="utf-8")  # the import takes 10 s
    translated = {"response_format"}  # by the engine adapter
    missing = {name for name in SAMPLING_FIELDS if f"\n    {name}: " not in source}
    assert missing == translated


@pytest.mark.parametrize(
    ("response_format", "expected"),
    [(Model, True), (Model(number=1), False), ({"type": "text"}, False), (dict, False)],
    ids=["class", "instance", "dict", "other class"],
)
def test_only_pydantic_classes_are_model_classes(response_format: Any, expected: bool) -> None:
    assert is_model_class(response_format) is expected
