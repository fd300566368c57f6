"""The journal: the results of a run in one file, so that a later run repeats none of them."""

from __future__ import annotations

from rhapsody.journal.recorder import Journal

__all__ = ["Journal"]
