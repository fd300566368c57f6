"""Pages of the documentation: their code blocks, prose, headings and links."""

import ast
import re
import types
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("**/*.md"))]

FENCE = re.compile(
    r"^(?P<indent> *)```(?P<language>\w*)\n(?P<code>.*?)^(?P=indent)```$", re.M | re.S
)
NOT_RUN = re.compile(r"<!-- not run: (?P<reason>\S.*) -->\s*\Z")
OUTPUT = re.compile(r"```\n\n<!-- output -->\s*\Z")
"""Before a block with what the block before it prints."""
LINK = re.compile(r"!?\[[^\]]*\]\((?P<target>[^)\s]+)\)")
INDENTED = re.compile(r"\n\n    +(?![-*\d])\S.*")


@dataclass
class Block:
    """A fenced code block of a page.

    Args:
        page: The page.
        line: Number of its first line of code, counted from 1.
        language: The language named by its fence.
        code: The code.
        reason: Why the tests do not run it; None if they do.
        is_output: Whether it is what the block before it prints.
    """

    page: Path
    line: int
    language: str
    code: str
    reason: str | None
    is_output: bool = False

    @property
    def where(self) -> str:
        return f"{name_of(self.page)}:{self.line}"

    def compile(self) -> types.CodeType:
        """Compile the block so that a traceback names the line of the page."""
        padded = "\n" * (self.line - 1) + self.code
        flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
        code: types.CodeType = compile(padded, str(self.page), "exec", flags, dont_inherit=True)
        return code


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks_of(page: Path) -> Iterator[Block]:
    text = page.read_text()
    for match in FENCE.finditer(text):
        before = text[: match.start()]
        indent = match["indent"]
        code = "\n".join(line.removeprefix(indent) for line in match["code"].split("\n"))
        marked = NOT_RUN.search(before)
        reason = marked["reason"] if marked else None
        line = before.count("\n") + 2
        yield Block(page, line, match["language"], code, reason, OUTPUT.search(before) is not None)


def matches_output(expected: str, printed: str) -> bool:
    """Return whether a page shows what was printed; "..." stands for any text, also for none."""
    parts = map(re.escape, expected.strip().split("..."))
    return re.fullmatch(".*".join(parts), printed.strip(), re.S) is not None


def prose_of(page: Path) -> str:
    return FENCE.sub("", page.read_text())


def indented_code_of(page: Path) -> list[str]:
    """Return lines that Markdown renders as code without a fence, and so without a language."""
    paragraphs = [
        "" if re.match(r"(!!!|:::|- |\d+\. )", part) else part
        for part in re.split(r"\n\n(?=\S)", prose_of(page))
    ]
    return [hit.strip() for part in paragraphs for hit in INDENTED.findall("\n\n" + part)]


def slugs_of(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", prose_of(page), re.M)
    return {re.sub(r"[^\w\- ]", "", h.lower()).strip().replace(" ", "-") for h in headings}


def links_of(page: Path) -> list[str]:
    """Return the targets of a page's links and pictures; a link may span lines."""
    return [match["target"] for match in LINK.finditer(prose_of(page))]
