"""For authors of backends: the protocol's clauses as tests, to be run over a backend of one's own.

Needs pytest and pytest-asyncio. A test module that puts a backend to all clauses:

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
    # Not at import: worker processes that run the sample tasks have no use for pytest.
    if name != "BackendConformance":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from rhapsody.testing.conformance import BackendConformance

    return BackendConformance
