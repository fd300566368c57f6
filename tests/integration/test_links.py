"""Links of the documentation: their files and headings exist, and external addresses are listed."""

import re
from pathlib import Path

import pytest

from tests.support.pages import DOCS, PAGES, ROOT, links_of, name_of, prose_of, slugs_of

TEXTS = [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *ROOT.glob("examples/*.md")]

EXTERNAL = {
    "https://distributed.dask.org",
    "https://docs.dask.org/en/stable/configuration.html",
    "https://docs.vllm.ai",
    "https://dragonhpc.org",
    "https://github.com/ipython/ipykernel/issues/881",
    "https://github.com/radical-cybertools/radical.asyncflow",
    "https://jobqueue.dask.org",
    "https://keepachangelog.com/en/1.1.0/",
    "https://semver.org/spec/v2.0.0.html",
}
"""All external addresses that pages link to; they are checked by hand."""

FOLDERS = "rhapsody|asyncflow_ext|tests|examples|docs|benchmarks"


@pytest.mark.parametrize("page", TEXTS, ids=name_of)
def test_link_targets_exist(page: Path) -> None:
    for link in links_of(page):
        target, _, anchor = link.partition("#")
        if re.match(r"[a-z]+:", target):
            continue
        path = (page.parent / target).resolve() if target else page
        assert path.exists(), f"{link}: no such file"
        if anchor:
            assert anchor in slugs_of(path), f"{link}: no such heading"


@pytest.mark.parametrize("page", PAGES[1:], ids=name_of)
def test_links_stay_inside_documentation(page: Path) -> None:
    for link in links_of(page):
        target = link.partition("#")[0]
        if target and not re.match(r"[a-z]+:", target):
            assert DOCS in (page.parent / target).resolve().parents, f"{link}: not on the site"


def test_external_links_are_listed() -> None:
    linked = {link for page in TEXTS for link in links_of(page) if re.match(r"[a-z]+:", link)}
    assert linked == EXTERNAL


@pytest.mark.parametrize("page", TEXTS, ids=name_of)
def test_files_named_on_pages_exist(page: Path) -> None:
    named = re.findall(rf"`((?:{FOLDERS})/[\w./-]*)`", prose_of(page))
    named += re.findall(r"\bexamples/[\w./]+\.py", page.read_text())
    for path in named:
        assert (ROOT / path).exists(), f"there is no {path}"


def test_files_named_in_examples_exist() -> None:
    for example in ROOT.glob("examples/*.py"):
        for path in re.findall(r"\b(?:examples|docs)/[\w./-]+\.(?:py|md)", example.read_text()):
            assert (ROOT / path).is_file(), f"{example.name}: there is no {path}"
