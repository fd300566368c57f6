"""The runtimes that some tests need, and what this version does with each.

The one table of its kind: markers, automatic skips, the closing summary and continuous
integration all read it. To bring a runtime under test, set ``supported`` here and add its extra
to ``dev`` in pyproject.toml, or its installation to ``make runtimes``.

``python -m tests.runtimes REPORT`` fails when the tests of a supported runtime did not run.
"""

import importlib.util
import json
import sys
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Runtime:
    """Something a test may need that a bare Python does not have.

    Args:
        name: As its users write it.
        module: What to import to see whether it is installed.
        marker: The pytest marker of the tests that need it.
        supported: Whether this version has tests for it, which then must run.
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
        """Say in one line what became of this runtime's tests."""
        if not self.supported:
            return f"{self.name}: not yet part of this version's tests"
        if not self.installed:
            return f"{self.name}: NOT INSTALLED here, its tests were skipped"
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
    """List the supported runtimes of which no test ran, given the number run per marker."""
    return [r for r in RUNTIMES if r.supported and not executed.get(r.marker)]


def main(report: Path) -> int:
    try:
        executed = json.loads(report.read_text())
    except (OSError, ValueError) as error:
        print(f"No account of which tests ran: {error}", file=sys.stderr)
        return 1
    missing = not_tested(executed)
    for runtime in missing:
        print(f"Supported but not tested: {runtime.describe(0)}", file=sys.stderr)
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
