"""The placement of new workers, and what follows from workers that do not start."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rhapsody.allocation import Node
from rhapsody.backends.workers.starts import (
    LONGEST_PAUSE_SECONDS,
    MAX_FAILURES,
    MAX_PAUSES,
    FailedStarts,
    spread,
)
from rhapsody.backends.workers.worker_state import WorkerState

TRACEBACK = """\
Traceback (most recent call last):
  File "<string>", line 5, in <module>
ModuleNotFoundError: No module named 'rhapsody'
"""


def ended(exit_code: int | None, written: str = "") -> WorkerState:
    worker = WorkerState(1, Node("here"), 1)
    worker.exit_code = exit_code
    worker.start_error = written
    return worker


def test_workers_that_end_by_themselves_are_final_after_a_few() -> None:
    starts = FailedStarts()
    for _ in range(MAX_FAILURES):
        assert not starts.are_final
        assert starts.add(ended(1, TRACEBACK)) == 0
    assert starts.are_final
    assert starts.reason == (
        "3 workers in a row ended before they were ready; the last one ended with exit code 1: "
        "ModuleNotFoundError: No module named 'rhapsody'"
    )


def test_killed_workers_are_final_only_after_many_pauses() -> None:
    starts = FailedStarts()
    pauses = []
    while not starts.are_final:
        pauses.append(starts.add(ended(-9)))
    assert len(pauses) == MAX_PAUSES
    assert pauses[:3] == [0.1, 0.2, 0.4]
    assert pauses[-1] == LONGEST_PAUSE_SECONDS
    assert "was ended by SIGKILL; see what they wrote" in starts.reason


@pytest.mark.parametrize("exit_code", [-11, None])
def test_crashed_and_unstarted_workers_count_as_ended_by_themselves(exit_code: int | None) -> None:
    assert FailedStarts().add(ended(exit_code)) == 0


def test_ready_worker_clears_the_failures() -> None:
    starts = FailedStarts()
    for _ in range(10):
        starts.add(ended(1))
        starts.add(ended(-15))
        starts.clear()
    assert not starts.are_final


def test_first_line_is_quoted_without_a_traceback() -> None:
    starts = FailedStarts()
    starts.add(ended(1, "\nFatal Python error: no encodings\nmore\n"))
    assert starts.reason.endswith("ended with exit code 1: Fatal Python error: no encodings")


@given(st.lists(st.integers(1, 64), min_size=1, max_size=6), st.integers(0, 200))
def test_workers_are_spread_in_proportion_to_cpus(cpus: list[int], count: int) -> None:
    nodes = [Node(f"n{n}", c, is_head=n == 0) for n, c in enumerate(cpus)]
    first = spread(nodes, {}, count // 2)
    placed = Counter(first + spread(nodes, Counter(first), count - count // 2))
    assert placed.total() == count
    capacity = {node: max(1, node.cpus - node.is_head) for node in nodes}
    for node, number in placed.items():
        for other in nodes:
            # Without its last worker, no node is fuller than any other would be with one more.
            assert (number - 1) / capacity[node] <= (placed[other] + 1) / capacity[other]
