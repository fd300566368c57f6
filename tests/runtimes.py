"""The runtimes that some tests need.

Markers, automatic skips, the final summary and continuous integration use this table. To test
another runtime, set ``supported`` here and add its extra to ``dev`` in pyproject.toml, or its
installation to ``make runtimes``.

``python -m tests.runtimes REPORT...`` fails if no test of a supported runtime ran in any part.
"""

import importlib.util
import json
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Runtime:
    """A runtime that tests may need.

    Args:
        name: Name for users.
        module: Module that exists if the runtime is installed.
        marker: The pytest marker of the tests that need it.
        supported: Whether this version has tests for it, which must then run.
    """

    name: str
    module: str
    marker: str
    supported: bool

    @property
    def installed(self) -> bool:
        try:
            return importlib.util.find_spec(self.module) is not None
        except ModuleNotFoundError:  # the parent package of a dotted name
            return False

    def describe(self, executed: int) -> str:
        """Return one line on the runtime's tests, given the number that ran."""
        if not self.supported:
            return f"{self.name}: this version has no tests for it"
        if not self.installed:
            return f"{self.name}: NOT INSTALLED, its tests were skipped"
        if executed == 0:
            return f"{self.name}: no test ran"
        return f"{self.name}: {executed} {'test' if executed == 1 else 'tests'} ran"


RUNTIMES = (
    Runtime("AsyncFlow", module="radical.asyncflow", marker="asyncflow", supported=True),
    Runtime("Dask", module="distributed", marker="dask", supported=True),
    Runtime("Dragon", module="dragon", marker="dragon", supported=True),
    Runtime("vLLM", module="vllm", marker="vllm", supported=True),
)


def not_tested(executed: dict[str, int]) -> list[Runtime]:
    """Return the supported runtimes of which no test ran, given the number of tests by marker."""
    return [r for r in RUNTIMES if r.supported and not executed.get(r.marker)]


def main(reports: Iterable[Path]) -> int:
    executed: Counter[str] = Counter()
    try:
        for report in reports:
            executed.update(json.loads(report.read_text()))
    except (OSError, ValueError) as error:
        print(f"The report of executed tests cannot be read: {error}", file=sys.stderr)
        return 1
    missing = not_tested(executed)
    for runtime in missing:
        print(f"Supported but not tested: {runtime.describe(0)}", file=sys.stderr)
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main(map(Path, sys.argv[1:])))
