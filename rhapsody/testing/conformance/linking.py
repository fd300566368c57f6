"""Clauses on data linking."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

from rhapsody.testing.conformance.base import Clauses

__all__ = ["LinkingClauses"]


class LinkingClauses(Clauses):
    """Tests of the clauses on data linking."""

    async def test_data_linking_flags_are_booleans(self, backend: Any) -> None:
        """C5: the two `supports_*_data_linking` attributes are booleans."""
        assert isinstance(backend.supports_implicit_data_linking, bool)
        assert isinstance(backend.supports_explicit_data_linking, bool)

    async def test_link_methods_are_sync(self, backend: Any, tmp_path: Path) -> None:
        """C29: neither is awaitable; the explicit one returns its target."""
        source, target = self.one_task(backend, "task.000001"), self.one_task(backend, "t.2")
        implicit = backend.link_implicit_data_deps(source, target)
        assert not inspect.isawaitable(implicit)
        if backend.supports_explicit_data_linking:
            linked = backend.link_explicit_data_deps(source, target, file_name="data.txt")
            assert linked["target"]
        else:
            linked = backend.link_explicit_data_deps(source, target, file_name="data.txt")
            assert not inspect.isawaitable(linked)
