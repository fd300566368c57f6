"""What a benchmark returns: figures, charts, and problems."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict

__all__ = ["Chart", "Figure", "Line", "Panel", "Problem"]


Values = Annotated[Sequence[float], AfterValidator(tuple)]
"""Measurements, one per round."""


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Figure(_Record):
    """Measurements of Rhapsody and of a baseline, taken alternately, with one value per round.

    The value of a figure is the ratio of the two medians.
    """

    what: str
    over: str = ""
    """Name of the baseline."""
    ours: Values
    base: Values = ()
    """Empty if there is no baseline: the value is then the median of `ours`."""
    unit: str = "s"
    """Unit of the measurements: s, ms, us, /s or %."""
    difference: bool = False
    """Whether the value is the difference of the medians instead of their ratio."""
    at_most: float | None = None
    at_least: float | None = None
    """The project's aim, if it has one."""
    base_stopped: bool = False
    """Whether the baseline was stopped at its time limit: it would have taken longer."""
    note: str = ""

    @property
    def is_ratio(self) -> bool:
        return bool(self.base) and not self.difference

    @property
    def value(self) -> float:
        return self._compare(statistics.median(self.ours), statistics.median(self.base or [0.0]))

    @property
    def spread(self) -> tuple[float, float] | None:
        """The smallest and the largest value of a single round, if there are several."""
        if len(self.ours) < 2 or (self.base and len(self.base) != len(self.ours)):
            return None
        bases = self.base or [0.0] * len(self.ours)
        values = [self._compare(*pair) for pair in zip(self.ours, bases, strict=True)]
        return min(values), max(values)

    @property
    def met(self) -> bool | None:
        """Whether the aim is met; None without an aim."""
        if self.at_most is not None:
            return self.value <= self.at_most
        if self.at_least is not None:
            return self.value >= self.at_least
        return None

    def _compare(self, ours: float, base: float) -> float:
        return ours / base if self.is_ratio else ours - base


class Problem(_Record):
    """A part of a benchmark that could not be measured."""

    what: str
    reason: str


class Line(_Record):
    """One curve: measured values over a varied parameter."""

    label: str
    x: list[float]
    y: list[float]


class Panel(_Record):
    """One pair of axes."""

    title: str
    x_label: str
    y_label: str
    lines: list[Line]
    log_x: bool = True
    log_y: bool = False


class Chart(_Record):
    """One picture: panels side by side."""

    name: str
    """Name of its file, without the suffix."""
    title: str
    panels: list[Panel]
