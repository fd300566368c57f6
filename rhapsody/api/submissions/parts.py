"""Parts of many tasks: the loop handles each in one pass, and others in between."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence

from rhapsody.api.submissions.submission import AnyTask

__all__ = ["AT_ONCE", "after_part", "in_parts"]

AT_ONCE = 250
"""Tasks that are checked or submitted in one pass of the loop, which is held meanwhile."""


def in_parts(tasks: Sequence[AnyTask]) -> Iterator[Sequence[AnyTask]]:
    """Yield the parts of a sequence that one pass of the loop handles."""
    for begin in range(0, len(tasks), AT_ONCE):
        yield tasks[begin : begin + AT_ONCE]


async def after_part(tasks: Sequence[AnyTask]) -> None:
    """Let the loop do other work after a part of many tasks."""
    if len(tasks) > AT_ONCE:
        await asyncio.sleep(0)
