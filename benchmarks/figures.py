"""What a benchmark returns: figures, which are ratios, charts, and what it could not measure."""

from __future__ import annotations

import statistics

from pydantic import BaseModel, ConfigDict

__all__ = ["Chart", "Figure", "Line", "Panel", "Problem"]


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Figure(_Record):
    """Ours and what it is compared with, measured in turns, one value per repetition.

    The value of a figure is the ratio of the two medians.
    """

    what: str
    over: str = ""
    """What ours is compared with."""
    ours: list[float]
    base: list[float] = []
    """Empty where ours stands alone: the value is then its median."""
    unit: str = "s"
    """Of the values: s, ms, us, /s or %."""
    difference: bool = False
    """The value is the difference of the medians instead."""
    at_most: float | None = None
    at_least: float | None = None
    """The project's aim, where it has one."""
    base_stopped: bool = False
    """The base was stopped at its time limit: it would have taken longer."""
    note: str = ""

    @property
    def is_ratio(self) -> bool:
        return bool(self.base) and not self.difference

    @property
    def value(self) -> float:
        return self._compare(statistics.median(self.ours), statistics.median(self.base or [0.0]))

    @property
    def spread(self) -> tuple[float, float] | None:
        """The least and the greatest value of a single repetition, where there are several."""
        if len(self.ours) < 2 or (self.base and len(self.base) != len(self.ours)):
            return None
        bases = self.base or [0.0] * len(self.ours)
        values = [self._compare(*pair) for pair in zip(self.ours, bases, strict=True)]
        return min(values), max(values)

    @property
    def met(self) -> bool | None:
        """Whether the aim is met; None where there is none."""
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
    """One curve: what is measured over what is varied."""

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
    """Of its file."""
    title: str
    panels: list[Panel]
