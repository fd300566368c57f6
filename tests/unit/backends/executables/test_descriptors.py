import errno
import os
import resource
from collections.abc import Callable, Iterator

import pytest

from rhapsody.backends.executables.descriptors import (
    are_exhausted,
    available,
    executables_within_limit,
)

SetLimit = Callable[[int, int], None]


@pytest.fixture
def set_limit(monkeypatch: pytest.MonkeyPatch) -> SetLimit:
    """Replaces the limits of this process by others."""
    limits = [1024, 1024]

    def replace(soft: int, hard: int) -> None:
        limits[:] = soft, hard

    monkeypatch.setattr(resource, "getrlimit", lambda _: tuple(limits))
    monkeypatch.setattr(resource, "setrlimit", lambda _, new: replace(*new))
    return replace


@pytest.mark.parametrize(
    ("soft", "hard", "expected", "soft_after"),
    [
        (1024, 1_048_576, 512, 2176),
        (1024, 1024, 224, 1024),
        (4096, 4096, 512, 4096),
        (64, 64, 1, 64),
        (resource.RLIM_INFINITY, resource.RLIM_INFINITY, 512, resource.RLIM_INFINITY),
    ],
)
def test_executables_fit_the_limit_which_is_raised(
    soft: int, hard: int, expected: int, soft_after: int, set_limit: SetLimit
) -> None:
    set_limit(soft, hard)
    assert executables_within_limit(512) == expected
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == soft_after


@pytest.fixture
def no_descriptors() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_no_executable_can_start_without_descriptors(no_descriptors: None) -> None:
    assert not available()


def test_executable_can_start_with_descriptors() -> None:
    assert available()


def test_lack_of_descriptors_is_told_from_other_errors() -> None:
    assert are_exhausted(OSError(errno.EMFILE, os.strerror(errno.EMFILE)))
    assert not are_exhausted(FileNotFoundError())
    assert not are_exhausted(None)
