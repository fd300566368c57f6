"""Objects as small HTML tables, for notebooks."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rhapsody.backends.core.history import STATES
from rhapsody.errors import printable

__all__ = ["as_html", "state_cells"]

LONGEST = 200
"""Characters of a cell; the rest of a longer text is left out."""


def as_html(title: str, rows: Mapping[str, Any], table: Iterable[Sequence[Any]] = ()) -> str:
    """Return a heading, a line for each fact, and a table.

    Args:
        title: The heading.
        rows: Facts by name; those that are None are left out.
        table: Rows of a table; the first one has its headings.
    """
    lines = [f"<div><b>{_text(title)}</b>"]
    facts = [(name, value) for name, value in rows.items() if value is not None]
    if facts:
        cells = (f"<tr><th>{_text(name)}</th><td>{_text(value)}</td></tr>" for name, value in facts)
        lines.append(f"<table>{''.join(cells)}</table>")
    body = list(table)
    if len(body) > 1:
        tags = ["th"] + ["td"] * (len(body) - 1)
        lines.append("<table>")
        for tag, row in zip(tags, body, strict=True):
            cells = (f"<{tag}>{_text(value)}</{tag}>" for value in row)
            lines.append(f"<tr>{''.join(cells)}</tr>")
        lines.append("</table>")
    return "\n".join([*lines, "</div>"])


def state_cells(counts: Mapping[str, int]) -> list[str]:
    """Return the number of tasks in each of `STATES` as text, empty for none."""
    return [f"{counts[state]:,}" if counts.get(state) else "" for state in STATES]


def _text(value: Any) -> str:
    text = printable(str(value))
    if len(text) > LONGEST:
        text = f"{text[:LONGEST]} ..."
    return html.escape(text)
