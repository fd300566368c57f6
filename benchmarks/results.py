"""Results of benchmarks, kept as JSON in `benchmarks/results.json`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from benchmarks.figures import Chart, Figure, Problem
from benchmarks.machine import Machine

__all__ = ["Measured", "Result", "Results"]


class Measured(BaseModel):
    """The measurements of one benchmark."""

    model_config = ConfigDict(extra="forbid")

    figures: list[Figure] = []
    charts: list[Chart] = []
    problems: list[Problem] = []

    @classmethod
    def of(cls, found: Iterable[Figure | Chart | Problem]) -> Measured:
        """Sort what a benchmark returned by type."""
        found = list(found)
        return cls(
            figures=[one for one in found if isinstance(one, Figure)],
            charts=[one for one in found if isinstance(one, Chart)],
            problems=[one for one in found if isinstance(one, Problem)],
        )


class Result(BaseModel):
    """One run of a benchmark: its measurements, or why it failed."""

    model_config = ConfigDict(extra="forbid")

    began: str
    """Date and time of the start, in UTC."""
    load: float
    """Load of the machine before the start."""
    seconds: float = 0.0
    measured: Measured = Measured()
    problem: str | None = None
    """Why nothing was measured; None if the benchmark succeeded."""

    @property
    def problems(self) -> list[Problem]:
        """Everything that could not be measured."""
        whole = (
            []
            if self.problem is None
            else [Problem(what="the whole benchmark", reason=self.problem)]
        )
        return [*whole, *self.measured.problems]


class Results(BaseModel):
    """Results from one machine, by name of the benchmark."""

    model_config = ConfigDict(extra="forbid")

    machine: Machine
    benchmarks: dict[str, Result] = {}

    def with_kept(self, path: Path, order: Sequence[str]) -> Results | None:
        """Add the results of other benchmarks from a file.

        Args:
            path: The file; it need not exist.
            order: Names of all benchmarks; results of others are dropped.

        Returns:
            None if the file is from another machine and some of its results would be kept.
        """
        kept = Results.model_validate_json(path.read_text()) if path.exists() else self
        # If all benchmarks have new results, the file is not needed.
        if kept.machine != self.machine and set(order) - set(self.benchmarks):
            return None
        both = {**kept.benchmarks, **self.benchmarks}
        return Results(
            machine=self.machine, benchmarks={name: both[name] for name in order if name in both}
        )
