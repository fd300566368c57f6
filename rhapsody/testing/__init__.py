"""Tools for authors of backends: tests of the backend protocol, to run on any backend.

They need pytest and pytest-asyncio. This test module tests a backend on all clauses:

    import pytest
    from my_package import MyBackend
    from rhapsody.testing import BackendConformance

    class TestMyBackend(BackendConformance):
        @pytest.fixture
        def make_backend(self):
            return MyBackend
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rhapsody.testing.conformance import BackendConformance as BackendConformance

__all__ = ["BackendConformance"]


def __getattr__(name: str) -> Any:
    # Imported lazily: worker processes that run the sample tasks may not have pytest.
    if name != "BackendConformance":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from rhapsody.testing.conformance import BackendConformance

    return BackendConformance
