"""Configuration files: YAML with keys and values, and the keys of the embedded model."""

from pathlib import Path
from typing import Any

import pytest

from rhapsody.errors import ConfigurationError
from rhapsody.inference.configuration.file import embedded_options, read_config_file


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "config.yaml"


def read_error(path: Path) -> str:
    with pytest.raises(ConfigurationError) as refused:
        read_config_file(path)
    message = str(refused.value)
    assert "\n" not in message
    prefix = f"config_file {str(path)!r} "
    assert message.startswith(prefix)
    return message.removeprefix(prefix)


def test_keys_and_values_are_read(path: Path) -> None:
    path.write_text("dtype: auto\nmax-model-len: 32\n")
    assert read_config_file(path) == {"dtype": "auto", "max-model-len": 32}
    assert read_config_file(str(path)) == read_config_file(path)


def test_no_file_and_empty_file_have_no_keys(path: Path) -> None:
    path.write_text("# nothing yet\n")
    assert read_config_file(None) == read_config_file(path) == {}


def test_missing_file_is_an_error(path: Path) -> None:
    assert read_error(path) == "cannot be read: No such file or directory"


@pytest.mark.parametrize("content", [b"a: [1,\nb: 2", b"\xff\xfe\x00"])
def test_invalid_yaml_is_an_error(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    assert read_error(path).startswith("is not valid YAML: ")


def test_error_names_the_line_without_its_content(path: Path) -> None:
    path.write_text("hf-token: hf_secret\n  dtype: [auto\n")
    message = read_error(path)
    assert "is not valid YAML" in message
    assert "line 2" in message
    assert "hf_secret" not in message


def test_list_is_an_error(path: Path) -> None:
    path.write_text("- a\n- b\n")
    assert read_error(path) == "must hold 'key: value' lines, not a list"


def test_embedded_keys_have_dashes_or_underscores() -> None:
    assert embedded_options("c", {"max_num_seqs": 4, "token-delay-ms": 1.5}) == {
        "max-num-seqs": 4,
        "token-delay-ms": 1.5,
    }


def option_error(**options: Any) -> str:
    with pytest.raises(ConfigurationError) as refused:
        embedded_options("config_file 'c.yaml'", options)
    return str(refused.value)


def test_unknown_key_suggests_the_nearest_one() -> None:
    message = option_error(max_num_seq=4)
    assert message.startswith("config_file 'c.yaml': unknown key 'max-num-seq'; ")
    assert "did you mean 'max-num-seqs'?" in message


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("max_num_seqs", "many", "'max-num-seqs' must be a whole number of at least 1, got 'many'"),
        ("max_num_seqs", 0, "'max-num-seqs' must be a whole number of at least 1, got 0"),
        ("seed", None, "'seed' must be a whole number, got None"),
        ("token_delay_ms", -1, "'token-delay-ms' must be a number of at least 0, got -1"),
    ],
)
def test_invalid_value_names_its_key(key: str, value: Any, message: str) -> None:
    assert option_error(**{key: value}) == f"config_file 'c.yaml': {message}"
