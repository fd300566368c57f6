"""Tests of the documentation: code blocks run, and names in other blocks exist.

The `python` and `bash` blocks of a page run in order. Python blocks share a namespace and may use
`await`, as in a notebook. Bash blocks get the page's strings as variables in capitals (`endpoint`
is `$ENDPOINT`). A text block after `<!-- output -->` shows what the Python block before it prints;
"..." in it stands for any text. A block that cannot run has `<!-- not run: reason -->` before it
and is checked statically. `WAYS` lists what happens to each kind of block; other kinds are errors.
Pages that need the `dragon` command run in tests/under_dragon.
"""

import asyncio
import contextlib
import inspect
import io
import json
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
    matches_output,
    name_of,
    prose_of,
)
from tests.support.vllm_servers import set_environment

pytestmark = pytest.mark.asyncflow

WAYS = {
    ("python", "run"): "runs after the blocks before it",
    ("python", "not run"): "is compiled; its imports, names and calls are checked",
    ("bash", "run"): "runs after the blocks before it",
    ("bash", "not run"): "is parsed; its commands, options and files are checked",
    ("yaml", "run"): "is parsed; its keys must be known to vLLM",
    ("yaml", "not run"): "is parsed; it configures another program",
    ("toml", "run"): "is parsed",
    ("json", "run"): "is parsed, each line on its own",
    ("text", "run"): "is not checked, unless it is marked as the output of the block before it",
}
"""How a block is checked, by its language and its mark."""

PAGE_SECONDS = 120
VLLM_SECONDS = 360
MARKERS = {runtime.marker for runtime in RUNTIMES}
UNDER_DRAGON = [DOCS / name for name in ("clusters.md", "dragon.md", "dragon-vllm.md")]
CURL = "fail\nsilent\nshow-error\nmax-time = 30\n"


def way_of(block: Block) -> str:
    kind = (block.language, "not run" if block.reason else "run")
    assert kind in WAYS, f"{block.where}: no check for a block of {' '.join(kind)}"
    return WAYS[kind]


def is_open(backend: BaseBackend) -> bool:
    return backend.state() not in ("IDLE", "STOPPED", "FAILED")


def with_marker(page: Path) -> Any:
    """Add the marks of the runtime that a page needs."""
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
def test_code_of_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    limit = PAGE_SECONDS / 2
    if page.stem == "vllm":
        set_environment(monkeypatch)
        limit = VLLM_SECONDS - 30
    run_code_of(page, limit)


def run_code_of(page: Path, limit: float = PAGE_SECONDS / 2) -> None:
    """Run the blocks of a page in order, in the working directory.

    Args:
        page: The page.
        limit: Time limit for a block, in seconds.
    """
    namespace: dict[str, object] = {"__name__": "__main__"}
    loop = asyncio.new_event_loop()
    printed = ""
    try:
        for block in blocks_of(page):
            if block.is_output:
                assert matches_output(block.code, printed), f"{block.where} is now:\n{printed}"
            elif block.reason is None and block.language == "python":
                with contextlib.redirect_stdout(io.StringIO()) as output:
                    outcome = eval(block.compile(), namespace)
                    if inspect.iscoroutine(outcome):
                        loop.run_until_complete(asyncio.wait_for(outcome, limit))
                printed = output.getvalue()
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
        check=False,
    )
    assert run.returncode == 0, f"{block.where}: {run.stdout}{run.stderr}"


@pytest.mark.parametrize(
    ("expected", "printed", "same"),
    [
        ("45\nhello\n", "45\nhello\n\n", True),
        ("45", "46", False),
        ("ran for ... s", "ran for 0.02 s", True),
        ("ran for ... s", "ran for 0.02 min", False),
        ("first\n...\nlast", "first\nsecond\nthird\nlast", True),
    ],
)
def test_output_of_a_page_is_compared(expected: str, printed: str, same: bool) -> None:
    assert matches_output(expected, printed) is same


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_output_follows_a_block_that_runs(page: Path) -> None:
    blocks = list(blocks_of(page))
    shown = [n for n, block in enumerate(blocks) if block.is_output]
    for number in shown:
        block, before = blocks[number], blocks[number - 1]
        assert block.language == "text", f"{block.where}: output is text"
        assert (before.language, before.reason) == ("python", None), f"{block.where}: of what?"
    marks = page.read_text().count("<!-- output -->")
    assert marks == len(shown), "the mark must be directly between the two blocks"


def test_every_block_is_checked() -> None:
    ways = {block.where: way_of(block) for page in PAGES for block in blocks_of(page)}
    assert set(ways.values()) == set(WAYS.values()), "no block is checked in one of these ways"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_all_code_is_fenced_and_marks_precede_blocks(page: Path) -> None:
    assert indented_code_of(page) == [], "put code between fences that name its language"
    marked = [block for block in blocks_of(page) if block.reason]
    marks = re.findall(NOT_RUN.pattern.removesuffix(r"\Z"), page.read_text())
    assert len(marks) == len(marked), "a mark must be directly before its block"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_names_in_python_not_run_exist(page: Path) -> None:
    checker = PageChecker()
    for block in blocks_of(page):
        if block.language == "python":
            block.compile()
            checker.read(block.code, check=block.reason is not None)
            assert checker.complaints == [], block.where


@pytest.mark.parametrize("block", all_blocks("bash", run=False))
def test_names_in_commands_not_run_exist(block: Block) -> None:
    shown = set(re.findall(r"`([\w-]+\.(?:py|sh))`", prose_of(block.page)))
    check_script(block.code, shown)


@pytest.mark.vllm
@pytest.mark.parametrize("block", all_blocks("yaml", run=True))
def test_keys_of_configuration_file_are_known(block: Block) -> None:
    root = server_root()
    assert root is not None
    known = arguments_known(root).names
    options_from(
        block.where, yaml.safe_load(block.code), vars(InferenceConfig(model_name="any")), known
    )


@pytest.mark.parametrize("block", all_blocks("yaml", run=False))
def test_yaml_not_run_is_valid(block: Block) -> None:
    assert yaml.safe_load(block.code)


@pytest.mark.parametrize("block", all_blocks("toml", run=True))
def test_toml_is_valid(block: Block) -> None:
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 reads no TOML")
    assert tomllib.loads(block.code)


@pytest.mark.parametrize("block", all_blocks("json", run=True))
def test_lines_of_json_are_valid(block: Block) -> None:
    for line in block.code.splitlines():
        assert json.loads(line)


@pytest.mark.dask
def test_job_script_of_dask_workers_matches_page(tmp_path: Path) -> None:
    from dask_jobqueue.slurm import SLURMCluster

    page = DOCS / "clusters.md"
    call = re.search(r"SLURMCluster\(\n.*?\n    \)", page.read_text(), re.S)
    assert call is not None
    here = {
        "interface": "lo",  # the page names one of a cluster
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
def test_targets_and_extras_in_prose_exist(page: Path) -> None:
    text = prose_of(page)
    for target in re.findall(r"`make ([a-z][a-z-]*)", text):
        assert target in targets(), f"there is no `make {target}`"
    for named in re.findall(r"\.\[([\w,-]+)\]", text):
        assert set(named.split(",")) <= extras(), f"there is no extra {named}"


def test_pictures_match_their_script() -> None:
    drawn = dict(runpy.run_path(str(DOCS / "images" / "draw.py"))["drawings"]())
    assert sorted(drawn) == sorted(DOCS.glob("images/*.svg"))
    for path, text in drawn.items():
        assert path.read_text() == text, f"{path.name}: run docs/images/draw.py"


def test_every_picture_is_shown_with_description() -> None:
    shown = [
        found
        for page in PAGES
        for found in re.findall(r"!\[([^\]]*)\]\((?:docs/)?(images/\S+\.svg)\)", page.read_text())
    ]
    assert all(len(description) > 20 for description, _ in shown)
    assert {DOCS / target for _, target in shown} == set(DOCS.glob("images/*.svg"))


def test_every_error_is_documented() -> None:
    table = re.findall(
        r"^\| `(\w+)`.*\| .+ \| .+ \|$", prose_of(DOCS / "reference/errors.md"), re.M
    )
    assert set(errors.__all__) - {"RhapsodyError"} <= set(table)


def test_every_environment_variable_is_documented() -> None:
    page = (DOCS / "reference" / "environment.md").read_text()
    internal = {"RHAPSODY_REPLICA_KEY", "RHAPSODY_HANG_SECONDS", "RHAPSODY_PARENT_FD"}
    internal |= {"RHAPSODY_SUPERVISOR_ADDRESS", "RHAPSODY_SUPERVISOR_KEY"}
    sources = "\n".join(path.read_text() for path in (ROOT / "rhapsody").rglob("*.py"))
    for name in set(re.findall(r"\bRHAPSODY_[A-Z_]+\b", sources)) - internal:
        assert f"`{name}`" in page, f"{name} is missing"


def test_architecture_page_lists_every_module() -> None:
    page = (DOCS / "architecture.md").read_text()
    backends = ROOT / "rhapsody" / "backends"
    only_names = {backends / "ai", backends / "execution"}  # the page names the folders
    for room in ("rhapsody", "asyncflow_ext"):
        for module in sorted((ROOT / room).rglob("*.py")):
            if module.name != "__init__.py" and module.parent not in only_names:
                assert f"`{module.relative_to(ROOT)}`" in page


def test_navigation_lists_every_page_once() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text().partition("\nnav:\n")[2]
    named = re.findall(r": (\S+\.md)$", navigation, re.M)
    assert sorted(named) == [str(page.relative_to(DOCS)) for page in PAGES[1:]]
