"""Run benchmarks, print their table and update docs/: `make bench [BENCH=NAMES]`.

Every figure is a ratio, or a difference, of measurements from the same run, so that the tables of
different machines can be compared. Each benchmark runs in its own process.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence

from benchmarks.launch import BENCHMARKS, run
from benchmarks.machine import this_machine
from benchmarks.processes import ROOT
from benchmarks.publish import publish
from benchmarks.results import Results
from benchmarks.tables import markdown


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the named benchmarks, or all; return 1 if one could not be measured."""
    names = _names(arguments)
    signal.signal(signal.SIGTERM, _stop)
    results = Results(machine=this_machine())
    for number, name in enumerate(names, 1):
        _say(f"[{number}/{len(names)}] {name}: {BENCHMARKS[name].about}")
        result = results.benchmarks[name] = run(name, BENCHMARKS[name])
        for problem in result.problems:
            _say(f"    {problem.what} not measured: {problem.reason}")
        _say(f"    {result.seconds:.0f} s")
    print(markdown(results))
    _say(publish(results, ROOT, list(BENCHMARKS)))
    return int(any(result.problems for result in results.benchmarks.values()))


def _names(arguments: Sequence[str] | None) -> list[str]:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        epilog="\n".join(f"  {name:12}{one.about}" for name, one in BENCHMARKS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="benchmarks to run (default: all)")
    wanted: list[str] = parser.parse_args(arguments).names
    if unknown := set(wanted) - set(BENCHMARKS):
        parser.error(f"unknown benchmark {min(unknown)!r}; choose from {', '.join(BENCHMARKS)}")
    return [name for name in BENCHMARKS if name in wanted or not wanted]


def _stop(number: int, _frame: object) -> None:
    """Exit, which ends the running benchmark; a second signal must not interrupt that."""
    signal.signal(number, signal.SIG_IGN)
    sys.exit(128 + number)


def _say(words: str) -> None:
    print(words, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
