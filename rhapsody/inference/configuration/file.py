"""The YAML file of `config_file=`, and the keys of the embedded model in it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import Field, StrictFloat, StrictInt, StrictStr, ValidationError
from typing_extensions import TypedDict

from rhapsody.errors import ConfigurationError
from rhapsody.suggest import unknown_name
from rhapsody.validation import Count, FieldValidator

__all__ = ["EMBEDDED_KEYS", "embedded_options", "read_config_file"]

EmbeddedKeys = TypedDict(
    "EmbeddedKeys",
    {
        "labels": Annotated[StrictStr, Field(description="names of labels, with commas between")],
        "max-model-len": Annotated[StrictInt, Field(ge=2, description="a whole number above 1")],
        "max-num-seqs": Count,
        "seed": Annotated[StrictInt, Field(description="a whole number")],
        "token-delay-ms": Annotated[StrictFloat, Field(ge=0, description="a number of at least 0")],
    },
    total=False,
)
EMBEDDED_KEYS = FieldValidator(EmbeddedKeys)
"""Keys of a configuration file that the embedded model takes."""


def read_config_file(path: str | os.PathLike[str] | None) -> Mapping[Any, Any]:
    """Read a YAML file of keys and values.

    Args:
        path: The file; None: no keys.

    Raises:
        ConfigurationError: The file cannot be read, or is not a mapping in YAML.
    """
    if path is None:
        return {}
    name = f"config_file {os.fspath(path)!r}"
    try:
        loaded = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(f"{name} cannot be read: {error.strerror}") from error
    except yaml.MarkedYAMLError as error:
        # The parser's own message quotes the file, which may hold a secret.
        mark = f", line {error.problem_mark.line + 1}" if error.problem_mark is not None else ""
        problem = f"{error.problem or error.context}{mark}"
        raise ConfigurationError(f"{name} is not valid YAML: {problem}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise ConfigurationError(f"{name} is not valid YAML: {reason}") from None
    if loaded is None:
        return {}
    if not isinstance(loaded, Mapping):
        raise ConfigurationError(
            f"{name} must hold 'key: value' lines, not a {type(loaded).__name__}"
        )
    return loaded


def embedded_options(where: str, loaded: Mapping[Any, Any]) -> dict[str, Any]:
    """Validate the keys of a file for the embedded model, and return them as its options.

    Args:
        where: The file, for error messages.
        loaded: The keys and values of the file.

    Raises:
        ConfigurationError: A key is unknown, or a value is invalid.
    """
    options = {str(key).replace("_", "-"): value for key, value in loaded.items()}
    for key in options:
        if key not in EMBEDDED_KEYS.names:
            unknown = unknown_name("key", key, EMBEDDED_KEYS.names)
            raise ConfigurationError(f"{where}: {unknown}")
    try:
        return EMBEDDED_KEYS.validate(options)
    except ValidationError as error:
        fault = EMBEDDED_KEYS.find_fault(error, options)
        raise ConfigurationError(f"{where}: {fault.message}") from None
