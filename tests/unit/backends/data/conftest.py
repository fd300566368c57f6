"""Folders for segments, and what is released."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from rhapsody.backends.data.segments import Folders, Segments


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    """The folders of a store that may use 1 MiB of memory."""
    for name in ("memory", "disk"):
        (tmp_path / name).mkdir()
    return Folders(str(tmp_path / "memory"), str(tmp_path / "disk"), 1 << 20)


@pytest.fixture
def segments(folders: Folders) -> Iterator[Segments]:
    """Its segments."""
    opened = Segments(folders)
    yield opened
    opened.close()
