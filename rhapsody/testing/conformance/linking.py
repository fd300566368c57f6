"""Data linking between tasks."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

from rhapsody.testing.conformance.base import Clauses

__all__ = ["LinkingClauses"]


class LinkingClauses(Clauses):
    """The clauses on data linking."""

    async def test_data_linking_flags_are_booleans(self, backend: Any) -> None:
        """C5: `supports_*_data_linking` can be read once at attachment."""
        assert isinstance(backend.supports_implicit_data_linking, bool)
        assert isinstance(backend.supports_explicit_data_linking, bool)

    async def test_link_hooks_are_sync(self, backend: Any, tmp_path: Path) -> None:
        """C29: both can be called without awaiting; the explicit one names its target."""
        source, target = self.one_task(backend, "task.000001"), self.one_task(backend, "t.2")
        implicit = backend.link_implicit_data_deps(source, target)
        assert not inspect.isawaitable(implicit)
        if backend.supports_explicit_data_linking:
            made = backend.link_explicit_data_deps(source, target, file_name="data.txt")
            assert made["target"]
        else:
            made = backend.link_explicit_data_deps(source, target, file_name="data.txt")
            assert not inspect.isawaitable(made)
