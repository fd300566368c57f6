"""The same programs on Rhapsody and on `rhapsody-py`, which has the same import name."""

from benchmarks.peer.comparison import measure

__all__ = ["measure"]
