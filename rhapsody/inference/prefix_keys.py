"""Hashes of the beginnings of prompts, by which prompts with the same beginning are found."""

from __future__ import annotations

__all__ = ["LONGEST_PREFIX", "Keys", "prefix_keys"]

BOUNDARIES = (512, 1024, 2048, 4096)
"""Lengths of the beginnings that are compared, in characters. A shorter one saves little time."""
LONGEST_PREFIX = BOUNDARIES[-1]

Keys = tuple[int, ...]
"""The hashes of the beginnings of a prompt, the shortest first."""


def prefix_keys(text: str | bytes) -> Keys:
    """Return the hashes of the beginnings of a text.

    Args:
        text: The text, of which `LONGEST_PREFIX` characters are looked at.
    """
    keys: list[int] = []
    key = begin = 0
    for end in BOUNDARIES:
        if len(text) < end:
            break
        key = hash((key, text[begin:end]))
        keys.append(key)
        begin = end
    return tuple(keys)
