"""The same programs here and on `rhapsody-py`, the package of the same import name."""

from benchmarks.peer.comparison import measure

__all__ = ["measure"]
