"""`import rhapsody` is quick and needs no optional package."""

import json
import pkgutil
import subprocess
import sys

import pytest

import asyncflow_ext
import rhapsody

LIMIT_S = 0.3
TRIES = 7
NOT_AT_IMPORT = {"aiohttp", "dask", "distributed", "dragon", "radical", "torch", "vllm"}
OPTIONAL = NOT_AT_IMPORT - {"aiohttp", "radical"}

PUBLIC = {
    "rhapsody": [
        "AITask",
        "ComputeTask",
        "Session",
        "discover_backends",
        "enable_logging",
        "get_backend",
    ],
    "rhapsody.api": ["AITask", "ComputeTask", "Session"],
    "rhapsody.backends": [
        "BaseBackend",
        "ConcurrentExecutionBackend",
        "DragonVllmInferenceBackend",
        "NoopExecutionBackend",
    ],
    "asyncflow_ext": ["WorkflowEngine", "extend"],
}


def run_python(code: str, limit_s: float = 50) -> str:
    """Run code in a fresh interpreter and return what it prints."""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=limit_s, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def import_once() -> tuple[float, set[str]]:
    seconds, modules = json.loads(
        run_python(
            "import json, sys, time; start = time.perf_counter(); import rhapsody;"
            "print(json.dumps([time.perf_counter() - start, sorted(sys.modules)]))"
        )
    )
    return seconds, set(modules)


def test_import_takes_less_than_the_limit() -> None:
    import_once()  # writes the byte code
    best = float("inf")
    for _ in range(TRIES):  # another program may use the cores for a moment
        best = min(best, import_once()[0])
        if best < LIMIT_S:
            break
    print(f"import rhapsody: {best:.3f} s")
    assert best < LIMIT_S


def test_import_loads_no_heavy_package() -> None:
    _, modules = import_once()
    assert not modules & NOT_AT_IMPORT


@pytest.mark.parametrize(
    ("module", "name"), [(module, name) for module, names in PUBLIC.items() for name in names]
)
def test_public_name_needs_no_optional_package(module: str, name: str) -> None:
    run_python(
        f"import sys; sys.modules.update(dict.fromkeys({sorted(OPTIONAL)!r}));"
        f"import {module}; {module}.{name}"
    )


@pytest.mark.parametrize("module", sorted(PUBLIC))
def test_all_and_dir_agree(module: str) -> None:
    # `dir` as well as `__all__`: completion in a notebook reads the one, `import *` the other.
    run_python(
        f"import {module} as m; [getattr(m, name) for name in {{*dir(m), *m.__all__}}];"
        "assert set(m.__all__) <= set(dir(m)), set(m.__all__) - set(dir(m))"
    )


THIRD = (
    *("aiohttp", "cloudpickle", "distributed", "dragon", "jinja2", "prometheus_client", "psutil"),
    *("pydantic", "radical.asyncflow", "rich", "typer", "yaml"),
)
# Modules that run in their own programs, or need pytest.
ELSEWHERE = ("rhapsody.inference.vllm.", "rhapsody.testing")


@pytest.mark.timeout(200)
def test_every_module_can_be_imported_first() -> None:
    names = [
        module.name
        for package in (rhapsody, asyncflow_ext)
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
        if not module.name.startswith(ELSEWHERE)
    ]
    # Forking one interpreter per module is quicker than starting one per module.
    failed = run_python(
        f"""
import importlib, os
for name in {THIRD!r}:  # imported before the fork: the order does not matter
    try:
        importlib.import_module(name)
    except ImportError:
        pass
for name in {names!r}:
    child = os.fork()
    if not child:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:  # an extra that is not installed
            assert not error.name.startswith(("rhapsody", "asyncflow_ext")), error
        except BaseException as error:
            print(name, type(error).__name__, error, flush=True)
        os._exit(0)
    os.waitpid(child, 0)
""",
        limit_s=180,
    )
    assert failed == ""


@pytest.mark.parametrize(
    ("name", "home"),
    [
        ("WorkflowEngine", "asyncflow_ext"),
        ("extend", "asyncflow_ext"),
        ("ConcurrentExecutionBackend", "rhapsody.backends"),
        ("DragonVllmInferenceBackend", "rhapsody.backends"),
        ("TaskCancelledError", "rhapsody.api"),
    ],
)
def test_misplaced_import_names_the_right_package(name: str, home: str) -> None:
    with pytest.raises(ImportError, match=f"from {home} import {name}"):
        exec(f"from rhapsody import {name}")


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = rhapsody.nonsense
