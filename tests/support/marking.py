"""Marks for all tests of a folder, for the hook `pytest_collection_modifyitems` of its conftest."""

from pathlib import Path

import pytest


def add_marks(items: list[pytest.Item], folder: Path, *marks: pytest.MarkDecorator) -> None:
    """Mark a folder's tests; a mark that a test has already keeps its arguments.

    Args:
        items: The tests of the whole session, which pytest passes to every conftest.
        folder: The folder.
        *marks: What to add.
    """
    for item in items:
        if folder in item.path.parents:
            for mark in marks:
                if item.get_closest_marker(mark.name) is None:
                    item.add_marker(mark)
