"""What is kept of a run of benchmarks, as JSON in `benchmarks/results.json`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from benchmarks.figures import Chart, Figure, Problem
from benchmarks.machine import Machine

__all__ = ["Measured", "Result", "Results"]


class Measured(BaseModel):
    """What one benchmark measured."""

    model_config = ConfigDict(extra="forbid")

    figures: list[Figure] = []
    charts: list[Chart] = []
    problems: list[Problem] = []

    @classmethod
    def of(cls, found: Iterable[Figure | Chart | Problem]) -> Measured:
        found = list(found)
        return cls(
            figures=[one for one in found if isinstance(one, Figure)],
            charts=[one for one in found if isinstance(one, Chart)],
            problems=[one for one in found if isinstance(one, Problem)],
        )


class Result(BaseModel):
    """One benchmark: what it measured, or why it did not, and when that was."""

    model_config = ConfigDict(extra="forbid")

    began: str
    """Date and time in UTC."""
    load: float
    """Of the machine before it began."""
    seconds: float = 0.0
    measured: Measured = Measured()
    problem: str | None = None
    """Why nothing was measured, where that is so."""

    @property
    def problems(self) -> list[Problem]:
        """All that could not be measured."""
        whole = [] if self.problem is None else [Problem(what="all of it", reason=self.problem)]
        return [*whole, *self.measured.problems]


class Results(BaseModel):
    """Benchmarks of one machine, by name."""

    model_config = ConfigDict(extra="forbid")

    machine: Machine
    benchmarks: dict[str, Result] = {}

    def with_kept(self, path: Path, order: Sequence[str]) -> Results | None:
        """Add what a file has of other benchmarks, or return None where it is of another machine.

        Args:
            path: The file; it need not exist.
            order: Names of all benchmarks; what is not among them is dropped.
        """
        kept = Results.model_validate_json(path.read_text()) if path.exists() else self
        # With every benchmark measured anew nothing of the file is needed.
        if kept.machine != self.machine and set(order) - set(self.benchmarks):
            return None
        both = {**kept.benchmarks, **self.benchmarks}
        return Results(
            machine=self.machine, benchmarks={name: both[name] for name in order if name in both}
        )
