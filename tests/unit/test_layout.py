"""The layout of the packages: a unit test file for each module, and folders of a readable size."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = {"rhapsody": ROOT / "tests/unit", "asyncflow_ext": ROOT / "tests/unit/asyncflow_ext"}

LARGEST_FOLDER = 16
"""Modules in one folder, `__init__.py` not counted."""

RE_EXPORTS = {
    "rhapsody/api/errors.py",
    "rhapsody/api/task.py",
    "rhapsody/backends/ai/config.py",
    "rhapsody/backends/ai/vllm.py",
    "rhapsody/backends/discovery.py",
    "rhapsody/backends/execution/concurrent.py",
    "rhapsody/backends/execution/dask_parallel.py",
    "rhapsody/backends/execution/dragon.py",
    "rhapsody/backends/execution/noop.py",
}
"""Modules that only keep names for programs written for `rhapsody-py`: see api/test_names.py."""

PROTOCOLS = {
    "rhapsody/inference/replicas/launcher.py",
}
"""Modules that hold only `typing.Protocol` classes: mypy checks them."""

TESTS_THEMSELVES = "rhapsody/testing/conformance/"
"""The conformance suite runs over every backend in tests/conformance."""


def modules() -> list[str]:
    found = [
        str(path.relative_to(ROOT))
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
        if path.name != "__init__.py"
    ]
    return sorted(
        name
        for name in found
        if name not in RE_EXPORTS | PROTOCOLS and not name.startswith(TESTS_THEMSELVES)
    )


@pytest.mark.parametrize("module", modules())
def test_module_has_a_unit_test_file(module: str) -> None:
    package, _, inside = module.partition("/")
    mirrored = PACKAGES[package] / Path(inside).parent
    name = Path(inside).stem.strip("_")
    assert (
        (mirrored / f"test_{name}.py").exists()
        or list(mirrored.glob(f"test_{name}_*.py"))
        or list((mirrored / name).glob("test_*.py"))
    ), f"{module} has no test_{name}.py, test_{name}_*.py or {name}/ in {mirrored}"


def test_folders_are_small() -> None:
    sizes: dict[str, int] = {}
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            if path.name != "__init__.py":
                folder = str(path.parent.relative_to(ROOT))
                sizes[folder] = sizes.get(folder, 0) + 1
    assert {folder: size for folder, size in sizes.items() if size > LARGEST_FOLDER} == {}


def test_exempt_modules_exist() -> None:
    assert [name for name in RE_EXPORTS | PROTOCOLS if not (ROOT / name).exists()] == []
