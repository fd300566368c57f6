"""The clauses of AsyncFlow's backend protocol, each a test that any backend can be put to.

The number of a clause stands at the head of its test's docstring.
"""

from __future__ import annotations

from rhapsody.testing.conformance.attachment import AttachmentClauses
from rhapsody.testing.conformance.cancelling import CancellingClauses
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
    CancellingClauses,
    ShutdownClauses,
):
    """One test per clause; subclass it and define the fixture `make_backend`.

    The fixture returns a callable that makes a new backend each time, not yet attached. What it
    makes is awaited where that can be done, as users do. Tests of kinds that the backend does not
    take (its attribute `task_kinds`; functions and executables where it has none) are skipped.

    Sample functions connect to a port of `gate_host`, and they are found by import: worker
    processes need `rhapsody`, but not pytest.

    Attributes:
        runs_tasks: False for a backend that only pretends to; skips what needs a real run.
        stops_functions: False where a cancelled sync function runs on, as in threads; its
            result must be dropped then.
        gate_host: An address of this machine that tasks can reach; where they run on others, that
            is not the default.
    """
