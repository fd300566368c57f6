"""The name of any backend."""

from typing import Any

import pytest

from rhapsody.backends import BaseBackend


@pytest.mark.parametrize("name", ["", 7])
def test_a_name_is_a_non_empty_string(name: Any) -> None:
    with pytest.raises(ValueError, match="non-empty string"):
        BaseBackend(name)


def test_the_default_name_is_the_class() -> None:
    assert BaseBackend().name == "BaseBackend"
