"""How figures are written, on the page and in the terminal."""

from __future__ import annotations

__all__ = ["duration"]

UNITS = (("h", 3600.0), ("min", 60.0), ("s", 1.0), ("ms", 1e-3), ("µs", 1e-6))


def duration(seconds: float | None) -> str:
    """Return a time in three digits with its unit; "" for None."""
    if seconds is None:
        return ""
    for unit, size in UNITS:
        if seconds >= size * 0.9995:  # what would be rounded to a whole one
            return f"{_three_digits(seconds / size)} {unit}"
    return "0 s" if seconds <= 0 else "<1 µs"


def _three_digits(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
