"""Durations as text, for the page and the live view."""

from __future__ import annotations

__all__ = ["format_duration"]

UNITS = (("h", 3600.0), ("min", 60.0), ("s", 1.0), ("ms", 1e-3), ("µs", 1e-6))


def format_duration(seconds: float | None) -> str:
    """Return a duration with three digits and a unit, or "" for None."""
    if seconds is None:
        return ""
    for unit, size in UNITS:
        if seconds >= size * 0.9995:  # 0.9996 s is "1 s", not "1,000 ms"
            return f"{_three_digits(seconds / size)} {unit}"
    return "0 s" if seconds <= 0 else "<1 µs"


def _three_digits(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
