"""The documentation is true: its code runs, and what cannot run here names what exists.

A page's `python` and `bash` blocks run one after the other, Python in one namespace, with `await`
as in a notebook, and bash with the page's texts as variables in capitals (`endpoint` is
`$ENDPOINT`). One that cannot run here has `<!-- not run: reason -->` before it, and is looked at in
another way. `WAYS` lists them all; a block that fits none is an error. The pages that need the
`dragon` command run in tests/under_dragon.
"""

import asyncio
import inspect
import os
import re
import runpy
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from rhapsody.api import errors
from rhapsody.backends import BaseBackend
from rhapsody.inference.config import InferenceConfig
from rhapsody.inference.vllm.options import options_from
from rhapsody.inference.vllm.versions import arguments_known, server_root
from tests.runtimes import RUNTIMES
from tests.support.code_checks import PageChecker
from tests.support.command_checks import check_script, extras, targets
from tests.support.pages import (
    DOCS,
    NOT_RUN,
    PAGES,
    ROOT,
    Block,
    blocks_of,
    indented_code_of,
    name_of,
    prose_of,
)
from tests.support.vllm_servers import set_environment

pytestmark = pytest.mark.asyncflow

WAYS = {
    ("python", "run"): "runs, after the blocks before it",
    ("python", "not run"): "compiles; its imports, names and calls are checked",
    ("bash", "run"): "runs, after the blocks before it",
    ("bash", "not run"): "parses; its commands, options and files are checked",
    ("yaml", "run"): "is read; its keys are those of vLLM",
    ("toml", "run"): "is read",
    ("text", "run"): "is shown as it is",
}
"""What is done with a block, by its language and whether it is marked as not run."""

PAGE_SECONDS = 120
VLLM_SECONDS = 360
MARKERS = {runtime.marker for runtime in RUNTIMES}
UNDER_DRAGON = [DOCS / name for name in ("clusters.md", "dragon.md", "dragon-vllm.md")]
CURL = "fail\nsilent\nshow-error\nmax-time = 30\n"


def way_of(block: Block) -> str:
    kind = (block.language, "not run" if block.reason else "run")
    assert kind in WAYS, f"{block.where}: no way to check a block of {' '.join(kind)}"
    return WAYS[kind]


def is_open(backend: BaseBackend) -> bool:
    return backend.state() not in ("IDLE", "STOPPED", "FAILED")


def with_marker(page: Path) -> Any:
    """Mark the page of a backend whose runtime may not be installed."""
    marks = [getattr(pytest.mark, page.stem)] if page.stem in MARKERS else []
    if page.stem == "vllm":
        marks.append(pytest.mark.slow)
    marks.append(pytest.mark.timeout(VLLM_SECONDS if page.stem == "vllm" else PAGE_SECONDS))
    return pytest.param(page, marks=marks, id=name_of(page))


def all_blocks(language: str, *, run: bool) -> list[Any]:
    return [
        pytest.param(block, id=block.where)
        for page in PAGES
        for block in blocks_of(page)
        if block.language == language and (block.reason is None) == run
    ]


@pytest.mark.parametrize("page", [with_marker(p) for p in PAGES if p not in UNDER_DRAGON])
def test_the_code_of_a_page_runs(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    limit = PAGE_SECONDS / 2
    if page.stem == "vllm":
        set_environment(monkeypatch)
        limit = VLLM_SECONDS - 30
    run_code_of(page, limit)


def run_code_of(page: Path, limit: float = PAGE_SECONDS / 2) -> None:
    """Run a page's blocks in order, in the working directory.

    Args:
        page: The page.
        limit: Longest time for a block, in seconds.
    """
    namespace: dict[str, object] = {"__name__": "__main__"}
    loop = asyncio.new_event_loop()
    try:
        for block in blocks_of(page):
            if block.reason is None and block.language == "python":
                outcome = eval(block.compile(), namespace)
                if inspect.iscoroutine(outcome):
                    loop.run_until_complete(asyncio.wait_for(outcome, limit))
            elif block.reason is None and block.language == "bash":
                run_commands(block, namespace, limit)
        open_ = [b.name for b in namespace.values() if isinstance(b, BaseBackend) and is_open(b)]
        assert open_ == [], "the page leaves backends running"
        assert asyncio.all_tasks(loop) == set(), "the page leaves tasks running"
        loop.run_until_complete(loop.shutdown_asyncgens())
    finally:
        loop.close()


def run_commands(block: Block, namespace: dict[str, object], limit: float) -> None:
    texts = {name.upper(): text for name, text in namespace.items() if isinstance(text, str)}
    Path(".curlrc").write_text(CURL)
    run = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", block.code],
        env={**os.environ, **texts, "CURL_HOME": os.getcwd()},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=limit,
    )
    assert run.returncode == 0, f"{block.where}: {run.stdout}{run.stderr}"


def test_every_block_is_looked_at_in_some_way() -> None:
    ways = {block.where: way_of(block) for page in PAGES for block in blocks_of(page)}
    assert set(ways.values()) == set(WAYS.values()), "a way that no block needs"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_no_code_escapes(page: Path) -> None:
    assert indented_code_of(page) == [], "put it between fences, with its language"
    marked = [block for block in blocks_of(page) if block.reason]
    marks = re.findall(NOT_RUN.pattern.removesuffix(r"\Z"), page.read_text())
    assert len(marks) == len(marked), "a mark stands directly before its block"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_python_that_is_not_run_names_what_exists(page: Path) -> None:
    checker = PageChecker()
    for block in blocks_of(page):
        if block.language == "python":
            block.compile()
            checker.read(block.code, check=block.reason is not None)
            assert checker.complaints == [], block.where


@pytest.mark.parametrize("block", all_blocks("bash", run=False))
def test_commands_that_are_not_run_name_what_exists(block: Block) -> None:
    shown = set(re.findall(r"`([\w-]+\.(?:py|sh))`", prose_of(block.page)))
    check_script(block.code, shown)


@pytest.mark.vllm
@pytest.mark.parametrize("block", all_blocks("yaml", run=True))
def test_the_keys_of_a_configuration_file_are_known(block: Block) -> None:
    root = server_root()
    assert root is not None
    known = arguments_known(root).names
    options_from(block.where, yaml.safe_load(block.code), InferenceConfig("any"), known)


@pytest.mark.parametrize("block", all_blocks("toml", run=True))
def test_toml_is_read(block: Block) -> None:
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 reads no TOML")
    assert tomllib.loads(block.code)


@pytest.mark.dask
def test_the_jobs_of_dask_workers_are_what_the_page_says(tmp_path: Path) -> None:
    from dask_jobqueue import SLURMCluster

    page = DOCS / "clusters.md"
    call = re.search(r"SLURMCluster\(\n.*?\n    \)", page.read_text(), re.S)
    assert call is not None
    here = {
        "interface": "lo",  # the page's own is that of a cluster
        "log_directory": str(tmp_path),
        "scheduler_options": {"dashboard_address": "127.0.0.1:0"},
    }
    options = eval(call[0], {"SLURMCluster": dict}) | here
    with SLURMCluster(**options) as cluster:
        script = cluster.job_script()
    for line in ("-p standard", "-A my-project", "--cpus-per-task=32", "-t 01:00:00"):
        assert f"#SBATCH {line}\n" in script
    assert "source .venv/bin/activate\n" in script
    assert "--nthreads 4" in script
    assert "--nworkers 8" in script


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_prose_names_targets_and_extras_that_exist(page: Path) -> None:
    text = prose_of(page)
    for target in re.findall(r"`make ([a-z][a-z-]*)", text):
        assert target in targets(), f"there is no `make {target}`"
    for named in re.findall(r"\.\[([\w,-]+)\]", text):
        assert set(named.split(",")) <= extras(), f"there is no extra {named}"


def test_pictures_are_as_their_script_draws_them() -> None:
    drawn = dict(runpy.run_path(str(DOCS / "images" / "draw.py"))["drawings"]())
    assert sorted(drawn) == sorted(DOCS.glob("images/*.svg"))
    for path, text in drawn.items():
        assert path.read_text() == text, f"{path.name}: run docs/images/draw.py"


def test_every_picture_is_shown_and_described() -> None:
    shown = [
        found
        for page in PAGES
        for found in re.findall(r"!\[([^\]]*)\]\((?:docs/)?(images/\S+\.svg)\)", page.read_text())
    ]
    assert all(len(description) > 20 for description, _ in shown)
    assert {DOCS / target for _, target in shown} == set(DOCS.glob("images/*.svg"))


def test_every_error_has_its_cause_and_cure() -> None:
    table = re.findall(
        r"^\| `(\w+)`.*\| .+ \| .+ \|$", prose_of(DOCS / "reference/errors.md"), re.M
    )
    assert set(errors.__all__) - {"RhapsodyError"} <= set(table)


def test_every_variable_that_is_read_is_explained() -> None:
    page = (DOCS / "reference" / "environment.md").read_text()
    internal = {"RHAPSODY_REPLICA_KEY", "RHAPSODY_HANG_SECONDS", "RHAPSODY_PARENT_FD"}
    internal |= {"RHAPSODY_WARDEN_HEAD", "RHAPSODY_WARDEN_KEY"}
    sources = "\n".join(path.read_text() for path in (ROOT / "rhapsody").rglob("*.py"))
    for name in set(re.findall(r"\bRHAPSODY_[A-Z_]+\b", sources)) - internal:
        assert f"`{name}`" in page, f"{name} is missing"


def test_every_module_has_its_line_on_the_page_about_the_architecture() -> None:
    page = (DOCS / "architecture.md").read_text()
    only_names = ROOT / "rhapsody" / "backends" / "execution"  # the page names the folder
    for room in ("rhapsody", "asyncflow_ext"):
        for module in sorted((ROOT / room).rglob("*.py")):
            if module.name != "__init__.py" and module.parent != only_names:
                assert f"`{module.relative_to(ROOT)}`" in page


def test_the_navigation_names_every_page_once() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text().partition("\nnav:\n")[2]
    named = re.findall(r": (\S+\.md)$", navigation, re.M)
    assert sorted(named) == [str(page.relative_to(DOCS)) for page in PAGES[1:]]
