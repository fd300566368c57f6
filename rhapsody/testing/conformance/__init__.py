"""Tests of the clauses of AsyncFlow's backend protocol, for any backend.

The docstring of each test begins with the number of its clause in `docs/backend-protocol.md`.
"""

from __future__ import annotations

from rhapsody.testing.conformance.attachment import AttachmentClauses
from rhapsody.testing.conformance.cancellation import CancellationClauses
from rhapsody.testing.conformance.linking import LinkingClauses
from rhapsody.testing.conformance.reports import ReportClauses
from rhapsody.testing.conformance.results import ResultClauses
from rhapsody.testing.conformance.shutdown import ShutdownClauses
from rhapsody.testing.conformance.submission import SubmissionClauses

__all__ = ["BackendConformance"]


class BackendConformance(
    AttachmentClauses,
    LinkingClauses,
    SubmissionClauses,
    ReportClauses,
    ResultClauses,
    CancellationClauses,
    ShutdownClauses,
):
    """Tests of all clauses. Subclass it and define the fixture `make_backend`.

    The fixture returns a callable that creates a new backend on each call, not yet attached. An
    awaitable backend is awaited, as users do. Tests of kinds that the backend does not take are
    skipped; its attribute `task_kinds` names them, and the default is functions and executables.

    Sample functions are found by import and connect to a port of `gate_host`. Worker processes need
    `rhapsody`, but not pytest.

    Attributes:
        runs_tasks: False if the backend does not really run tasks; skips tests that need it.
        stops_functions: False if a cancelled sync function continues, as in threads; then its
            result must be dropped.
        gate_host: An address of this machine that tasks can reach. Change the default if they run
            on other machines.
    """
