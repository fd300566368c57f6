"""The same work on Rhapsody and on the systems that its users know."""

from benchmarks.systems.comparison import measure

__all__ = ["measure"]
