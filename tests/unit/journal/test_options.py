"""The options of a task that its result depends on."""

from pathlib import Path
from typing import Any

import pytest

from rhapsody.journal.options import input_files, key_options
from rhapsody.resources import Resources


def key(**options: Any) -> Any:
    return key_options({"task_backend_specific_kwargs": options}, "executable")


def test_task_without_options_has_none() -> None:
    assert key_options({}, "executable") == []
    assert key_options({"task_backend_specific_kwargs": None, "resources": None}, "function") == []


@pytest.mark.parametrize("name", ["cwd", "env", "ranks", "shell", "stdin"])
def test_option_for_backends_counts(name: str) -> None:
    assert key(**{name: 1}) != key(**{name: 2})


@pytest.mark.parametrize("name", ["policy", "pmi", "timeout"])
def test_option_without_effect_on_the_result_does_not_count(name: str) -> None:
    assert key(**{name: 1}) == []


def test_template_counts_by_what_changes_the_result() -> None:
    template = {"env": {"A": "1"}, "policy": object()}
    assert key(process_template=template) == key(process_template={"env": {"A": "1"}})
    for other in ({}, {"env": {"A": "2"}}, {"env": {"A": "1"}, "cwd": "/"}):
        assert key(process_template=template) != key(process_template=other)
    assert key(process_templates=[(2, template)]) != key(process_templates=[(3, template)])
    assert key(process_templates="wrong") == key(process_template=1) == []


@pytest.mark.parametrize("resources", [{"env": {"A": "1"}}, {"ranks": 2}])
def test_environment_and_ranks_of_resources_count(resources: dict[str, Any]) -> None:
    found = key_options({"resources": resources}, "function")
    assert found == key_options({"resources": Resources(**resources)}, "function") != []


def test_gpus_and_memory_do_not_count() -> None:
    assert key_options({"resources": {"gpus": 1, "memory": "1 GB", "cpus": 2}}, "function") == []


def test_captured_output_counts_for_executables() -> None:
    assert key_options({"capture_stdio": True}, "executable") != []
    assert key_options({"capture_stdio": True}, "function") == []


def test_file_for_the_standard_input_is_an_input() -> None:
    def files(stdin: Any) -> list[str]:
        return input_files({"task_backend_specific_kwargs": {"stdin": stdin}})

    assert files(Path("data")) == ["data"]
    assert files("text") == files(None) == input_files({}) == []
