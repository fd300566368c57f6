"""The documentation is true: its Python runs, and what it points to is there.

A page's `python` blocks run one after the other in one namespace, with `await` as in a notebook.
One that cannot run here has `<!-- not run: reason -->` before it; it is compiled, and what it
imports from Rhapsody must exist. The page on Dragon runs in tests/under_dragon.
"""

import ast
import asyncio
import importlib
import inspect
import re
import types
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from rhapsody.backends import BaseBackend
from tests.runtimes import RUNTIMES
from tests.support.vllm_servers import set_environment

pytestmark = pytest.mark.asyncflow

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md"))]

FENCE = re.compile(
    r"^(?P<indent> *)```(?P<language>\w*)\n(?P<code>.*?)^(?P=indent)```$", re.M | re.S
)
NOT_RUN = re.compile(r"<!-- not run: \S.* -->\s*\Z")
LINK = re.compile(r"\[[^\]]*\]\((?P<target>[^)\s]+)\)")


@dataclass
class Block:
    page: Path
    line: int
    language: str
    code: str
    run: bool

    def compile(self) -> types.CodeType:
        """Compile it so that a traceback names the page's own line."""
        padded = "\n" * (self.line - 1) + self.code
        flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
        return compile(padded, str(self.page), "exec", flags, dont_inherit=True)


def blocks_of(page: Path) -> Iterator[Block]:
    text = page.read_text()
    for match in FENCE.finditer(text):
        before = text[: match.start()]
        indent = match["indent"]
        code = "\n".join(line.removeprefix(indent) for line in match["code"].split("\n"))
        line = before.count("\n") + 2
        yield Block(page, line, match["language"], code, NOT_RUN.search(before) is None)


def prose_of(page: Path) -> str:
    return FENCE.sub("", page.read_text())


def slugs_of(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", prose_of(page), re.M)
    return {re.sub(r"[^\w\- ]", "", h.lower()).strip().replace(" ", "-") for h in headings}


def is_open(backend: BaseBackend) -> bool:
    return backend.state() not in ("IDLE", "STOPPED", "FAILED")


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


VLLM_SECONDS = 360
MARKERS = {runtime.marker for runtime in RUNTIMES}
UNDER_DRAGON = ROOT / "docs" / "dragon.md"


def with_marker(page: Path) -> Any:
    """Mark the page of a backend whose runtime may not be installed."""
    marks = [getattr(pytest.mark, page.stem)] if page.stem in MARKERS else []
    if page.stem == "vllm":
        marks += [pytest.mark.slow, pytest.mark.timeout(VLLM_SECONDS)]
    return pytest.param(page, marks=marks, id=name_of(page))


@pytest.mark.parametrize("page", [with_marker(p) for p in PAGES if p != UNDER_DRAGON])
def test_the_code_of_a_page_runs(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    limit = 30
    if page.stem == "vllm":
        set_environment(monkeypatch)
        limit = VLLM_SECONDS - 30
    run_code_of(page, limit)


def run_code_of(page: Path, limit: float = 30) -> None:
    namespace: dict[str, object] = {"__name__": "__main__"}
    loop = asyncio.new_event_loop()
    try:
        for block in blocks_of(page):
            if block.language == "python" and block.run:
                outcome = eval(block.compile(), namespace)
                if inspect.iscoroutine(outcome):
                    loop.run_until_complete(asyncio.wait_for(outcome, limit))
        open_ = [b.name for b in namespace.values() if isinstance(b, BaseBackend) and is_open(b)]
        assert open_ == [], "the page leaves backends running"
        assert asyncio.all_tasks(loop) == set(), "the page leaves tasks running"
        loop.run_until_complete(loop.shutdown_asyncgens())
    finally:
        loop.close()


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_code_that_is_not_run_compiles_and_imports_what_exists(page: Path) -> None:
    for block in blocks_of(page):
        if block.language == "python" and not block.run:
            block.compile()
            for node in ast.walk(ast.parse(block.code)):
                if isinstance(node, ast.ImportFrom) and _is_ours(node.module or ""):
                    module = importlib.import_module(node.module or "")
                    for alias in node.names:
                        assert hasattr(module, alias.name), f"{node.module} has no {alias.name}"


def _is_ours(module: str) -> bool:
    return module.split(".")[0] in ("rhapsody", "asyncflow_ext")


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_name_what_exists(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    project = (ROOT / "pyproject.toml").read_text()
    optional = project.partition("\n[project.optional-dependencies]\n")[2].partition("\n[")[0]
    extras = set(re.findall(r"^([\w-]+) = \[", optional, re.M))
    shell = "\n".join(b.code for b in blocks_of(page) if b.language in ("bash", "console"))
    text = shell + prose_of(page)
    for target in re.findall(r"(?:^|`)make ([a-z][a-z-]*)", text, re.M):
        assert target in targets, f"there is no `make {target}`"
    for named in re.findall(r"\.\[([\w,-]+)\]", text):
        assert set(named.split(",")) <= extras, f"there is no extra {named}"
    for script in re.findall(r"\bexamples/[\w./]+\.py", text):
        assert (ROOT / script).is_file(), f"there is no {script}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    for match in LINK.finditer(prose_of(page)):
        target, _, anchor = match["target"].partition("#")
        if re.match(r"[a-z]+:", target):
            continue
        path = (page.parent / target).resolve() if target else page
        assert path.exists(), f"{match['target']}: no such file"
        if anchor:
            assert anchor in slugs_of(path), f"{match['target']}: no such heading"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_files_that_are_named_exist(page: Path) -> None:
    rooms = "rhapsody|asyncflow_ext|tests|examples|docs|benchmarks"
    for path in re.findall(rf"`((?:{rooms})/[\w./-]*)`", prose_of(page)):
        assert (ROOT / path).exists(), f"there is no {path}"


def test_the_navigation_names_every_page_once() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text().partition("\nnav:\n")[2]
    named = re.findall(r": (\S+\.md)$", navigation, re.M)
    assert sorted(named) == [str(page.relative_to(ROOT / "docs")) for page in PAGES[1:]]


def test_every_python_block_has_its_language() -> None:
    for page in PAGES:
        for block in blocks_of(page):
            assert block.language, f"{page.name}:{block.line}: name the language, or say `text`"
