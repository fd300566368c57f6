"""Groups of failures."""

from rhapsody.backends.core.history import Failure
from rhapsody.report.failures import group_failures


def test_failures_that_differ_in_numbers_are_one_group() -> None:
    of_cpu = [
        Failure("ValueError: run 12 grew by 0.5", 7, "t.12"),
        Failure("OSError: disk full", 4, "t.1"),
        Failure("ValueError: run 3 grew by 12", 2, "t.3"),
    ]
    first, second, third = group_failures(
        [("cpu", of_cpu), ("gpu", [Failure("OSError: disk full", 1, "g")])]
    )
    assert (first.number, first.messages, first.first.uid) == (9, 2, "t.12")
    assert (second.backend, second.number, second.messages) == ("cpu", 4, 1)
    assert (third.backend, third.number) == ("gpu", 1)
